"""Maps of PSA and IRN, which are pickled, as plain files for ``cams_from``."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import encode_arrays, write_bytes


def convert_cams(source: str | Path, target: str | Path) -> int:
    """Write each ``<id>.npy`` of PSA or IRN as a plain ``<id>.npz`` with a map for each class.

    PSA pickles ``{class: map}``, IRN ``{"keys": classes, "high_res": maps, …}``, both 0-based and
    without the background. Nothing but arrays, tensors and dictionaries is unpickled, so that a
    file cannot run anything.

    Args:
        source: Folder of the ``.npy`` files.
        target: Folder for the ``.npz`` files; what is there under the same names is replaced.

    Returns:
        How many were written.

    Raises:
        WSSSError: If there is none, or one cannot be read or holds something else.
    """
    files = sorted(Path(source).rglob("*.npy"))
    if not files:
        raise WSSSError(f"{source} holds no .npy file; give the folder of the maps")
    for file in files:
        maps = {str(label): scores for label, scores in _read(file).items()}
        path = Path(target) / file.relative_to(source).with_suffix(".npz")
        write_bytes(path, encode_arrays(maps))
    return len(files)


def _read(path: Path) -> dict[int, NDArray[Any]]:
    try:
        content = _unpickle(path.read_bytes())
        named: Iterable[tuple[Any, Any]] = content.items()
        if "keys" in content:
            named = zip(content["keys"], content["high_res"], strict=True)
        maps: dict[int, NDArray[Any]] = {}
        for label, scores in named:
            array = np.asarray(scores)
            if array.ndim != 2 or array.dtype.kind not in "fiub" or int(label) in maps:
                raise ValueError(
                    f"expected one map (h, w) a class, got for {label} the shape {array.shape} and "
                    f"type {array.dtype}, after {list(maps)}"
                )
            maps[int(label)] = array
        return maps
    except Exception as error:  # a damaged pickle may raise anything
        raise WSSSError(
            f"{path} is no dictionary of maps as PSA or IRN write them ({error}); remove it from "
            "the folder"
        ) from error


def _unpickle(data: bytes) -> dict[Any, Any]:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) == (1, 0):
        np.lib.format.read_array_header_1_0(file)
    else:
        np.lib.format.read_array_header_2_0(file)
    content: dict[Any, Any] = _ArraysOnly(file).load().item()
    return content


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage  # torch's own would unpickle anything
        # the module was renamed in NumPy 2
        known = {
            "numpy": ("ndarray", "dtype"),
            "numpy.core.multiarray": ("_reconstruct", "scalar"),
            "numpy.core.numeric": ("_frombuffer",),
            "torch._utils": ("_rebuild_tensor_v2",),
            "collections": ("OrderedDict",),
            "_codecs": ("encode",),
        }
        if name not in known.get(module.replace("numpy._core", "numpy.core"), ()):
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)
