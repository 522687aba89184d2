"""Time and memory of what a run does with the list of its images, for a long list.

The photographs and masks are empty files: none is opened, as in a run whose images have been
checked before. Each part has a fresh process; memory is the most that it held, libraries and the
list itself included. ``list_only`` is a process that just holds the list.

    python benchmarks/long_lists.py --folder /dev/shm
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from wsss_affinity.config import load_config
from wsss_affinity.data import WSSSDataModule
from wsss_affinity.data.folder import folder_source
from wsss_affinity.data.source import Sample, Source, plain_mask_values
from wsss_affinity.data.voc import VOC_CLASSES, voc_source
from wsss_affinity.pipeline import source as pipeline_source
from wsss_affinity.pipeline.artifact import ArtifactStore, samples_fingerprint
from wsss_affinity.pipeline.storage import Records, record_writer

BATCH = 16


def name(index: int) -> str:
    """Folders of 10,000."""
    return f"part_{index // 10_000:04d}/image_{index:09d}"


def labels(index: int) -> tuple[int, ...]:
    return tuple(sorted({index % 20, index % 7}))


def prepare(root: Path, number: int) -> int:
    """A data set that both readers take, and a record of each image in shards."""
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    for index in range(number):
        path = images / f"{name(index)}.jpg"
        if index % 10_000 == 0:
            path.parent.mkdir(parents=True)
            (masks / name(index)).parent.mkdir(parents=True)
        path.touch()
        # a link takes no inode
        os.link(path, masks / f"{name(index)}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{name(i)}\n" for i in range(number)))
    rows = (
        f"{name(i)}.jpg,{';'.join(VOC_CLASSES[label] for label in labels(i))}\n"
        for i in range(number)
    )
    (root / "labels.csv").write_text("image,labels\n" + "".join(rows))
    with record_writer(root / "records", ".png", "shards") as writer:
        for index in range(number):
            writer.write(name(index), b"")
    return number


def samples(root: Path, number: int) -> tuple[Sample, ...]:
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    return tuple(
        Sample(name(i), images / f"{name(i)}.jpg", labels(i), masks / f"{name(i)}.png")
        for i in range(number)
    )


def by_folder(root: Path, _: int) -> int:
    source = folder_source(
        root / "JPEGImages", labels=root / "labels.csv", masks=root / "SegmentationClass"
    )
    return len(source.score)


def by_voc(root: Path, _: int) -> int:
    return len(voc_source(root, train_split="train", labels_csv="labels.csv").score)


def datamodule(listed: tuple[Sample, ...], _: Path) -> int:
    """Set up, and the order of two epochs."""
    module = WSSSDataModule(listed, 20, mock.Mock(), batch_size=BATCH, num_workers=0)
    batches: Any = module.train_dataloader().batch_sampler
    first = next(iter(batches))
    batches.sampler.set_epoch(1)
    assert next(iter(batches)) != first
    assert sum(len(batch) for batch in batches) == len(listed) // BATCH * BATCH
    return len(module.dataset)


def fingerprint(listed: tuple[Sample, ...], _: Path) -> int:
    """Without masks and with them, in one pass."""
    assert samples_fingerprint(listed)
    return len(listed)


def scan_files(listed: tuple[Sample, ...], root: Path) -> int:
    """What a stage has left to do, all of it done."""
    stored = Records(root / "SegmentationClass", ".png")
    return len(listed) - len([s for s in listed if s.id not in stored])


def scan_shards(listed: tuple[Sample, ...], root: Path) -> int:
    stored = Records(root / "records", ".png")
    return len(listed) - len([s for s in listed if s.id not in stored])


def check_images(listed: tuple[Sample, ...], root: Path) -> int:
    """The bookkeeping of the check of the data, and its fingerprint; no file is opened."""
    source = Source(
        VOC_CLASSES, train=listed, score=listed, mask_values=plain_mask_values(len(VOC_CLASSES))
    )
    cfg = load_config([f"output_dir={root}"])

    def passed(_: str, samples: Iterable[Sample], *rest: Any, **options: Any) -> Any:
        return ((sample, None) for sample in samples)

    with mock.patch.object(pipeline_source, "map_samples", passed):
        kept, _, _ = pipeline_source.check_data(cfg, source, ArtifactStore(root / "artifacts"))
    return len(kept.score)


def list_only(listed: tuple[Sample, ...], _: Path) -> int:
    return len(listed)


READERS: tuple[Callable[[Path, int], int], ...] = (by_folder, by_voc)
PARTS: tuple[Callable[[tuple[Sample, ...], Path], int], ...] = (
    list_only,
    datamodule,
    fingerprint,
    scan_files,
    scan_shards,
    check_images,
)


def peak_mib() -> float:
    # kilobytes, but bytes on macOS
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(part: str, root: Path, number: int) -> dict[str, float]:
    before = peak_mib()
    work: Any = {f.__name__: f for f in (prepare, *READERS, *PARTS)}[part]
    arguments = (samples(root, number), root) if work in PARTS else (root, number)
    start, start_cpu = time.perf_counter(), time.process_time()
    assert work(*arguments) == number
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "peak_mib": peak_mib(),
        "libraries_mib": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.measure:
        print(json.dumps(measure(args.measure, args.folder, args.images)))
        return

    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in (prepare, *READERS, *PARTS):
            options = ["--measure", part.__name__, "--folder", folder, "--images", args.images]
            command = [sys.executable, __file__, *map(str, options)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows[part.__name__] = row = json.loads(result.stdout.splitlines()[-1])
            print(f"{part.__name__:>22} {row['seconds']:7.1f} s {row['peak_mib']:7.0f} MiB")
    del rows["prepare"]
    report = {
        "images": args.images,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "parts": rows,
    }
    output = args.output or Path(__file__).parent / "results" / "long_lists.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
