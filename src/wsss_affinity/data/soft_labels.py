"""Affinity labels out of the probabilities of two dense CRFs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_affinity.losses.affinity import UNSURE

#: below this in every map a cell lies outside the image
_NOTHING = 1e-5


def affinity_labels_of(low: Tensor, high: Tensor | None, classes: Tensor) -> Tensor:
    """Combine two CRF results into labels; background wins conflicts.

    Ahn & Kwak, CVPR 2018, section 3.2.

    Args:
        low: ``(n + 1, H, W)`` from a small α: sure where it says object.
        high: ``(n + 1, H, W)`` from a large α: sure where it says background. None for data
            without background, where nothing is.
        classes: ``(n,)``, 0-based class of each map.

    Returns:
        ``(H, W)`` int64: 0 background, 1… classes, 255 unsure.
    """
    names = torch.cat([torch.tensor([UNSURE]), classes + 1])
    labels = names[low.argmax(0)]
    if high is not None:
        labels[high.argmax(0) == 0] = 0
    return labels


def pool_soft_labels(low: Tensor, high: Tensor | None, classes: Tensor, stride: int) -> Tensor:
    """Average probabilities over the cells of a grid before labels are chosen.

    The way of the published code, which crops the probabilities with the image; where nothing is
    left of them, outside the image, labels are unsure.

    Args:
        low: As in :func:`affinity_labels_of`, zeros outside the image.
        high: Likewise.
        classes: ``(n,)``, 0-based class of each map.
        stride: Side of a cell in pixels; H and W are multiples of it.

    Returns:
        ``(H / stride, W / stride)`` int64: 0 background, 1… classes, 255 unsure.
    """
    low = F.avg_pool2d(low[None], stride)[0]
    stacks = [low]
    if high is not None:
        high = F.avg_pool2d(high[None], stride)[0]
        stacks.append(high)
    labels = affinity_labels_of(low, high, classes)
    labels[(torch.cat(stacks) < _NOTHING).all(0)] = UNSURE
    return labels
