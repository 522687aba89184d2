"""Where a stage keeps one record an image: a file each, or many in a shard.

One file an image is right for thousands of images; millions exhaust a file system's inodes, and
listing or copying them takes hours. A shard is an uncompressed tar in the naming of WebDataset,
``<id>.<suffix>``, so that any tar reader opens it. Python's own ``tarfile`` writes it and a table
of offsets beside it finds a record: ``webdataset`` reads in sequence only, and Zarr wants arrays
of one shape, which photographs are not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsss_affinity import world
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.shard import (
    INDEX,
    index_path,
    is_whole,
    key,
    pack,
    read_index,
    shards_in,
)

FORMATS = ("files", "shards")
#: A shard is full with this many records or bytes; a kill loses at most one shard's work
SHARD_RECORDS, SHARD_BYTES = 1000, 128 * 2**20

_SHARDS = "shards"


@dataclass(frozen=True)
class Records:
    """The records below a folder by image id, in files, in shards, or some in each.

    What is stored is looked up once, at first use, and again in every process that this is
    pickled to.

    Attributes:
        folder: Where they are.
        suffix: Of every record in it, with the dot.
    """

    folder: Path
    suffix: str

    def __reduce__(self) -> tuple[type[Records], tuple[Path, str]]:
        return Records, (self.folder, self.suffix)

    def __contains__(self, id: str) -> bool:
        """Whether there is a record; files count that were there at the first question."""
        return self._place(id) is not None or id in self._files

    def read(self, id: str) -> bytes:
        """Read a record.

        Raises:
            WSSSError: If there is none, or it cannot be read.
        """
        place = self._place(id)
        path = self.file(id) if place is None else place[0]
        try:
            with path.open("rb", buffering=0) as file:
                if place is None:
                    return file.readall()
                _, offset, size = place
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise WSSSError(
                f"{path} cannot be read ({error.strerror}); remove the artefact's folder and run "
                "again"
            ) from error
        if len(data) != size:
            raise WSSSError(
                f"{path} is damaged (it ends before {id}{self.suffix} does); remove the "
                "artefact's folder and run again"
            )
        return data

    def file(self, id: str) -> Path:
        """Where a record is if it is a file; it goes by this name in messages."""
        return self.folder / f"{id}{self.suffix}"

    def _place(self, id: str) -> tuple[Path, int, int] | None:
        """Shard, offset and size of a record."""
        shards, keys, rows = self._index
        wanted = key(id)
        row = int(keys.searchsorted(wanted))
        if row == len(keys) or keys[row] != wanted:
            return None
        shard, offset, size = rows[row].tolist()
        return shards[shard], offset, size

    @cached_property
    def _index(self) -> tuple[list[Path], NDArray[np.bytes_], NDArray[np.int64]]:
        """Shards; keys, sorted; shard, offset and size of each: 40 bytes a record."""
        shards = shards_in(self.folder / _SHARDS)
        tables = [read_index(shard) for shard in shards]
        table = np.concatenate([np.empty(0, INDEX), *tables])
        numbers = np.repeat(np.arange(len(shards)), [len(t) for t in tables])
        order = table["key"].argsort()
        rows = np.stack([numbers, table["offset"], table["size"]], axis=1)
        return shards, table["key"][order], rows[order]

    @cached_property
    def _files(self) -> frozenset[str]:
        """Ids of the records in files: listing the folder is faster than asking for each."""
        found: list[str] = []
        for folder, _, names in os.walk(self.folder):
            inside = Path(folder).relative_to(self.folder).as_posix()
            start = "" if inside == "." else f"{inside}/"
            found += [start + n[: -len(self.suffix)] for n in names if n.endswith(self.suffix)]
        return frozenset(found)


class RecordWriter:
    """Writes records as files ``<folder>/<id><suffix>``, each whole or not there.

    Args:
        folder: Where they go.
        suffix: Of every record, with the dot.

    Attributes:
        stored: What is there already.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.stored = Records(folder, suffix)

    def write(self, id: str, data: bytes) -> None:
        """Write a record.

        Raises:
            WSSSError: If the disk is full or read-only.
        """
        write_bytes(self.stored.file(id), data)

    def close(self) -> None:
        """Write what is held back."""

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # after an error or a request to stop too: finished records are kept
        self.close()


class ShardWriter(RecordWriter):
    """Gathers records into ``<folder>/shards/<rank>-<number>.tar``, each whole or not there.

    Records wait in memory until their shard is full, or until the end. A record that is stored
    already is passed over, so that no image is in two shards. Each process of a run has shards of
    its own.

    Args:
        folder: Where they go.
        suffix: Of every record, with the dot.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        super().__init__(folder, suffix)
        self._number = 0
        self._waiting: dict[str, bytes] = {}
        self._bytes = 0

    def write(self, id: str, data: bytes) -> None:
        """Take a record.

        Raises:
            WSSSError: If the disk is full or read-only.
        """
        if id in self.stored:
            return
        self._waiting[id] = data
        self._bytes += len(data)
        if len(self._waiting) >= SHARD_RECORDS or self._bytes >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Write the records that wait."""
        if not self._waiting:
            return
        while is_whole(shard := self._shard()):
            self._number += 1
        tar, index = pack(self._waiting, self.stored.suffix)
        # a shard counts once both have their names; one that lost its index must not get this one
        shard.unlink(missing_ok=True)
        write_bytes(index_path(shard), index, sync=True)
        write_bytes(shard, tar, sync=True)
        self._waiting, self._bytes = {}, 0

    def _shard(self) -> Path:
        return self.stored.folder / _SHARDS / f"{world.rank()}-{self._number:06d}.tar"


def remove_half_shards(directory: Path) -> None:
    """Remove tars that lost their index, and the reverse, below a directory nobody writes to.

    Other shards have their records by then: with fewer processes than before nobody writes under
    their names again, and a reader of all tars would meet an image twice.
    """
    for folder, _, names in os.walk(directory):
        if os.path.basename(folder) == _SHARDS:
            for path in (Path(folder, name) for name in names):
                if path.suffix in (".tar", ".npy") and not is_whole(path.with_suffix(".tar")):
                    path.unlink(missing_ok=True)


def record_writer(folder: Path, suffix: str, format: str) -> RecordWriter:
    """Open a folder for writing records.

    Args:
        folder: Where they go.
        suffix: Of every record, with the dot.
        format: One of :data:`FORMATS`; :class:`Records` reads either.
    """
    return (ShardWriter if format == "shards" else RecordWriter)(folder, suffix)
