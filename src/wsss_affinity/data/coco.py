"""COCO, with image-level labels and masks from its instance annotations."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.utils import download_and_extract_archive

from wsss_affinity.data.download import fetch_folder
from wsss_affinity.data.images import save_mask
from wsss_affinity.data.prepare import for_each, origin_key, outdated
from wsss_affinity.data.source import Sample, Source, check_unique, class_names, plain_mask_values
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.files import write_bytes

_URL = "http://images.cocodataset.org"
#: address and MD5 of the archive that holds a folder
_ARCHIVES = {
    "train2014": (f"{_URL}/zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88"),
    "val2014": (f"{_URL}/zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3"),
    "annotations": (
        f"{_URL}/annotations/annotations_trainval2014.zip",
        "0a379cfc70b0e71301e0f377548639bd",
    ),
}


def coco_source(
    root: str | Path,
    *,
    prepared: str | Path,
    download: bool = False,
    train_split: str = "train2014",
    val_split: str | None = "val2014",
) -> Source:
    """List COCO; its masks are rendered on first use.

    ``<split>/`` holds the photographs of a split, ``annotations/instances_<split>.json`` its
    objects. The classes are the categories in the order of their ids: 1 to 80 in a mask, though
    the ids have gaps. Where objects overlap the smaller one is on top. A crowd region is its
    class, in the mask and among the labels, and lies below all single objects. A photograph
    without objects has no label and is all background.

    Args:
        root: Folder that holds these.
        prepared: Folder for the rendered masks and the list of labels.
        download: Fetch the three archives of COCO 2014 (20 GB) into ``root``, as far as their
            folders are not there.
        train_split: Split to train on and to make pseudo-masks for.
        val_split: Split to score the segmentation network on.

    Raises:
        WSSSError: If pycocotools is not installed, a folder or file is missing, or an annotation
            is not as expected.
    """
    root, prepared = Path(root).expanduser(), Path(prepared).expanduser()
    splits = [train_split] if val_split is None else [train_split, val_split]
    for name in [*splits, "annotations"]:
        if download:
            _download(root / name)
        if not (root / name).is_dir():
            archive = _ARCHIVES[name][0].rsplit("/", 1)[-1] if name in _ARCHIVES else "its archive"
            raise WSSSError(
                f"folder {root / name} does not exist; unpack {archive} in {root}, or set "
                "data.download=true"
            )
    folders = {split: prepared / _key(root, split) for split in splits}
    indices = {split: _prepare(root, split, folders[split]) for split in splits}
    for split, index in indices.items():
        stems = [Path(name).stem for name in index["images"]]
        check_unique(stems, f"{_annotations(root, split)} (masks are named by the file's stem)")
    classes = class_names(indices[train_split]["classes"])
    for split in splits:
        if tuple(indices[split]["classes"]) != classes:
            raise WSSSError(
                f"the categories of {split} are not those of {train_split}; check "
                f"{root / 'annotations'}"
            )
    samples = {
        split: tuple(
            Sample(
                id=Path(name).stem,
                image=root / split / name,
                labels=tuple(labels),
                mask=_mask_path(folders[split] / split, name),
            )
            for name, labels in index["images"].items()
        )
        for split, index in indices.items()
    }
    names = {"train": train_split, "score": train_split}
    return Source(
        classes=classes,
        train=samples[train_split],
        score=samples[train_split],
        val=() if val_split is None else samples[val_split],
        mask_values=plain_mask_values(len(classes)),
        split_names=names if val_split is None else names | {"val": val_split},
    )


def _download(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.name not in _ARCHIVES:
        raise WSSSError(
            f"{folder.name} cannot be downloaded; {did_you_mean(folder.name, _ARCHIVES)}"
        )
    url, md5 = _ARCHIVES[folder.name]

    def fetch(partial: Path) -> Path:
        download_and_extract_archive(url, str(partial), md5=md5)
        return partial / folder.name

    fetch_folder(folder, fetch, url)


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _key(root: Path, split: str) -> str:
    annotations = _annotations(root, split)
    if not annotations.is_file():
        raise WSSSError(
            f"annotations {annotations} do not exist; unpack them there, or check "
            "data.train_split and data.val_split"
        )
    return origin_key(annotations)


def _prepare(root: Path, split: str, prepared: Path) -> dict[str, Any]:
    """Render the masks of a split that are not there; classes, and labels by file name.

    These two are kept as JSON, so that a later run need not read all annotations again.
    """
    annotations = _annotations(root, split)
    listing = prepared / f"{split}.json"
    known = None if outdated(listing, annotations) else _read_listing(listing)
    if known is not None and not _unmade(known["images"], annotations, prepared / split):
        return known
    coco = _load(annotations)
    values = {category: value for value, category in enumerate(sorted(coco.cats), start=1)}
    images = {image["file_name"]: image for image in coco.imgs.values()}

    def render(name: str) -> None:
        mask = render_mask(coco, images[name], values)
        save_mask(_mask_path(prepared / split, name), mask)

    unmade = _unmade(images, annotations, prepared / split)
    for name, result in for_each(f"masks of {split}", unmade, render):
        if isinstance(result, WSSSError):
            raise WSSSError(f"{annotations}, image {name}: {result}") from result
    labels = {
        name: sorted({values[a["category_id"]] - 1 for a in coco.imgToAnns.get(image["id"], [])})
        for name, image in sorted(images.items())
    }
    classes = [coco.cats[category]["name"] for category in values]
    write_bytes(listing, json.dumps({"classes": classes, "images": labels}).encode())
    return {"classes": classes, "images": labels}


def _load(annotations: Path) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise WSSSError(
            "reading COCO needs pycocotools; pip install 'wsss-affinity[coco]'"
        ) from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco = COCO(annotations)
    except Exception as error:  # whatever a JSON of another form leads to
        raise WSSSError(
            f"annotations {annotations} cannot be read ({error!r}); unpack the archive again"
        ) from error
    wanted = {"id", "file_name", "height", "width"}
    bad = next((image for image in coco.imgs.values() if not wanted <= image.keys()), None)
    if bad is not None:
        raise WSSSError(
            f"annotations {annotations}: image {bad.get('id')} lacks one of "
            f"{', '.join(sorted(wanted))}; unpack the archive again"
        )
    if not coco.imgs or not coco.cats:
        raise WSSSError(
            f"annotations {annotations} hold no images or no categories; expected COCO's "
            "instances_<split>.json"
        )
    return coco


def render_mask(coco: Any, image: dict[str, Any], values: dict[int, int]) -> NDArray[np.uint8]:
    """Draw the objects of an image, crowds first and then from the largest to the smallest.

    Args:
        coco: Annotations, a ``pycocotools.coco.COCO``.
        image: An entry of its ``imgs``.
        values: Mask value by category id.

    Returns:
        Mask ``(H, W)``, 0 where there is no object.

    Raises:
        WSSSError: If an object cannot be drawn.
    """
    mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    objects = coco.imgToAnns.get(image["id"], [])
    for entry in sorted(objects, key=lambda e: (not e.get("iscrowd", 0), -e.get("area", 0))):
        try:
            mask[coco.annToMask(entry) > 0] = values[entry["category_id"]]
        except Exception as error:  # malformed polygons and run lengths
            raise WSSSError(
                f"annotation {entry['id']} cannot be drawn ({error!r}); mend or remove it"
            ) from error
    return mask


def _mask_path(folder: Path, image: str) -> Path:
    return folder / f"{Path(image).stem}.png"


def _unmade(images: Iterable[str], annotations: Path, folder: Path) -> list[str]:
    return [name for name in images if outdated(_mask_path(folder, name), annotations)]


def _read_listing(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(content, dict) and content.keys() == {"classes", "images"}
    return content if whole else None
