"""Files that are either whole or not there, and arrays without pickle."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.errors import WriteError, WSSSError

_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_error(path: Path, error: OSError) -> WriteError:
    """Say why ``path`` could not be written, and what to do."""
    if error.errno in _NO_SPACE:
        reason, advice = "the disk is full", "free some space"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason, advice = "it is read-only", "choose a writable output_dir"
    else:
        reason, advice = error.strerror or type(error).__name__, "mend that"
    return WriteError(
        f"cannot write {path}: {reason}; {advice} and run the same command again, "
        "finished work is kept"
    )


def make_directory(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        WSSSError: If that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def write_bytes(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file under a temporary name beside it, then rename it into place.

    Args:
        path: The file.
        data: What it holds.
        sync: Whether it must be on the disk before it has its name, so that a power failure
            leaves no empty file; not worth the wait for each of many small ones.

    Raises:
        WSSSError: If the disk is full, read-only or otherwise unwilling; no partial file is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            if sync:
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(path, error) from error


def encode_arrays(arrays: Mapping[str, NDArray[Any]], *, compress: bool = False) -> bytes:
    """Named arrays as an ``.npz`` file."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def decode_arrays(data: bytes, name: object) -> dict[str, NDArray[Any]]:
    """Read what :func:`encode_arrays` made; pickled objects are refused.

    Args:
        data: The file.
        name: Of it, for messages.

    Raises:
        WSSSError: If it is damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile raises its own kinds
        raise WSSSError(
            f"{name} is damaged ({error}); remove the artefact's folder and run again"
        ) from error
