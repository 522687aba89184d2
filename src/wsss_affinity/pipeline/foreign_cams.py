"""Ready-made activation maps, made by anyone: ``cams_from=<folder>``."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from wsss_affinity.data.images import load_image
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.artifact import file_fingerprint
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.mapping import map_images
from wsss_affinity.pipeline.maps import made, prior
from wsss_affinity.pipeline.scores import encode_scores

_EXPECTED = "<id>.npz, <id>.npy or <id>/<class>.png"
_SLACK = 1e-3  # of the range of scores: files keep rounded numbers


def take_cams(context: Context, directory: Path) -> dict[str, Any]:
    """Take over the maps of ``cams_from`` in place of those that ``make_cam`` makes.

    They are kept at their own size, in the form that the stages after this one read, and count for
    the classes of the image-level labels alone.
    """
    folder, section = Path(str(context.cfg.cams_from)), context.cfg.cam
    load = LoadCams(folder, context.source.classes, context.max_side)

    def work(sample: Sample, loaded: tuple[Tensor, tuple[int, int]]) -> dict[str, bytes]:
        scores, size = loaded
        present = torch.tensor(sample.labels, dtype=torch.int64)
        scores = scores * prior(context, present, (scores.shape[1], scores.shape[2]))
        return {"cams": encode_scores(present, scores, size, dtype=section.store_dtype)}

    problems = map_images(
        "make_cam",
        context.source.train,
        load,
        work,
        output={"cams": context.writer(directory, ".npz")},
        num_workers=context.num_workers,
        skip=context.skip,
    )
    return {**made(context, problems), "cams_from": str(folder)}


def cams_fingerprint(cfg: DictConfig, source: Source) -> list[str]:
    """What the maps of the training images hold, but not where they lie.

    Raises:
        WSSSError: If an image that has labels has no maps, unless such images are to be skipped.
    """
    folder = Path(str(cfg.cams_from))
    if not folder.is_dir():
        raise WSSSError(f"cams_from={folder} is no folder; give the one that holds the maps")
    labelled = [sample for sample in source.train if sample.labels]
    found = {sample.id: _files(folder, sample.id) for sample in labelled}
    absent = [id for id, files in found.items() if not files]
    if absent and (cfg.data.on_error == "stop" or len(absent) == len(labelled)):
        raise WSSSError(
            f"cams_from={folder}: {len(absent)} of {len(labelled)} labelled training images have "
            f"no maps there, e.g. {absent[0]}; expected {_EXPECTED}; add them, or leave such "
            "images out with data.on_error=skip"
        )
    return [f"{id}|{path.name}|{_digest(path)}" for id, files in found.items() for path in files]


@dataclass(frozen=True)
class LoadCams:
    """Loads the maps of an image's own classes.

    Attributes:
        folder: Where they are.
        classes: Names of the object classes.
        max_side: Longer images are worked on at this size.
    """

    folder: Path
    classes: tuple[str, ...]
    max_side: int | None

    def __call__(self, sample: Sample) -> tuple[Tensor, tuple[int, int]]:
        """Maps ``(n, h, w)`` in the order of the sample's labels, and size ``(H, W)`` of the image.

        Raises:
            WSSSError: If there are none, they cannot be read, or they do not fit.
        """
        image = load_image(sample.image, self.max_side)
        size = (image.height, image.width)
        if not sample.labels:
            return torch.zeros(0, 1, 1), size
        files = _files(self.folder, sample.id)
        if not files:
            raise WSSSError(f"image {sample.id} has no maps in {self.folder}; expected {_EXPECTED}")
        where = files[0] if files[0].suffix != ".png" else files[0].parent
        maps = read_cams(where, self.classes)
        absent = [self.classes[label] for label in sample.labels if label not in maps]
        if absent:
            held = ", ".join(self.classes[label] for label in sorted(maps)) or "none"
            raise WSSSError(
                f"{where} has no map of {absent[0]}, which image {sample.id} is labelled with; it "
                f"holds {held}; keys are class names, or indices from 0 without the background"
            )
        scores = [maps[label] for label in sample.labels]
        shapes = {score.shape for score in scores}
        if len(shapes) > 1:
            raise WSSSError(
                f"{where} holds maps of the sizes {sorted(shapes)}; give them all one size"
            )
        stack = np.stack(scores).astype(np.float32)
        _check_values(where, stack)
        height, width = stack.shape[1:]
        if height != width and (height, width) == size[::-1]:
            raise WSSSError(
                f"{where} holds maps of {height}×{width} (rows × columns) for an image of "
                f"{size[0]}×{size[1]}; transpose them"
            )
        return torch.from_numpy(stack.clip(0, 1)), size


def read_cams(path: Path, classes: tuple[str, ...]) -> dict[int, NDArray[Any]]:
    """Read maps ``(h, w)`` by 0-based class.

    Args:
        path: One of

            * an ``.npz`` with a map under the name or the 0-based index of each class;
            * an ``.npz`` with ``classes`` ``(n,)``, 0-based, and ``scores`` ``(n, h, w)``, as
              ``make_cam`` writes them;
            * an ``.npy`` array ``(C, h, w)`` with a map for every class;
            * a folder with ``<class>.png``, by name or index, of 8 bits (255 is 1) or 16 (65535 is
              1), greyscale or with a palette whose indices count.
        classes: Names of the object classes.

    Raises:
        WSSSError: If it cannot be read, is pickled, or a name is no class.
    """
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        return _by_class(path, classes, [(file.stem, _read_png(file)) for file in files])
    arrays = _read_arrays(path)
    if isinstance(arrays, np.ndarray):
        if arrays.ndim != 3 or len(arrays) != len(classes):
            raise WSSSError(
                f"{path} has shape {arrays.shape}; expected a map for each of the {len(classes)} "
                f"classes, ({len(classes)}, h, w), the background not among them"
            )
        return _by_class(path, classes, [(str(k), score) for k, score in enumerate(arrays)])
    if {"classes", "scores"} <= arrays.keys():
        labels, scores = np.asarray(arrays["classes"]), np.asarray(arrays["scores"])
        if labels.ndim != 1 or scores.ndim != 3 or len(labels) != len(scores):
            raise WSSSError(
                f"{path} holds classes of shape {labels.shape} and scores of shape "
                f"{scores.shape}; expected (n,) and (n, h, w), the background not among them"
            )
        names = [str(label) for label in labels.tolist()]
        return _by_class(path, classes, list(zip(names, scores, strict=True)))
    return _by_class(path, classes, [(k, np.asarray(array)) for k, array in arrays.items()])


def _by_class(
    path: Path, classes: tuple[str, ...], named: list[tuple[str, NDArray[Any]]]
) -> dict[int, NDArray[Any]]:
    maps: dict[int, NDArray[Any]] = {}
    for name, array in named:
        label = _label(name, classes, path)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
            raise WSSSError(
                f"{path}: {name} has shape {array.shape} and type {array.dtype}; expected a map "
                "(h, w) of real numbers"
            )
        if label in maps:
            raise WSSSError(
                f"{path} holds two maps of {classes[label]}; keep one, by its name or its index"
            )
        maps[label] = array
    return maps


def _files(folder: Path, id: str) -> tuple[Path, ...]:
    for suffix in (".npz", ".npy"):
        file = folder / f"{id}{suffix}"
        if file.is_file():
            return (file,)
    return tuple(sorted((folder / id).glob("*.png")))


def _label(name: str, classes: tuple[str, ...], path: Path) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise WSSSError(
        f"{path}: {name} is no class; expected one of {', '.join(classes)}, or an index from 0 to "
        f"{len(classes) - 1} without the background"
    )


def _read_arrays(path: Path) -> NDArray[Any] | Mapping[str, NDArray[Any]]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return dict(content)
    except Exception as error:  # zipfile raises its own kinds
        if "Object arrays" in str(error):
            raise WSSSError(
                f"{path} is pickled, as PSA and IRN write their maps, and could run anything when "
                "it is read; make plain files of them first with "
                "wsss_affinity.pipeline.pickled_cams.convert_cams(source, target)"
            ) from error
        raise WSSSError(f"{path} cannot be read ({error}); replace it") from error


def _read_png(path: Path) -> NDArray[np.float32]:
    try:
        with Image.open(path) as opened:
            mode, values = opened.mode, np.asarray(opened)
    except Exception as error:
        raise WSSSError(f"{path} cannot be read ({error}); replace it") from error
    if mode not in ("P", "L") and not mode.startswith("I"):
        raise WSSSError(f"{path} has mode {mode}; expected a greyscale or palette PNG")
    return values.astype(np.float32) / np.float32(255 if mode in ("P", "L") else 65535)


def _check_values(where: Path, scores: NDArray[np.float32]) -> None:
    low, high = float(scores.min(initial=0)), float(scores.max(initial=0))
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN too
        raise WSSSError(
            f"{where} holds values from {low:.4g} to {high:.4g}; expected scores from 0 to 1, e.g. "
            "each map without its negative values divided by its maximum"
        )


def _digest(path: Path) -> str:
    stat = path.stat()
    return _content(path, stat.st_size, stat.st_mtime_ns)


@cache
def _content(path: Path, size: int, mtime: int) -> str:
    """What a file holds; an archive has sums of its arrays, so that these need not be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            sums = [(entry.filename, entry.CRC, entry.file_size) for entry in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return file_fingerprint(path)
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]
