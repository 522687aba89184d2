"""From affinities to the planes of the walk's symmetric matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_affinity.layers import kernels
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.walk_matrix import ShiftedProducts, normalized


def sharpened(affinity: Tensor, valid: Tensor, beta: float) -> Tensor:
    """Affinities ``(B, K, h, w)`` to the power of ``beta``, and 0 where no pair is valid."""
    weights = torch.where(valid, affinity, 0)
    if not weights.requires_grad:
        return weights.pow_(beta)
    # 0 ** beta has an infinite slope for beta < 1; those pairs are cut anyway
    tiny = torch.finfo(weights.dtype).tiny
    return torch.where(weights > 0, weights.clamp_min(tiny) ** beta, 0)


def symmetric(
    affinity: Tensor, valid: Tensor, beta: float, neighborhood: Neighborhood, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Planes and scale of :func:`~wsss_affinity.layers.walk_matrix.normalized`, in ``dtype``.

    Of affinities ``(B, K, h, w)`` they are ``(B, K + 1, h, w)`` and ``(B, h, w, 1)``.
    """
    differentiable = torch.is_grad_enabled() and affinity.requires_grad
    if kernels.available(affinity) and dtype == torch.float32 and not differentiable:
        from wsss_affinity.layers.kernels.walk_planes import normalize

        kept = torch.where(valid, affinity, 0)
        planes, scale = normalize(kept, neighborhood.radius, beta)
        return planes, scale.unsqueeze(-1)
    return normalized(sharpened(affinity.to(dtype), valid, beta), neighborhood)


def rounded(
    planes: Tensor, scale: Tensor, neighborhood: Neighborhood, storage: torch.dtype
) -> Tensor:
    """Planes with weights rounded to ``storage``; gradients pass as if nothing were rounded.

    Planes are ``(B, K + 1, h, w)``, the scale is ``(B, h, w, 1)``, both as :func:`symmetric` gives.
    The diagonal is set such that ``L`` takes the scale to 0, as before: constants stay constant.
    """
    if kernels.available(planes) and planes.dtype == torch.float32 and not planes.requires_grad:
        return planes  # the kernel rounds them in this way
    exact, scale = planes.detach(), scale.detach()
    result = exact.to(storage).to(exact.dtype)
    result[:, -1] = 0
    moved = torch.zeros_like(scale)
    ShiftedProducts(result, neighborhood).add_product(moved, scale)
    result[:, -1] = -(moved / scale)[..., 0]
    # loses no digit: the difference of numbers within a factor of two of each other is exact
    return planes + (result - exact)
