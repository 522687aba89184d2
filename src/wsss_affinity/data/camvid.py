"""CamVid, eleven classes of driving scenes, in SegNet's layout and in the original one."""

from __future__ import annotations

from pathlib import Path

from wsss_affinity.data.camvid_original import CAMVID_CLASSES, STILLS, VOID, original_samples
from wsss_affinity.data.mask_labels import labels_from_masks
from wsss_affinity.data.prepare import origin_key
from wsss_affinity.data.source import Problem, Sample, Source, check_unique, class_mask_values
from wsss_affinity.errors import WSSSError, did_you_mean


def camvid_source(
    root: str | Path,
    *,
    prepared: str | Path,
    train_split: str = "train",
    val_split: str | None = "val",
) -> Source:
    """List CamVid: 367 images of ``train``, 101 of ``val``, 233 of ``test``.

    SegNet's layout has lists ``<split>.txt`` with an image and its annotation on each line, of
    which the last two parts of the paths count (``/SegNet/CamVid/train/0001TP_006690.png``). The
    original one is recognised by its folder ``701_StillsRaw_full``; beside it are
    ``LabeledApproved_full`` and ``label_colors.txt``.

    There is no background: mask values 0 to 10 are the classes, 11 and 255 are void. The
    image-level labels are the classes that cover a pixel of the mask.

    Args:
        root: Folder of the data set.
        prepared: Folder for what is derived from the masks.
        train_split: Split to train on and to make pseudo-masks for.
        val_split: Split to score the segmentation network on; ``test`` has masks as well.

    Raises:
        WSSSError: If a folder, list or file of the layout is missing or malformed.
    """
    root, prepared = Path(root).expanduser(), Path(prepared).expanduser()
    values = class_mask_values(range(len(CAMVID_CLASSES)), void=[VOID])
    problems: list[Problem] = []

    def listed(split: str | None) -> tuple[Sample, ...]:
        if split is None:
            return ()
        if (root / STILLS).is_dir():
            samples, bad = original_samples(root, split, prepared / origin_key(root))
            problems.extend(bad)
        else:
            samples = _segnet_samples(root, split)
        samples, bad = labels_from_masks(samples, values, prepared / f"labels_{split}.json")
        problems.extend(bad)
        return samples

    train = listed(train_split)
    names = {"train": train_split, "score": train_split}
    return Source(
        classes=CAMVID_CLASSES,
        train=train,
        score=train,
        val=listed(val_split),
        mask_values=values,
        problems=tuple(problems),
        background=False,
        labels_from_masks=True,
        split_names=names if val_split is None else names | {"val": val_split},
    )


def _segnet_samples(root: Path, split: str) -> tuple[Sample, ...]:
    path = root / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        there = sorted(p.stem for p in root.glob("*.txt"))
        hint = did_you_mean(split, there) if there else f"{root} holds no lists"
        raise WSSSError(
            f"split list {path} does not exist; {hint} (data.root is the folder of SegNet's "
            f"train.txt, or of the original {STILLS})"
        ) from None
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2:
            raise WSSSError(
                f"{path}, line {number}: {line!r}; expected the path of an image and that of its "
                "annotation"
            )
        image, mask = (root.joinpath(*Path(part).parts[-2:]) for part in parts)
        samples.append(Sample(image.stem, image, (), mask))
    if not samples:
        raise WSSSError(f"split list {path} is empty; expected two paths on each line")
    check_unique([sample.id for sample in samples], str(path))
    return tuple(samples)
