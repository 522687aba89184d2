"""Scores of label maps over a whole data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from wsss_affinity.losses.affinity import UNSURE


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
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = np.full_like(hits, np.nan)
    np.divide(hits, union, out=iou, where=union > 0)
    return iou


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean IoU over the labels that occur, NaN if none does.

    Example:
        >>> mean_iou(np.array([[3, 1], [0, 4]]))
        0.775
    """
    values = class_iou(confusion)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


class ThresholdSweep:
    """Confusion matrices of all background thresholds in one pass.

    A pixel takes its best class where that class's score exceeds the threshold, and background
    elsewhere.

    Args:
        num_classes: Object classes, background not counted.
        bins: Thresholds are ``0, 1/bins, …, 1 - 1/bins``.

    Example:
        >>> sweep = ThresholdSweep(num_classes=1)
        >>> score, target = np.array([[0.2, 0.6]]), np.array([[0, 1]], dtype=np.uint8)
        >>> _ = sweep.update(score, np.zeros((1, 2), dtype=int), target)
        >>> sweep.confusion(0.2).tolist(), sweep.confusion(0.1).tolist()
        ([[1, 0], [0, 1]], [[0, 1], [0, 1]])
    """

    def __init__(self, num_classes: int, bins: int = 100) -> None:
        self.num_classes = num_classes
        self.bins = bins
        labels = num_classes + 1
        #: pixels by (true label, best class, number of thresholds that its score exceeds)
        self.counts = np.zeros((labels, num_classes, bins + 1), dtype=np.int64)

    def update(
        self, score: NDArray[Any], best: NDArray[Any], target: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Add an image.

        Args:
            score: ``(H, W)`` in [0, 1], the highest class score.
            best: ``(H, W)``, the 0-based class that has it.
            target: ``(H, W)`` true labels, 255 void.

        Returns:
            The counts of this image alone.
        """
        sure = target != UNSURE
        # compared, not multiplied and rounded: 0.29 * 100 is less than 29
        thresholds = np.arange(self.bins) / self.bins
        step = np.searchsorted(thresholds, score[sure].astype(np.float64))
        row = target[sure].astype(np.int64) * self.num_classes + best[sure]
        place = row * (self.bins + 1) + step
        counts = np.bincount(place, minlength=self.counts.size).reshape(self.counts.shape)
        self.counts += counts
        return counts

    def confusion(self, threshold: float) -> NDArray[np.int64]:
        """Confusion matrix at the nearest of the thresholds."""
        first = round(threshold * self.bins) + 1
        objects = self.counts[:, :, first:].sum(2)
        background = self.counts[:, :, :first].sum((1, 2))
        return np.concatenate([background[:, None], objects], axis=1)

    def best(self) -> tuple[float, float]:
        """The threshold of highest mean IoU, and that mean IoU. It has seen the masks.

        Where every pixel is void, the mean IoU is NaN at all of them and the lowest is returned.
        """
        thresholds = [step / self.bins for step in range(1, self.bins)]
        scores = [mean_iou(self.confusion(t)) for t in thresholds]
        top = int(np.argmax(np.nan_to_num(scores, nan=-1.0)))
        return thresholds[top], scores[top]
