"""A plain folder of photographs with a table of image-level labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wsss_affinity.data.images import IMAGE_SUFFIXES
from wsss_affinity.data.labels import read_label_file, write_template
from wsss_affinity.data.source import (
    Problem,
    Sample,
    Source,
    check_unique,
    class_names,
    label_indices,
    plain_mask_values,
)
from wsss_affinity.errors import WSSSError


def list_images(root: Path, apart: Sequence[Path] = ()) -> list[str]:
    """Names of all images below a folder, relative to it, sorted.

    Args:
        root: The folder.
        apart: Folders, resolved, whose images are left out.

    Raises:
        WSSSError: If the folder does not exist or holds none, not even one that is left out.
    """
    if not root.is_dir():
        raise WSSSError(f"folder {root} does not exist; expected a folder of photographs")
    names: list[str] = []
    left_out = False
    # Paths for folders and links alone: with a million images, looking each up takes minutes
    for where, inside, files in os.walk(root):
        folder = Path(where)
        if _within(folder, apart):
            left_out = True
            inside.clear()
            continue
        start = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        for name in files:
            if not name.lower().endswith(IMAGE_SUFFIXES) or name.startswith("."):
                continue
            path = os.path.join(where, name)
            if apart and os.path.islink(path) and _within(Path(path), apart):
                left_out = True
                continue
            names.append(start + name)
    names.sort()
    if not names and not left_out:
        raise WSSSError(f"folder {root} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return names


def folder_source(
    root: str | Path,
    *,
    labels: str | Path = "labels.csv",
    classes: Sequence[str] | None = None,
    masks: str | Path | None = None,
    val_root: str | Path | None = None,
    val_masks: str | Path | None = None,
    ignore: str | Path | None = None,
) -> Source:
    """List a folder of photographs.

    Args:
        root: Folder of the images, searched with its subfolders.
        labels: CSV or JSON of image-level labels, see
            :func:`~wsss_affinity.data.labels.read_label_file`; a relative path starts at ``root``.
            Images are named as there, with or without suffix.
        classes: Names of the classes in the order of the mask values; None takes the names that
            occur, sorted.
        masks: Folder of ground-truth PNGs for scoring, named like the images; 0 is background,
            1… the classes, 255 void. Images without one are not scored.
        val_root: Folder of unseen photographs for scoring the segmentation network.
        val_masks: Their masks. This and the two above may lie below ``root``; what they hold is
            not trained on.
        ignore: A folder whose images do not belong to the data set, wherever it lies.

    Raises:
        WSSSError: If a folder or file is missing, two images share a name, or a label is not
            among ``classes``.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise WSSSError(f"folder {root} does not exist; set data.root to a folder of photographs")
    label_path = root / Path(labels).expanduser()
    table = read_label_file(label_path)
    mask_root = _folder(masks, "data.masks")
    val_mask_root = _folder(val_masks, "data.val_masks")
    apart = [Path(p).expanduser().resolve() for p in (masks, val_root, val_masks, ignore) if p]
    names = list_images(root, apart)
    if classes is None:
        classes = sorted({label for row in table.values() for label in row})
    if not classes:
        raise WSSSError(f"label file {label_path} names no label; fill in its column `labels`")
    classes = class_names(classes)

    stems = [name.rsplit(".", 1)[0] for name in names]
    check_unique(stems, f"{root} (two images whose names differ in the suffix alone)")
    problems: list[Problem] = []
    samples = []
    for name, stem in zip(names, stems, strict=True):
        key = name if name in table else stem
        if key not in table:
            problems.append(
                Problem(stem, f"image {root / name} has no row in {label_path}; add one")
            )
            continue
        where = f"{label_path}, row {key}"
        indices = label_indices(table.pop(key), classes, classes, where)
        samples.append(Sample(stem, root / name, indices, _mask(mask_root, stem)))
    problems += [
        Problem(key, f"{label_path} has a row {key!r} but {root} has no such image; remove it")
        for key in table
    ]
    val = []
    names_of_splits = {"train": "train", "score": "train"}
    if val_root is not None:
        val_root = Path(val_root).expanduser()
        names_of_splits["val"] = "val"
        for name in list_images(val_root):
            stem = name.rsplit(".", 1)[0]
            val.append(Sample(stem, val_root / name, (), _mask(val_mask_root, stem)))
    return Source(
        classes=classes,
        train=tuple(samples),
        score=tuple(s for s in samples if s.mask is not None),
        val=tuple(s for s in val if s.mask is not None),
        mask_values=plain_mask_values(len(classes)),
        problems=tuple(problems),
        split_names=names_of_splits,
    )


def _folder(path: str | Path | None, key: str) -> Path | None:
    if path is None:
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise WSSSError(f"folder {path} does not exist; set {key} to a folder of masks, or to null")
    return folder


def _within(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def _mask(folder: Path | None, stem: str) -> Path | None:
    path = None if folder is None else folder / f"{stem}.png"
    return path if path is not None and path.is_file() else None


def write_label_template(root: str | Path, labels: str | Path = "labels.csv") -> Path:
    """Write a CSV to fill in: a line for each image of the folder.

    Returns:
        Its path.

    Raises:
        WSSSError: If the folder holds no images, the file exists already, or is to be a JSON.
    """
    root = Path(root).expanduser()
    path = root / Path(labels).expanduser()
    if path.suffix.lower() == ".json":
        raise WSSSError(f"a template is a CSV, but the label file is {path}; set data.labels")
    write_template(path, list_images(root))
    return path
