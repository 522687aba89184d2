"""Time, inodes and bytes of one record an image, in files and in shards.

Records of random bytes are written through the pipeline's own writers, read by id in random order,
and looked for as a resumed stage does; then the folder is deleted. Each format has a fresh process
and folder. Files are read warm, from memory: on a network file system, where every open is a
round trip, files are slower by far. Shards are synced to the disk before they count, files are
not. Bytes on disk are whole blocks, folders included.

    python benchmarks/storage.py --folder /tmp
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsss_affinity.pipeline.storage import FORMATS, Records, record_writer

SUFFIX = ".npz"


def ids(number: int) -> list[str]:
    """Names as long as those of data sets are, in folders of 10,000."""
    return [f"part_{i // 10_000:04d}/image_{i:09d}" for i in range(number)]


def write(folder: Path, format: str, names: Sequence[str], size: int) -> None:
    data = random.Random(0)
    with record_writer(folder, SUFFIX, format) as writer:
        for id in names:
            writer.write(id, data.randbytes(size))


def read(folder: Path, names: Sequence[str]) -> int:
    """Bytes of some records; the look-up of what is there counts too."""
    records = Records(folder, SUFFIX)
    return sum(len(records.read(id)) for id in names)


def scan(folder: Path, names: Sequence[str]) -> int:
    """Records that a resumed stage need not make."""
    records = Records(folder, SUFFIX)
    return sum(id in records for id in names)


def usage(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    stats = [path.stat() for path in paths]
    return {
        "inodes": len(stats),
        "bytes": sum(s.st_size for p, s in zip(paths, stats, strict=True) if p.is_file()),
        "bytes_on_disk": sum(s.st_blocks * 512 for s in stats),
    }


def measure(folder: Path, format: str, args: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {}

    def timed(name: str, work: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = work(*arguments)
        row[f"{name}_s"] = time.perf_counter() - start
        return result

    wanted = ids(2 * args.images)
    stored = wanted[: args.images]
    chosen = random.Random(1).choices(stored, k=args.reads)
    timed("write", write, folder, format, stored, args.size)
    row |= usage(folder)
    assert timed("read", read, folder, chosen) == args.reads * args.size
    # half of what is wanted is there
    assert timed("scan", scan, folder, wanted) == args.images
    timed("delete", shutil.rmtree, folder)
    return row


def in_a_fresh_process(format: str, args: argparse.Namespace) -> dict[str, Any]:
    command: list[Any] = [sys.executable, __file__, "--measure", format]
    for option in ("images", "size", "reads", "folder"):
        command += [f"--{option}", getattr(args, option)]
    result = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(result.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=2048, help="bytes of a record")
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    parser.add_argument("--measure", choices=FORMATS, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.measure:
        with tempfile.TemporaryDirectory(dir=args.folder) as root:
            print(json.dumps(measure(Path(root) / "records", args.measure, args)))
        return

    rows = {format: in_a_fresh_process(format, args) for format in FORMATS}
    files, shards = rows["files"], rows["shards"]
    report = {
        "images": args.images,
        "record_bytes": args.size,
        "reads": args.reads,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "formats": rows,
        "files_over_shards": {name: files[name] / shards[name] for name in files},
    }
    print(f"{args.images} records of {args.size} bytes, {args.reads} read in random order")
    print(f"{'':>14} {'files':>12} {'shards':>12} {'ratio':>8}")
    for name, ratio in report["files_over_shards"].items():
        form = "12.2f" if name.endswith("_s") else "12d"
        print(f"{name:>14} {files[name]:{form}} {shards[name]:{form}} {ratio:8.2f}")
    output = args.output or Path(__file__).parent / "results" / "storage.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
