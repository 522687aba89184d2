"""PASCAL VOC's devkit layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsss_affinity.data.labels import read_label_file, read_voc_objects
from wsss_affinity.data.source import (
    Problem,
    Sample,
    Source,
    check_unique,
    class_names,
    label_indices,
)
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.losses.affinity import UNSURE

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc_source(
    root: str | Path,
    *,
    train_split: str,
    score_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
    classes: Sequence[str] | None = None,
    all_classes: Sequence[str] = VOC_CLASSES,
    labels_csv: str | Path | None = None,
    mask_folder: str | Path = "SegmentationClass",
) -> Source:
    """List a data set in VOC's layout.

    ``ImageSets/Segmentation/<split>.txt`` names the images of a split, ``JPEGImages/<id>.jpg`` are
    the photographs, ``Annotations/<id>.xml`` hold the objects, and ``<mask_folder>/<id>.png`` the
    masks, whose values follow ``all_classes``. Every object of an annotation counts for the
    image-level labels, those marked ``difficult`` too, as in the published code. A split may also
    be the absolute path of a list that lies elsewhere.

    Args:
        root: Folder that holds these.
        train_split: Split to train on and to make pseudo-masks for.
        score_split: Split within ``train_split`` to score them on; None for all of it.
        val_split: Split to score the segmentation network on.
        test_split: Split whose predictions are handed in to a server; photographs are enough.
        classes: Restrict to these classes; pixels of the others become background.
        all_classes: The classes of the mask files, value 1 first.
        labels_csv: Read image-level labels from this file instead of the annotations; a relative
            path starts at ``root``.
        mask_folder: Folder of the masks; a relative path starts at ``root``.

    Raises:
        WSSSError: If a list is missing, empty or names an id twice, a class is unknown, or a
            photograph of the test split is missing.
    """
    root = Path(root).expanduser()
    classes = class_names(all_classes if classes is None else classes)
    for name in classes:
        if name not in all_classes:
            raise WSSSError(
                f"data.classes: {name!r} is no class; {did_you_mean(name, all_classes)}"
            )
    table = None
    if labels_csv is not None:
        path = root / Path(labels_csv).expanduser()
        table = {n.removesuffix(".jpg"): labels for n, labels in read_label_file(path).items()}

    masks = root / Path(mask_folder).expanduser()
    problems: list[Problem] = []
    cache: dict[str, Sample | None] = {}

    def sample(name: str) -> Sample | None:
        if name not in cache:
            cache[name] = _sample(root, name, classes, all_classes, table, masks, problems)
        return cache[name]

    def split(name: str | None) -> tuple[Sample, ...]:
        listed = [] if name is None else _read_split(root, name)
        return tuple(s for s in map(sample, listed) if s is not None)

    train = split(train_split)
    score = split(score_split or train_split)
    outside = {s.id for s in score} - {s.id for s in train}
    if outside:
        raise WSSSError(
            f"split {score_split!r} holds {len(outside)} ids that {train_split!r} lacks "
            f"({min(outside)}, …); score_split must lie within train_split, since pseudo-masks "
            "are made for the latter only"
        )
    splits = {
        "train": train_split,
        "score": score_split or train_split,
        "val": val_split,
        "test": test_split,
    }
    position = {name: index for index, name in enumerate(classes, start=1)}
    values = [0, *(position.get(name, 0) for name in all_classes)]
    values += [-1] * (255 - len(values)) + [UNSURE]
    return Source(
        classes=classes,
        train=train,
        score=tuple(s for s in score if s.mask is not None),
        val=tuple(s for s in split(val_split) if s.mask is not None),
        mask_values=tuple(values),
        problems=tuple(problems),
        test=() if test_split is None else _test_samples(root, test_split),
        split_names={role: Path(name).stem for role, name in splits.items() if name},
    )


def _test_samples(root: Path, split: str) -> tuple[Sample, ...]:
    found = [Sample(n, root / "JPEGImages" / f"{n}.jpg", ()) for n in _read_split(root, split)]
    # nothing opens them before the network is trained
    missing = [sample.image for sample in found if not sample.image.is_file()]
    if missing:
        raise WSSSError(
            f"{len(missing)} photographs of split {split!r} are missing ({missing[0]}, …); unpack "
            "the archive of the test images there, or set data.test_split=null"
        )
    return tuple(found)


def _read_split(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Segmentation" / f"{split.removesuffix('.txt')}.txt"
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        there = sorted(p.stem for p in path.parent.glob("*.txt"))
        hint = did_you_mean(split, there) if there else f"{path.parent} holds no lists"
        raise WSSSError(
            f"split list {path} does not exist; {hint} (is data.root the folder that holds "
            "JPEGImages?)"
        ) from None
    # the lists of other VOC tasks have a second column
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise WSSSError(f"split list {path} is empty; expected an image id on each line")
    check_unique(names, str(path))
    return names


def _sample(
    root: Path,
    name: str,
    classes: Sequence[str],
    all_classes: Sequence[str],
    table: dict[str, list[str]] | None,
    masks: Path,
    problems: list[Problem],
) -> Sample | None:
    if table is None:
        annotation = root / "Annotations" / f"{name}.xml"
        try:
            names = read_voc_objects(annotation)
        except WSSSError as error:
            problems.append(Problem(name, str(error)))
            return None
        where = str(annotation)
    elif name in table:
        names, where = table.pop(name), f"labels of {name}"  # each is asked for once
    else:
        problems.append(Problem(name, f"image {name} has no row in the label file; add one"))
        return None
    mask = masks / f"{name}.png"
    return Sample(
        id=name,
        image=root / f"JPEGImages/{name}.jpg",  # joined once: there may be a million
        labels=label_indices(names, classes, all_classes, where),
        mask=mask if mask.is_file() else None,
    )
