"""What an artefact's files were when it was completed, and which of them are no longer so.

The record has one line a file: SHA-256, size, name in JSON and modification time, with tabs
between. A file of the recorded size and time counts as unchanged; any other is hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes

MANIFEST = "manifest.json"
RECORD = "checksums.tsv"
ATTEMPTS = ".attempts.json"
CHECKPOINT = "resume.ckpt"
#: what an unfinished artefact holds until it has its manifest
UNFINISHED = (ATTEMPTS, CHECKPOINT)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of an artefact.

    Raises:
        WSSSError: If it is missing or damaged.
    """
    path = directory / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WSSSError(
            f"{path} cannot be read ({error}); remove its folder and run again"
        ) from error
    return content


def write_record(directory: Path) -> str:
    """Hash every file below a directory and leave the record there.

    Returns:
        Hash of all names, sizes and contents; equal artefacts have equal ones.

    Raises:
        WSSSError: If a file cannot be read or the record not be written.
    """
    record, content = bytearray(), hashlib.sha256()
    for name, (size, time) in sorted(_files(directory).items()):
        try:
            head = _head(_sha256(f"{directory}/{name}"), size, name)
        except OSError as error:
            raise WSSSError(
                f"{directory / name} cannot be read ({error.strerror}); mend that and run again"
            ) from error
        content.update(head)
        record += b"%b\t%d\n" % (head, time)
    write_bytes(directory / RECORD, bytes(record))
    return content.hexdigest()


def damaged_files(directory: Path, *, content: bool = False) -> list[str]:
    """Find the files that are missing or no longer what they were when they were made.

    An artefact of the time before there were records passes if its manifest can be read.

    Args:
        directory: An artefact.
        content: Whether to read every file, not only those whose size or time changed.

    Returns:
        Their names, relative to the directory; those of all files if there is no sound record.
    """
    damaged = []
    try:
        expected = json.loads((directory / MANIFEST).read_bytes()).get("content")
        if expected is None:
            return []
    except (OSError, ValueError, AttributeError):
        expected = None
        damaged.append(MANIFEST)

    there = _files(directory)
    found, moved = hashlib.sha256(), False
    try:
        with (directory / RECORD).open("rb") as record:
            for line in record:
                head, time = line.rsplit(b"\t", 1)
                found.update(head)
                digest, size, name = _parts(head)
                now = there.get(name, (-1, -1))
                same = now[0] == size
                if same and (content or now[1] != int(time)):
                    same = _has(f"{directory}/{name}", digest)
                    moved = moved or now[1] != int(time)
                if not same:
                    damaged.append(name)
        if expected not in (None, found.hexdigest()):
            raise ValueError
    except (OSError, ValueError):
        lost = [MANIFEST] if expected is None else []
        return [*lost, RECORD, *sorted(there)]
    if moved and not damaged:
        with suppress(WSSSError):  # a copy in a read-only folder is hashed each time
            _renew(directory, there)
    return damaged


def _renew(directory: Path, there: Mapping[str, tuple[int, int]]) -> None:
    """Put the times of today into the record."""
    lines = []
    with (directory / RECORD).open("rb") as record:
        for line in record:
            head = line.rsplit(b"\t", 1)[0]
            lines.append(b"%b\t%d\n" % (head, there[_parts(head)[2]][1]))
    write_bytes(directory / RECORD, b"".join(lines))


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for entry in _walk(directory):
        if entry.name.startswith(".") and entry.name.endswith(".tmp"):
            Path(entry.path).unlink(missing_ok=True)


def _files(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file that the record is about, by relative name."""
    found = {}
    start = len(os.fspath(directory)) + 1
    for entry in _walk(directory):
        try:
            stat = entry.stat()
        except FileNotFoundError:
            continue  # gone meanwhile, or a link to nowhere
        found[entry.path[start:].replace(os.sep, "/")] = stat.st_size, stat.st_mtime_ns
    for name in (MANIFEST, RECORD, *UNFINISHED):
        found.pop(name, None)
    return found


def _walk(directory: str | Path) -> Iterator[os.DirEntry[str]]:
    # a million files in seconds, which pathlib takes a minute for
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return  # gone meanwhile
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path)
            else:
                yield entry


def _head(digest: str, size: int, name: str) -> bytes:
    """A line of the record up to the time."""
    return f"{digest}\t{size}\t{json.dumps(name)}".encode()


def _parts(head: bytes) -> tuple[str, int, str]:
    digest, size, name = head.split(b"\t")
    return digest.decode(), int(size), json.loads(name)


def _has(path: str, digest: str) -> bool:
    try:
        return _sha256(path) == digest
    except OSError:
        return False


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
