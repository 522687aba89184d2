"""The loss of AffinityNet and the pair labels it is computed on."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from wsss_affinity.layers.neighborhood import Border, Neighborhood
from wsss_affinity.layers.transforms import outside_graphs

UNSURE = 255  #: of a label map: pixels that are not trained on and not scored
_EPS = 1e-5


# the compiler would make the numbers of all pairs anew in each call
@outside_graphs
def affinity_loss(
    affinity: Tensor,
    label_map: Tensor,
    radius: int = 5,
    border: Border = "full",
    *,
    sum_counts: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""Balanced log loss over three sets of pixel pairs (Ahn & Kwak, CVPR 2018, equations 3-6).

    A pair counts only when both of its labels are sure. With :math:`\mathcal{P}^+_{bg}` the pairs
    of equal label that are background, :math:`\mathcal{P}^+_{fg}` those of equal object label and
    :math:`\mathcal{P}^-` those of different labels, all taken over the whole batch,

    .. math:: L = \tfrac14 \overline{-\log(a+\epsilon)}_{bg}
                + \tfrac14 \overline{-\log(a+\epsilon)}_{fg}
                + \tfrac12 \overline{-\log(1+\epsilon-a)}_{neg}, \quad \epsilon = 10^{-5}.

    Args:
        affinity: ``(B, K, h, w)`` in [0, 1] from :func:`~wsss_affinity.layers.pairwise_affinity`.
            Other values are not looked for, which would halt a GPU in every step of a training;
            NaN, and a logarithm of less than 0, make the loss NaN.
        label_map: ``(B, h, w)`` integer: 0 background, 1… object classes, 255 unsure.
        radius: The radius the affinities were computed with.
        border: Which pairs exist at the border, see
            :meth:`~wsss_affinity.layers.Neighborhood.valid`.
        sum_counts: Adds a tensor over the processes that share a batch, if there are several. The
            mean of their losses and gradients is then that of the whole batch.

    Returns:
        ``loss`` and its unweighted terms ``bg``, ``fg`` and ``neg``, each a scalar; a set without
        pairs gives 0.

    Raises:
        ValueError: If shapes, radius, types or devices do not fit each other.

    Example:
        >>> labels = torch.tensor([[[0, 0], [1, 255]]])
        >>> terms = affinity_loss(torch.full((1, 4, 2, 2), 0.5), labels, radius=2)
        >>> round(terms["bg"].item(), 3), round(terms["neg"].item(), 3)
        (0.693, 0.693)
    """
    neighborhood = Neighborhood(radius)
    if (
        affinity.ndim != 4
        or affinity.shape[1] != len(neighborhood)
        or label_map.shape != (len(affinity), *affinity.shape[2:])
    ):
        raise ValueError(
            f"affinity of shape (B, {len(neighborhood)}, h, w) and label_map of shape (B, h, w) "
            f"expected for radius {radius}, got {tuple(affinity.shape)} and "
            f"{tuple(label_map.shape)}"
        )
    if not affinity.is_floating_point() or label_map.is_floating_point():
        raise ValueError(
            "affinity must be floating point and label_map integer, got "
            f"{affinity.dtype} and {label_map.dtype}"
        )
    if affinity.device != label_map.device:
        raise ValueError(
            f"affinity is on {affinity.device} and label_map on {label_map.device}; "
            "move one of them"
        )
    if affinity.dtype in (torch.float16, torch.bfloat16):
        # 1 + 1e-5 is 1 there, and the number of pairs overflows
        affinity = affinity.float()
    height, width = affinity.shape[2:]
    neighbours = _neighbours(radius, height, width, border, affinity.device)
    first = label_map.unsqueeze(1)
    second = functional.pad(label_map.flatten(1), (0, 1), value=UNSURE)[:, neighbours]
    sure = (first != UNSURE) & (second != UNSURE)
    same = first == second
    # 1 - a before the eps, or float32 loses the eps next to 1
    value = -torch.log(torch.where(same, affinity, 1 - affinity) + _EPS)
    sets = [pairs & sure for pairs in (same & (first == 0), same & (first != 0), ~same)]
    # the last one counts the processes
    counts = torch.stack([*(pairs.sum() for pairs in sets), sure.new_ones(())]).to(value.dtype)
    if sum_counts is not None:
        counts = sum_counts(counts)
    *numbers, processes = counts
    bg, fg, neg = (
        processes * (value * pairs).sum() / (number + _EPS)
        for pairs, number in zip(sets, numbers, strict=True)
    )
    return {"loss": bg / 4 + fg / 4 + neg / 2, "bg": bg, "fg": fg, "neg": neg}


def _neighbours(
    radius: int, height: int, width: int, border: Border, device: torch.device
) -> Tensor:
    """Number of the second pixel of each pair, ``(K, h, w)``; one past the last if there is none.

    Kept, because making it on a GPU halts all work there, and training is at one size. Not kept
    while torch makes tensors of another type, which hold no values, as in ``torch.export``.
    """
    make = _kept_neighbours if type(torch.empty(0)) is Tensor else _make_neighbours
    return make(radius, height, width, border, device)


def _make_neighbours(
    radius: int, height: int, width: int, border: Border, device: torch.device
) -> Tensor:
    neighborhood = Neighborhood(radius)
    dy, dx = neighborhood.offsets.unbind(1)
    pixels = torch.arange(height * width).view(height, width)
    neighbours = pixels + (dy * width + dx).view(-1, 1, 1)
    valid = neighborhood.valid(height, width, border)
    return torch.where(valid, neighbours, height * width).to(device)


_kept_neighbours = lru_cache(maxsize=8)(_make_neighbours)
