"""Scores of label maps over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from wsss_affinity.losses.affinity import UNSURE

#: images drawn at a time by the bootstrap: some 30 MB
_BLOCK = 1_000_000


def confusion_matrix(
    prediction: NDArray[np.uint8], target: NDArray[np.uint8], num_labels: int
) -> NDArray[np.int64]:
    """Count pixels by (true label, predicted label), void ones (255 in either) left out.

    Args:
        prediction: ``(H, W)``.
        target: ``(H, W)``.
        num_labels: Labels, background included.

    Returns:
        ``(L, L)`` int64, rows are true labels.
    """
    sure = (target != UNSURE) & (prediction != UNSURE)
    matrix = multiclass_confusion_matrix(
        torch.from_numpy(prediction[sure].astype(np.int64)),
        torch.from_numpy(target[sure].astype(np.int64)),
        num_classes=num_labels,
        ignore_index=UNSURE,
        validate_args=False,
    )
    counts: NDArray[np.int64] = matrix.numpy().astype(np.int64)
    return counts


def class_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each label; NaN for labels that occur nowhere."""
    return _iou(class_counts(confusion))


def class_precision(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the pixels given a label that have it; NaN for labels never given."""
    hits, wrong, _ = class_counts(confusion)
    return _ratio(hits, hits + wrong)


def class_recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the pixels of a label that are given it; NaN for labels that no pixel has."""
    hits, _, missed = class_counts(confusion)
    return _ratio(hits, hits + missed)


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean IoU over the labels that occur, NaN if none does.

    Example:
        >>> mean_iou(np.array([[3, 1], [0, 4]]))
        0.775
    """
    return float(_mean_iou(class_counts(confusion)))


def class_counts(confusion: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Pixels hit, wrongly given and missed, of each label.

    Args:
        confusion: ``(..., L, L)``, rows are true labels.

    Returns:
        ``(..., 3, L)``: true positives, false positives, false negatives.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hits, confusion.sum(-2) - hits, confusion.sum(-1) - hits], axis=-2)


def bootstrap_interval(
    counts: NDArray[np.integer[Any]], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean IoU when the images are drawn anew with replacement.

    It tells how far the score hangs on which images were scored; not what another seed of the
    training would give. Each resample's mean is over the labels that occur in it.

    Args:
        counts: ``(N, 3, L)``, :func:`class_counts` of each image.
        resamples: Draws of N images.
        level: Share of the resamples inside.
        seed: Of the draws.

    Returns:
        Lower and upper end, None where there is nothing to score.
    """
    images = len(counts)
    if images == 0 or not counts.any():
        return None
    # as float64 BLAS does the sums, and they are exact below 2^53 pixels
    table = counts.reshape(images, -1).astype(np.float64)
    random = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    block = max(1, _BLOCK // images)
    while (left := resamples - sum(map(len, means))) > 0:
        drawn = [random.integers(images, size=images) for _ in range(min(block, left))]
        times = np.stack([np.bincount(d, minlength=images) for d in drawn]).astype(np.float64)
        means.append(_mean_iou((times @ table).reshape(-1, *counts.shape[1:])))
    low, high = np.nanpercentile(np.concatenate(means), [50 - 50 * level, 50 + 50 * level])
    return float(low), float(high)


@dataclass(frozen=True)
class ImageCounts:
    """Confusion matrices of one image under several settings, over the labels it has to do with.

    Attributes:
        labels: ``(k,)``, sorted.
        confusion: ``(S, k, k)`` int32, one for each setting; rows are true labels.
        known: Pixels whose true label is known.
    """

    labels: NDArray[np.int64]
    confusion: NDArray[np.int32]
    known: int


def count_maps(predictions: Sequence[NDArray[np.uint8]], target: NDArray[np.uint8]) -> ImageCounts:
    """Count the pixels of some label maps ``(H, W)`` of one image."""
    labels, place = _labels_in(target, *predictions)
    truth = place[target]
    matrices = [confusion_matrix(place[p], truth, len(labels)) for p in predictions]
    known = int((target != UNSURE).sum())
    return ImageCounts(labels, np.stack(matrices).astype(np.int32), known)


def count_thresholds(
    score: NDArray[Any],
    best: NDArray[np.uint8],
    target: NDArray[np.uint8],
    thresholds: Sequence[float],
) -> ImageCounts:
    """Count pixels under every background threshold in one pass over the image.

    A pixel takes its best label where that label's score exceeds the threshold, and background
    elsewhere.

    Args:
        score: ``(H, W)`` in [0, 1], the highest class score.
        best: ``(H, W)``, the label that has it.
        target: ``(H, W)`` true labels, 255 void.
        thresholds: Ascending.

    Example:
        >>> score, target = np.array([[0.2, 0.6]]), np.array([[0, 1]], dtype=np.uint8)
        >>> best = np.ones((1, 2), dtype=np.uint8)
        >>> count_thresholds(score, best, target, [0.1, 0.2]).confusion.tolist()
        [[[0, 1], [0, 1]], [[1, 0], [0, 1]]]
    """
    sure = target != UNSURE
    labels, place = _labels_in(np.zeros(1, dtype=np.uint8), target, best)
    k, steps = len(labels), len(thresholds) + 1
    # the number of thresholds that a score exceeds; compared, not multiplied and rounded
    step = np.searchsorted(np.asarray(thresholds, np.float64), score[sure].astype(np.float64))
    row = place[target[sure]].astype(np.int64) * k + place[best[sure]]
    pixels = np.bincount(row * steps + step, minlength=k * k * steps).reshape(k, k, steps)
    exceeding = pixels[..., :0:-1].cumsum(-1)[..., ::-1]
    confusion = np.moveaxis(exceeding, -1, 0).copy()
    confusion[..., 0] += pixels.sum((1, 2)) - exceeding.sum(1).T
    return ImageCounts(labels, confusion.astype(np.int32), int(sure.sum()))


def _labels_in(*maps: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Labels that occur in some maps, and a table from a label to its place among them."""
    seen = sum(np.bincount(m.ravel(), minlength=UNSURE + 1) for m in maps)
    labels = np.flatnonzero(np.asarray(seen)[:UNSURE])
    place = np.full(UNSURE + 1, UNSURE, dtype=np.uint8)
    place[labels] = np.arange(len(labels))
    return labels, place


class Tally:
    """Sums the counts of images, and keeps of each what :func:`bootstrap_interval` needs.

    Args:
        num_labels: Labels, background included.
        num_settings: Of each image's counts.
    """

    def __init__(self, num_labels: int, num_settings: int = 1) -> None:
        #: ``(S, L, L)``
        self.confusion = np.zeros((num_settings, num_labels, num_labels), dtype=np.int64)
        self.known = 0
        self._images: list[tuple[NDArray[np.int64], NDArray[np.integer[Any]]]] = []

    def add(self, image: ImageCounts) -> None:
        """Add an image."""
        self.confusion[:, image.labels[:, None], image.labels] += image.confusion
        self.known += image.known
        self._images.append((image.labels, class_counts(image.confusion)))

    def mean_ious(self) -> NDArray[np.float64]:
        """Mean IoU of each setting ``(S,)``."""
        return _mean_iou(class_counts(self.confusion))

    def best(self) -> int:
        """The setting of highest mean IoU, the first of several. It has seen the masks."""
        return int(np.argmax(np.nan_to_num(self.mean_ious(), nan=-1.0)))

    def images(self, setting: int) -> NDArray[np.int32]:
        """:func:`class_counts` of each image ``(N, 3, L)`` under a setting."""
        table = np.zeros((len(self._images), 3, self.confusion.shape[-1]), dtype=np.int32)
        for row, (labels, counts) in zip(table, self._images, strict=True):
            row[:, labels] = counts[setting]
        return table


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Quotient, NaN where the whole is 0."""
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def _iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    return _ratio(counts[..., 0, :], counts.sum(-2))


def _mean_iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    iou = _iou(counts)
    return _ratio(np.nansum(iou, axis=-1), np.isfinite(iou).sum(-1))
