"""Files of MXNet parameters (``.params``), read without MXNet."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from wsss_affinity.errors import WSSSError

_LIST_MAGIC = 0x112
_MAGIC_V1 = 0xF993FAC8
_MAGIC_V2 = 0xF993FAC9
#: By MXNet's type flag, little-endian as on disk
_DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
#: More than any array has; what claims more is damage
_MAX_NDIM = 32


def read_params(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.params`` file as ``mxnet.nd.save`` writes it: named dense arrays.

    The layout is: list magic and a reserved word, the number of arrays, the arrays, the number of
    names, the names; numbers are little-endian, 64 bits. An array is a magic number (version 1, 2,
    or, in the oldest files, none), its shape, its device, its type and its raw values.

    Returns:
        Tensors by the names in the file, such as ``"arg:conv1a_weight"``.

    Raises:
        WSSSError: If the file is missing, cut off, or anything but such a file.

    Example:
        >>> read_params("missing.params")
        Traceback (most recent call last):
        wsss_affinity.errors.WSSSError: weights file missing.params cannot be read ...
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Reader(file, path).named_arrays()
    except OSError as error:
        raise WSSSError(
            f"weights file {path} cannot be read ({error.strerror}); give the path of a .params "
            "file of MXNet"
        ) from error


class _Reader:
    """Reads no more than the file holds, whatever sizes it claims."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.left = path.stat().st_size

    def named_arrays(self) -> dict[str, Tensor]:
        if self.left < 16 or self.numbers("<QQ")[0] != _LIST_MAGIC:
            raise self.error("it is no .params file of MXNet")
        # the claimed counts are not trusted: reading stops with an error where the file ends
        arrays = [self.array() for _ in range(self.numbers("<Q")[0])]
        names = [self.name() for _ in range(self.numbers("<Q")[0])]
        if len(names) != len(arrays):
            raise self.error(f"it holds {len(arrays)} arrays and {len(names)} names")
        return dict(zip(names, arrays, strict=True))

    def array(self) -> Tensor:
        (magic,) = self.numbers("<I")
        kind = "q"
        if magic == _MAGIC_V2:
            storage, ndim = self.numbers("<iI")
            if storage != 0:
                raise self.error("it holds a sparse array, only dense ones can be read")
        elif magic == _MAGIC_V1:
            (ndim,) = self.numbers("<I")
        else:
            kind, ndim = "I", magic  # the oldest files begin with the number of dimensions
        if ndim > _MAX_NDIM:
            raise self.error(f"an array in it has {ndim} dimensions, or is of another version")
        if ndim == 0:
            return torch.empty(0)  # an array without shape has nothing more
        shape = self.numbers(f"<{ndim}{kind}")
        _, _, flag = self.numbers("<iii")  # the device it was saved from, and the type
        if not 0 <= flag < len(_DTYPES) or min(shape) < 0:
            raise self.error(f"an array in it claims shape {shape} and type {flag}")
        dtype = np.dtype(_DTYPES[flag])
        values = np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype)
        return torch.from_numpy(values.reshape(shape).astype(dtype.newbyteorder("=")))

    def name(self) -> str:
        try:
            return self.take(self.numbers("<Q")[0]).decode()
        except UnicodeDecodeError:
            raise self.error("a name in it is no text") from None

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.error(f"it ends {size - self.left} bytes too early")
        self.left -= size
        return self.file.read(size)

    def error(self, reason: str) -> WSSSError:
        return WSSSError(
            f"weights file {self.path} cannot be read: {reason}; download or convert it again"
        )
