"""Semantic affinity of neighbouring feature vectors."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from wsss_affinity.layers.kernels import available
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.transforms import outside_graphs, refuse_vmap

# Values of a block of channels: it stays in a level-2 cache with what is computed from it, and
# torch handles fewer than 2**15 in one thread. More threads would have to meet after each of
# thousands of steps of microseconds, which takes far longer where other programs use the cores.
_BLOCK = 2**15 - 1


class _PairwiseAffinity(torch.autograd.Function):
    """Both passes go offset by offset, so memory stays at features + affinities."""

    @staticmethod
    def forward(features: Tensor, radius: int) -> Tensor:
        if available(features):
            from wsss_affinity.layers.kernels import affinity as kernels

            return kernels.pairwise_affinity(features, radius)
        return _affinity(features, radius)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        features, ctx.radius = inputs
        ctx.save_for_backward(features, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        features, affinity = ctx.saved_tensors
        # d exp(-mean|d|) / d f_i = -a · sign(d) / D, and the opposite for f_j
        weight = grad.to(_sum_dtype(features)) * affinity / -features.shape[1]
        if available(features):
            from wsss_affinity.layers.kernels import affinity as kernels

            return kernels.pairwise_affinity_backward(features, weight, ctx.radius), None
        return _gradient(features, weight, ctx.radius), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, features: Tensor, radius: int) -> NoReturn:
        refuse_vmap("pairwise_affinity")


def _sum_dtype(features: Tensor) -> torch.dtype:
    # hundreds of channels are summed
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _workspace(features: Tensor, dtype: torch.dtype, count: int) -> tuple[Tensor, ...]:
    """``count`` tensors for a block of channels, ``(channels, H·W)``."""
    channels, pixels = features.shape[1], features.shape[2] * features.shape[3]
    if not features.is_cuda:  # where a launch costs more than its work, without Triton
        channels = min(channels, max(_BLOCK // max(pixels, 1), 1))
    return features.new_empty(count, channels, pixels, dtype=dtype).unbind()


def _fill(block: Tensor, channels: Tensor) -> None:
    block[: len(channels)] = channels
    block[len(channels) :] = 0


def _shifts(radius: int, height: int, width: int) -> list[tuple[int, int]]:
    """Index of each offset that fits on the grid, and its step in the row-major order of pixels.

    One long run of memory is several times faster than rows of some dozen pixels. The price is
    pairs that leave the grid at one side and enter it a row further; they are masked.
    """
    pairs = enumerate(Neighborhood(radius).pairs)
    return [(k, dy * width + dx) for k, (dy, dx) in pairs if dy < height and abs(dx) < width]


def _affinity(features: Tensor, radius: int) -> Tensor:
    batch, channels, height, width = features.shape
    neighborhood = Neighborhood(radius)
    shifts = _shifts(radius, height, width)
    block, difference = _workspace(features, _sum_dtype(features), 2)
    distance = block.new_empty(height * width)
    sums = block.new_zeros(batch, len(neighborhood), height * width)
    for image, planes in zip(features.flatten(2), sums, strict=True):
        # making these views in the inner loop would take as long as all else there
        pairs = [
            (block[:, :-s], block[:, s:], difference[:, :-s], distance[:-s], planes[k, :-s])
            for k, s in shifts
        ]
        for some in image.split(len(block)):
            _fill(block, some)
            for first, second, gap, total, plane in pairs:
                torch.sub(first, second, out=gap).abs_()
                plane.add_(torch.sum(gap, 0, out=total))
    affinity = sums.div_(-channels).exp_().view(batch, len(neighborhood), height, width)
    outside = ~neighborhood.valid(height, width).to(features.device)
    return affinity.masked_fill_(outside, 0).to(features.dtype)


def _gradient(features: Tensor, weight: Tensor, radius: int) -> Tensor:
    height, width = features.shape[2:]
    shifts = _shifts(radius, height, width)
    # the gradient may be anything where there is no pair
    outside = ~Neighborhood(radius).valid(height, width).to(features.device)
    weight = weight.masked_fill(outside, 0)
    result = torch.empty_like(features, memory_format=torch.contiguous_format)
    block, step, total = _workspace(features, weight.dtype, 3)
    images = zip(features.flatten(2), weight.flatten(2), result.flatten(2), strict=True)
    for image, planes, gradient in images:
        pairs = [
            (block[:, :-s], block[:, s:], step[:, :-s], planes[k, :-s], total[:, :-s], total[:, s:])
            for k, s in shifts
        ]
        for some, out in zip(image.split(len(block)), gradient.split(len(block)), strict=True):
            _fill(block, some)
            total.zero_()
            for first, second, sign, plane, at_first, at_second in pairs:
                torch.sub(first, second, out=sign).sign_().mul_(plane)
                at_first.add_(sign)
                at_second.sub_(sign)
            out.copy_(total[: len(out)])
    return result


# a graph would be thousands of steps, one for each offset and block
@outside_graphs
def pairwise_affinity(features: Tensor, radius: int = 5) -> Tensor:
    r"""Affinity :math:`a_{ij} = \exp(-\frac{1}{D} \sum_d |f_{id} - f_{jd}|)` of each pixel pair.

    The pairs are those of :class:`~wsss_affinity.layers.Neighborhood` (Ahn & Kwak, CVPR 2018,
    equation 2, with the mean over channels that the published code takes where the paper writes
    the L1 norm). Memory is linear in features plus affinities in both passes; half precision is
    summed in float32. Differentiable once, and a graph break for ``torch.compile``.

    Args:
        features: ``(B, D, H, W)`` floating point.
        radius: Radius of the neighbourhood in pixels of the feature grid.

    Returns:
        ``(B, K, H, W)``, one plane per forward offset; ``a[b, k, y, x]`` belongs to ``(y, x)`` and
        ``(y + dy_k, x + dx_k)``, and is 0 where the latter is outside.

    Raises:
        ValueError: If ``features`` is not a floating-point tensor of four dimensions, has no
            channel, or under ``torch.func.vmap``.

    Example:
        >>> pairwise_affinity(torch.zeros(1, 8, 3, 3), radius=2)[0, 0]
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [1., 1., 0.]])
    """
    if features.ndim != 4 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            "features must be floating point of shape (B, D, H, W) with D of at least 1, "
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
