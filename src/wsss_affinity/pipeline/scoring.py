"""One line of the table of scores, and how it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.data.source import Source
from wsss_affinity.metrics import (
    Tally,
    bootstrap_interval,
    class_iou,
    class_precision,
    class_recall,
    mean_iou,
)


@dataclass(frozen=True)
class Score:
    """A result, with all that is needed to know what it means.

    Shares are rounded to four places; None stands for what is not defined.

    Attributes:
        name: What was scored.
        stage: The stage that made it.
        split: Where: ``"score"`` (training images) or ``"val"`` (unseen ones).
        split_name: What the data set calls that split, where it has a name.
        images: How many.
        miou: Mean IoU over the labels that occur.
        interval: 95 % bootstrap interval of ``miou`` over the images.
        iou: Of each label that occurs, background first.
        precision: Of the same labels; None where a label was never given.
        recall: Of the same labels; None where no pixel has it.
        confusion: Pixels by true label (rows) and given label, in the order background, classes.
        labels_given: Whether image-level labels were used at inference.
        labels_from_masks: Whether the data set's image-level labels were read off its masks.
        threshold: Background threshold, where there is one.
        alpha: Exponent of the background score, where there is one.
        saw_masks: Whether masks chose the threshold, ``alpha`` or the iterations.
        chosen_on: The split whose masks did, by its name or else its role.
        location_prior: Whether ``cam.height_prior`` said where classes lie.
        trained_on_masks: Whether the network learned from masks: an upper bound.
        crf: Whether a dense CRF refined the result.
        crf_iterations: Its iterations.
        coverage: Share of the scored pixels that have a label, where not all have; the others
            count for nothing.
        missing: Images of the split that are not among ``images``, since a stage failed on them.
    """

    name: str
    stage: str
    split: str
    split_name: str | None
    images: int
    miou: float | None
    interval: tuple[float, float] | None
    iou: dict[str, float]
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    confusion: list[list[int]]
    labels_given: bool = True
    labels_from_masks: bool = False
    threshold: float | None = None
    alpha: float | None = None
    saw_masks: bool = False
    chosen_on: str | None = None
    location_prior: bool = False
    trained_on_masks: bool = False
    crf: bool = False
    crf_iterations: int = 0
    coverage: float | None = None
    missing: int = 0


def make_score(
    name: str,
    tally: Tally,
    setting: int = 0,
    *,
    source: Source,
    split: str,
    saw_masks: bool = False,
    crf_iterations: int = 0,
    **detail: Any,
) -> Score:
    """Make a line from what was counted.

    Args:
        name: What was scored.
        tally: Its counts.
        setting: Which of the tally's settings.
        source: The data set.
        split: Role of the split.
        saw_masks: Whether the setting was chosen by these counts.
        crf_iterations: Of the dense CRF, 0 for none.
        detail: Further attributes of :class:`Score`.
    """
    confusion = tally.confusion[setting]
    counts = tally.images(setting)
    interval = bootstrap_interval(counts)
    iou = _by_label(source, class_iou(confusion))
    occurring = {label: value for label, value in iou.items() if value is not None}
    precision, recall = (_by_label(source, m(confusion)) for m in (class_precision, class_recall))
    labelled = int(confusion.sum())
    # the training images go by their own name where no other is given to those scored
    names = source.split_names
    split_name = names.get(split, names.get("train") if split == "score" else None)
    return Score(
        name=name,
        split=split,
        split_name=split_name,
        images=len(counts),
        miou=rounded(mean_iou(confusion)),
        interval=None if interval is None else (round(interval[0], 4), round(interval[1], 4)),
        iou=occurring,
        precision={label: precision[label] for label in occurring},
        recall={label: recall[label] for label in occurring},
        confusion=confusion.tolist(),
        labels_from_masks=source.labels_from_masks,
        saw_masks=saw_masks,
        chosen_on=(split_name or split) if saw_masks else None,
        crf=crf_iterations > 0,
        crf_iterations=crf_iterations,
        coverage=None if labelled == tally.known else round(labelled / tally.known, 4),
        **detail,
    )


def sweep_rows(
    tally: Tally, settings: Iterable[dict[str, Any]], default: int
) -> list[dict[str, Any]]:
    """Table of a sweep: each setting, its mean IoU, and whether it is the one chosen beforehand."""
    pairs = zip(settings, tally.mean_ious(), strict=True)
    return [
        {**setting, "miou": rounded(float(miou)), "default": index == default}
        for index, (setting, miou) in enumerate(pairs)
    ]


def rounded(value: float) -> float | None:
    """A share with four places, None for NaN, which JSON does not know."""
    return None if math.isnan(value) else round(value, 4)


def _by_label(source: Source, values: NDArray[np.float64]) -> dict[str, float | None]:
    labels = ("background", *source.classes)
    return {label: rounded(float(v)) for label, v in zip(labels, values, strict=True)}
