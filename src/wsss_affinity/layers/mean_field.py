"""Mean field of a fully connected CRF: every pixel hears from every other, on no lattice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss_affinity.layers.kernels import available

# pixels of a tile, which is compared with another tile as a whole or left out
TILE = 128
# tiles that one is compared with at once: 4 MB of weights in float32, no memory to speak of
_TILES_AT_ONCE = 64
# what is left out of a row of K sums to less
_LEFT_OUT = 1e-5


def mean_field(
    image: Tensor,
    scores: Tensor,
    iterations: Sequence[int],
    *,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
) -> list[Tensor]:
    r"""Probabilities after each number of mean-field iterations.

    With :math:`\psi = \log \mathrm{clip}(score, 10^{-5}, 1)` and :math:`q^0` its softmax,

    .. math::  q^{n+1} = \mathrm{softmax}_{label}\Big(\psi + \sum_m w_m \tilde K_m q^n\Big),
               \qquad \tilde K = D^{-1/2} K D^{-1/2}, \quad D = \mathrm{diag}(K 1),

    for the Gaussian kernel on positions and the bilateral one on positions and colours, every
    pixel being its own neighbour too (Krähenbühl & Koltun, NeurIPS 2011; normalised as in its
    public code). Differentiable in the scores.

    Args:
        image: ``(B, H, W, 3)``, RGB from 0 to 255.
        scores: ``(B, S, L, H, W)``: ``S`` stacks of scores for an image, float32 or float64.
        iterations: After how many to look, in any order.
        gaussian_sxy: Width of the Gaussian kernel in pixels.
        gaussian_compat: Its weight.
        bilateral_sxy: Width of the bilateral kernel in pixels.
        bilateral_srgb: Its width in grey levels.
        bilateral_compat: Its weight.

    Returns:
        ``(B, S, L, H, W)`` for each number of iterations.
    """
    # labels may hang on the last digits where two are nearly even
    with torch.autocast(scores.device.type, enabled=False):
        height, width = scores.shape[-2:]
        down = _gaussian_matrix(height, gaussian_sxy, scores)
        across = _gaussian_matrix(width, gaussian_sxy, scores)
        bilateral = BilateralFilter(_features(image.to(scores), bilateral_sxy, bilateral_srgb))

        unary = scores.clamp(1e-5, 1).log()
        q = unary.softmax(2)
        after = {0: q}
        for step in range(1, max(iterations) + 1):
            # what labels have in common goes out in the softmax; without it, less is rounded
            centred = q - 1 / q.shape[2]
            blurred = down @ centred @ across
            # labels and stacks are the channels of one filter: each pair is compared once
            filtered = bilateral(centred.flatten(3).flatten(1, 2).mT).mT.reshape(q.shape)
            q = (unary + gaussian_compat * blurred + bilateral_compat * filtered).softmax(2)
            if step in iterations:
                after[step] = q
        return [after[step] for step in iterations]


class BilateralFilter:
    r"""Multiplies by :math:`\tilde K`, where :math:`K_{ij} = \exp(-\frac12 |f_i - f_j|^2)`.

    Pixels are put in an order that keeps like ones together and cut into tiles; two tiles are
    compared, all pixels with all, unless the boxes around them are so far apart that what is left
    out of a row of :math:`K`, whose diagonal is 1, sums to less than 1e-5. Time is quadratic in
    pixels; memory is linear but for a list of the tiles compared, one integer for 16384 pairs of
    pixels, and what making it takes.

    On a GPU with Triton, a kernel keeps :math:`K` in registers. It could be softmax attention,
    with queries :math:`f` and keys :math:`(f, -\frac12 |f|^2)`; but that needs no maximum here, as
    exponents are never positive, and rounds its weights and sums to 11 bits. Here features and
    sums are float32, and weights and values enter the matrix units as sums of two bfloat16 numbers
    each, which moves probabilities by less than 5e-4 in 10 iterations.

    Cost there: a pair takes 14 float32 instructions, 10 of them for the distance, one exponential
    and, for up to 32 channels, ``3 * 2 * 32`` bfloat16 operations. An image of 500 × 375 makes
    3.9e11 pairs in 10 iterations and for :math:`D`. Were none left out, that would be 0.18 s of
    instructions and 0.1 s of exponentials, at 128 and 16 a cycle on each of 132 multiprocessors at
    1.75 GHz, and 0.12 s of products at 600 TFLOP/s: float32 instructions are the bound.

    Args:
        features: ``(B, N, F)``, float32 or float64.
    """

    def __init__(self, features: Tensor) -> None:
        batch, pixels, dims = features.shape
        order = _curve_order(features)
        # the last tile is filled up with copies of its last pixel, which carry no mass
        filled = torch.cat([order, order[:, -1:].expand(-1, -pixels % TILE)], 1)
        # exp(-|a - b|² / 2) = 2^(-|s a - s b|²), which is what processors compute
        scaled = features * (0.5 / math.log(2)) ** 0.5
        self._tiles = scaled.gather(1, _columns(filled, dims)).reshape(-1, TILE, dims)
        self._starts, self._near = _near_tiles(self._tiles, batch, math.log2(pixels / _LEFT_OUT))
        self._order, self._place = order, order.argsort(1)
        self._root = self._sum(features.new_ones(batch, pixels, 1)).sqrt()

    def __call__(self, values: Tensor) -> Tensor:
        """Filter ``(B, N, C)``."""
        total: Tensor = _SymmetricSum.apply(values / self._root, self)
        return total / self._root

    def _sum(self, values: Tensor) -> Tensor:
        """Multiply ``(B, N, C)`` by K."""
        batch, pixels, channels = values.shape
        ordered = values.gather(1, _columns(self._order, channels))
        tiles = F.pad(ordered, (0, 0, 0, -pixels % TILE)).reshape(-1, TILE, channels)
        if available(values) and values.dtype == torch.float32:
            from wsss_affinity.layers.kernels import dense_crf as kernels

            sums = kernels.sum_near_tiles(self._tiles, tiles, self._starts, self._near)
        else:
            sums = sum_near_tiles(self._tiles, tiles, self._starts, self._near)
        return sums.reshape(batch, -1, channels).gather(1, _columns(self._place, channels))


class _SymmetricSum(torch.autograd.Function):
    """K is symmetric and does not hang on the values: the gradient is multiplied by it too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bilateral: BilateralFilter) -> Tensor:
        ctx.bilateral = bilateral
        return bilateral._sum(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SymmetricSum.apply(grad, ctx.bilateral), None


def sum_near_tiles(features: Tensor, values: Tensor, starts: Tensor, near: Tensor) -> Tensor:
    """Sums of values ``(R, T, C)`` over the near tiles, weighted by ``2^(-|f_i - f_j|²)``.

    Args:
        features: ``(R, T, F)``.
        values: ``(R, T, C)``.
        starts: ``(R + 1,)``: the tiles near tile i are ``near[starts[i] : starts[i + 1]]``.
        near: Their numbers.
    """
    result = torch.zeros_like(values)
    for i, (start, end) in enumerate(pairwise(starts.tolist())):
        for some in torch.split(near[start:end], _TILES_AT_ONCE):
            # differences, not products: those lose the digits that narrow kernels hang on
            there = features[some].flatten(0, 1)
            distance = torch.cdist(features[i], there, compute_mode="donot_use_mm_for_euclid_dist")
            weight = distance.square_().neg_().exp2_()
            result[i] += weight @ values[some].flatten(0, 1)
    return result


def _near_tiles(tiles: Tensor, batch: int, reach: float) -> tuple[Tensor, Tensor]:
    """List the tiles of the same image whose boxes come within a squared distance ``reach``."""
    low, high = tiles.amin(1), tiles.amax(1)
    each = len(tiles) // batch
    # so many rows at a time that an image of 375×500, where this takes 123 MiB, is done at once,
    # and that a larger one takes as much
    step = 2**22 // each + 1
    counts, near = [], []
    for start in range(0, len(tiles), each):
        own = slice(start, start + each)
        boxes = zip(torch.split(low[own], step), torch.split(high[own], step), strict=True)
        for some_low, some_high in boxes:
            gap = torch.maximum(some_low[:, None] - high[own], low[own] - some_high[:, None])
            close = gap.clamp_(min=0).square_().sum(-1) < reach
            counts.append(close.sum(1))
            near.append(close.nonzero()[:, 1].int() + start)
    starts = F.pad(torch.cat(counts).cumsum(0), (1, 0))
    return starts, torch.cat(near)


def _curve_order(features: Tensor) -> Tensor:
    """Order of pixels ``(B, N)`` along a Morton curve through features ``(B, N, F)``."""
    least, most = features.aminmax(dim=1, keepdim=True)
    # cells as wide in one direction as in another, 256 along the longest
    span = (most - least).amax(2, keepdim=True).clamp(min=1e-6)
    cells = ((features - least) / span * 255).long()
    code = torch.zeros_like(cells[..., 0])
    for bit in reversed(range(8)):
        for cell in cells.unbind(-1):
            code = 2 * code + (cell >> bit & 1)
    return code.argsort(1)


def _columns(order: Tensor, count: int) -> Tensor:
    return order[..., None].expand(-1, -1, count)


def _features(image: Tensor, sxy: float, srgb: float) -> Tensor:
    """Position and colour of each pixel in widths of the kernel, ``(B, H·W, 5)``."""
    batch, height, width, _ = image.shape
    rows = torch.arange(height, dtype=image.dtype, device=image.device)
    columns = torch.arange(width, dtype=image.dtype, device=image.device)
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    position = position.expand(batch, height, width, 2)
    return torch.cat([position / sxy, image / srgb], -1).flatten(1, 2)


def _gaussian_matrix(size: int, sxy: float, like: Tensor) -> Tensor:
    """The Gaussian kernel along one axis with its full reach, normalised on both sides.

    The kernel on the grid and its row sums are products of those along the axes, so the whole of
    it is one such matrix after the other.
    """
    place = torch.arange(size, dtype=like.dtype, device=like.device) / sxy
    kernel = (-(place[:, None] - place).square() / 2).exp()
    root = kernel.sum(1).sqrt()
    return kernel / (root[:, None] * root)
