"""A shard: many records in one tar, and beside it a table of where each is."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.errors import WSSSError

#: what the table says of a record: 40 bytes
INDEX = np.dtype([("key", "S16"), ("offset", "<i8"), ("size", "<i8")])


def member_name(id: str, suffix: str) -> str:
    """Name of an image's record in a shard; ``urllib.parse.unquote`` gives the id back.

    WebDataset takes what is before the first dot of a name for its key, and passes over names in a
    folder ``__…__``.
    """
    name = quote(id).replace(".", "%2E")
    return ("%5F" + name[1:] if name.startswith("_") else name) + suffix


def pack(records: Mapping[str, bytes], suffix: str) -> tuple[bytes, bytes]:
    """A tar of the records and its index. The same records give the same bytes."""
    packed, places = io.BytesIO(), []
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for id, data in records.items():
            entry = tarfile.TarInfo(member_name(id, suffix))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            blocks = -(-len(data) // tarfile.BLOCKSIZE)  # after a head of one or more blocks
            places.append((key(id), tar.offset - blocks * tarfile.BLOCKSIZE, len(data)))
    index = io.BytesIO()
    np.save(index, np.array(places, dtype=INDEX))
    return packed.getvalue(), index.getvalue()


def key(id: str) -> bytes:
    """128 bits in place of the id; NumPy drops zeros at the end of a string, so does this."""
    return hashlib.blake2b(id.encode(), digest_size=16).digest().rstrip(b"\0")


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder, without those that lost their tar or their index."""
    return sorted(filter(is_whole, folder.glob("*.tar")))


def is_whole(shard: Path) -> bool:
    """Whether it has both its tar and its index."""
    return shard.is_file() and index_path(shard).is_file()


def index_path(shard: Path) -> Path:
    """Where the index of a tar is."""
    return shard.with_suffix(".npy")


def read_index(shard: Path) -> NDArray[Any]:
    """Read it.

    Raises:
        WSSSError: If it is missing or damaged.
    """
    path = index_path(shard)
    try:
        table: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WSSSError(
            f"{path} cannot be read ({error}); remove the artefact's folder and run again"
        ) from error
    return table
