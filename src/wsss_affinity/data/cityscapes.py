"""Cityscapes, nineteen classes of driving scenes."""

from __future__ import annotations

from pathlib import Path

from wsss_affinity.data.mask_labels import labels_from_masks
from wsss_affinity.data.source import Problem, Sample, Source, class_mask_values
from wsss_affinity.errors import WSSSError, did_you_mean

#: the classes that are scored, in the order of their train ids, with their values in label files
CITYSCAPES_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
CITYSCAPES_CLASSES = tuple(CITYSCAPES_IDS)
_NUM_IDS = 34  # 0 to 33; licence plates, -1, are not drawn into the files
_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def cityscapes_source(
    root: str | Path,
    *,
    prepared: str | Path,
    train_split: str = "train",
    val_split: str | None = "val",
) -> Source:
    """List Cityscapes: 2975 images of ``train``, 500 of ``val``, 1525 of ``test``.

    ``leftImg8bit/<split>/<city>/<name>_leftImg8bit.png`` are the photographs and
    ``gtFine/<split>/<city>/<name>_gtFine_labelIds.png`` their masks; a sample's id is
    ``<city>/<name>``. There is no background: of the 34 values in the masks 19 are classes, the
    others are void. The image-level labels are the classes that cover a pixel of the mask.

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine``.
        prepared: Folder for the list of labels derived from the masks.
        train_split: Split to train on and to make pseudo-masks for.
        val_split: Split to score the segmentation network on.

    Raises:
        WSSSError: If a folder is missing or holds no photographs.
    """
    root, prepared = Path(root).expanduser(), Path(prepared).expanduser()
    values = class_mask_values(list(CITYSCAPES_IDS.values()), void=range(_NUM_IDS))
    problems: list[Problem] = []

    def labelled(split: str | None) -> tuple[Sample, ...]:
        if split is None:
            return ()
        samples = _samples(root, split)
        if not (root / "gtFine" / split).is_dir():
            raise WSSSError(
                f"folder {root / 'gtFine' / split} does not exist; unpack Cityscapes' "
                f"gtFine_trainvaltest.zip in {root}"
            )
        samples, bad = labels_from_masks(samples, values, prepared / f"labels_{split}.json")
        problems.extend(bad)
        return samples

    train = labelled(train_split)
    names = {"train": train_split, "score": train_split, "val": val_split}
    return Source(
        classes=CITYSCAPES_CLASSES,
        train=train,
        score=train,
        val=labelled(val_split),
        mask_values=values,
        problems=tuple(problems),
        background=False,
        labels_from_masks=True,
        split_names={role: name for role, name in names.items() if name is not None},
    )


def _samples(root: Path, split: str) -> tuple[Sample, ...]:
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        there = {path.parents[1].name for path in folder.parent.glob(f"*/*/*{_IMAGE}")}
        hint = did_you_mean(split, there) if there else "set data.root to the folder above it"
        raise WSSSError(
            f"folder {folder} does not exist; {hint} (it is unpacked from Cityscapes' "
            "leftImg8bit_trainvaltest.zip)"
        )
    samples = []
    for image in sorted(folder.glob(f"*/*{_IMAGE}")):
        city, name = image.parent.name, image.name.removesuffix(_IMAGE)
        mask = root / "gtFine" / split / city / f"{name}{_MASK}"
        samples.append(Sample(f"{city}/{name}", image, (), mask))
    if not samples:
        raise WSSSError(f"folder {folder} holds no images <city>/<name>{_IMAGE}; unpack it again")
    return tuple(samples)
