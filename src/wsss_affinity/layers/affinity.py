"""Semantic affinity of neighbouring feature vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsss_affinity.layers.neighborhood import Neighborhood, pair_slices


class _PairwiseAffinity(torch.autograd.Function):
    """Both passes walk over images and offsets, so memory stays at features + affinities."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        offsets = Neighborhood(radius).pairs
        batch, _, height, width = features.shape
        affinity = features.new_zeros(batch, len(offsets), height, width)
        for image, planes in zip(features, affinity, strict=True):
            for (dy, dx), plane in zip(offsets, planes, strict=True):
                source, target = pair_slices(dy, dx)
                distance = (image[(..., *source)] - image[(..., *target)]).abs_().mean(0)
                plane[source] = distance.neg_().exp_()
        ctx.save_for_backward(features, affinity)
        ctx.radius = radius
        return affinity

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        features, affinity = ctx.saved_tensors
        result = torch.zeros_like(features)
        # d exp(-mean|d|) / d f_i = -a · sign(d) / D, and the opposite for f_j
        weight = grad * affinity / -features.shape[1]
        for image, planes, out in zip(features, weight, result, strict=True):
            for (dy, dx), plane in zip(Neighborhood(ctx.radius).pairs, planes, strict=True):
                source, target = pair_slices(dy, dx)
                step = (image[(..., *source)] - image[(..., *target)]).sign_().mul_(plane[source])
                out[(..., *source)] += step
                out[(..., *target)] -= step
        return result, None


def pairwise_affinity(features: Tensor, radius: int = 5) -> Tensor:
    r"""Affinity :math:`a_{ij} = \exp(-\frac{1}{D} \sum_d |f_{id} - f_{jd}|)` of each pixel pair.

    The pairs are those of :class:`~wsss_affinity.layers.Neighborhood` (Ahn & Kwak, CVPR 2018,
    equation 2, with the mean over channels that the published code takes where the paper writes
    the L1 norm). Memory is linear in features plus affinities in both passes.

    Args:
        features: ``(B, D, H, W)`` floating point.
        radius: Radius of the neighbourhood in pixels of the feature grid.

    Returns:
        ``(B, K, H, W)``, one plane per forward offset: ``a[b, k, y, x]`` belongs to ``(y, x)`` and
        ``(y + dy_k, x + dx_k)``, and is 0 where the latter is outside.

    Raises:
        ValueError: If ``features`` is not a floating-point tensor of four dimensions.

    Example:
        >>> pairwise_affinity(torch.zeros(1, 8, 3, 3), radius=2)[0, 0]
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [1., 1., 0.]])
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            "features must be floating point of shape (B, D, H, W), "
            f"got {features.dtype} {tuple(features.shape)}"
        )
    affinity: Tensor = _PairwiseAffinity.apply(features, radius)
    return affinity


class PairwiseAffinity(nn.Module):
    """:func:`pairwise_affinity` as a layer.

    Args:
        radius: Radius of the neighbourhood in pixels of the feature grid.
    """

    def __init__(self, radius: int = 5) -> None:
        super().__init__()
        self.radius = Neighborhood(radius).radius

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, D, H, W)`` to affinities ``(B, K, H, W)``."""
        return pairwise_affinity(features, self.radius)

    def extra_repr(self) -> str:
        """Parameters for ``repr``."""
        return f"radius={self.radius}"
