"""What every data set is to the pipeline: classes, and samples in three roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.data.images import load_mask
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.losses.affinity import UNSURE


@dataclass(frozen=True, slots=True)
class Sample:
    """One photograph.

    Attributes:
        id: Unique name without suffix; names the files made for it. May hold ``/``.
        image: Image file.
        labels: Image-level labels, 0-based and sorted.
        mask: Ground-truth mask for scoring, where there is one.
    """

    id: str
    image: Path
    labels: tuple[int, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class Problem:
    """A photograph that cannot be used, and why."""

    id: str
    message: str


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        classes: Names of the object classes, background not among them.
        train: What CAM, labels, walk and segmentation are made from.
        score: Those of ``train`` whose CAMs and pseudo-masks are scored.
        val: Unseen photographs on which the segmentation network is scored.
        mask_values: The label of each value in a mask file, 256 entries; -1 is not allowed.
        problems: Photographs left out while listing.
        test: Photographs without masks whose predictions are handed in to a server.
        background: Whether there are pixels of no class. Label 0 occurs nowhere if not.
        labels_from_masks: Whether the image-level labels were read off the masks.
        split_names: What the data set calls ``train``, ``score``, ``val`` and ``test``.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    score: tuple[Sample, ...] = ()
    val: tuple[Sample, ...] = ()
    mask_values: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()
    test: tuple[Sample, ...] = ()
    background: bool = True
    labels_from_masks: bool = False
    split_names: Mapping[str, str] = field(default_factory=dict)

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        """Read the ground truth of a sample as labels: 0 background, 1… classes, 255 void.

        Raises:
            WSSSError: If there is none, it cannot be read, or it holds an unknown value.
        """
        if sample.mask is None:
            raise WSSSError(f"image {sample.id} has no mask")
        values = load_mask(sample.mask)
        labels = np.asarray(self.mask_values, dtype=np.int16)[values]
        if labels.min(initial=0) < 0:
            check_values(np.unique(values).tolist(), self.mask_values, sample.mask, self.background)
        return labels.astype(np.uint8)


def check_values(
    values: Iterable[int], mask_values: Sequence[int], mask: Path, background: bool = True
) -> None:
    """Refuse values that a mask file must not hold.

    Args:
        values: Those of the file.
        mask_values: As in :class:`Source`.
        mask: The file, for the message.
        background: As in :class:`Source`.

    Raises:
        WSSSError: With the wrong values and those that are allowed.
    """
    wrong = [value for value in values if mask_values[value] < 0]
    if not wrong:
        return
    if background:
        top = max(v for v, label in enumerate(mask_values[:UNSURE]) if label >= 0)
        allowed, mend = f"0 (background), 1 to {top} (classes) or 255 (void)", " or data.classes"
    else:
        void = [v for v, label in enumerate(mask_values) if label == UNSURE]
        classes = [v for v, label in enumerate(mask_values) if 0 <= label < UNSURE]
        allowed, mend = f"class indices ({_ranges(classes)}) or void ({_ranges(void)})", ""
    raise WSSSError(
        f"mask {mask} holds the values {wrong}; expected {allowed}; mend the mask{mend}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers in short: ``3, 7 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Check a list of object classes.

    Raises:
        WSSSError: If it is no list, is empty, names one twice, or is longer than masks can tell.
    """
    if isinstance(classes, str):
        raise WSSSError(f"data.classes is {classes!r}; expected a list, e.g. [{classes}]")
    names = tuple(str(name) for name in classes)
    check_unique(names, "data.classes")
    if not 0 < len(names) < UNSURE:
        raise WSSSError(f"there are {len(names)} classes; a mask can hold 1 to {UNSURE - 1}")
    return names


def plain_mask_values(num_classes: int) -> tuple[int, ...]:
    """Mask values that are the labels already: 0 … ``num_classes``, and 255."""
    return (*range(num_classes + 1), *([-1] * (254 - num_classes)), UNSURE)


def class_mask_values(indices: Sequence[int], void: Iterable[int] = ()) -> tuple[int, ...]:
    """Mask values of a data set without background.

    Args:
        indices: The value that each class has in the mask files, first class first.
        void: Values of pixels that are not scored; 255 always is one.
    """
    values = [-1] * UNSURE + [UNSURE]
    for value in void:
        values[value] = UNSURE
    for label, value in enumerate(indices, start=1):
        values[value] = label
    return tuple(values)


def label_indices(
    names: Iterable[str], classes: Sequence[str], known: Sequence[str], where: str
) -> tuple[int, ...]:
    """Turn label names into sorted indices of ``classes``; other ``known`` names are dropped.

    Raises:
        WSSSError: If a name is not known; the message says where it stands and names near ones.
    """
    found = set()
    for name in names:
        if name not in known:
            raise WSSSError(f"{where}: label {name!r} is not a class; {did_you_mean(name, known)}")
        if name in classes:
            found.add(classes.index(name))
    return tuple(sorted(found))


def check_unique(ids: Sequence[str], where: str) -> None:
    """Refuse a list that names an id twice.

    Raises:
        WSSSError: With the first such id.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise WSSSError(f"{where}: id {name!r} is listed twice; remove one of the two")
        seen.add(name)
