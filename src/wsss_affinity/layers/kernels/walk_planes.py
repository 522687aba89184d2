"""What a walk in Triton starts from: normalised planes, and weights in the order of its reads.

The slot of an offset ``(dy, dx)`` is ``dy · (2 radius - 1) + dx``: 0 for the pixel itself, and
positive for those ahead of it, in the order of the planes. Slots outside the disc stay empty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_THREADS = 128


def normalize(affinity: Tensor, radius: int, beta: float) -> tuple[Tensor, Tensor]:
    """The planes that :func:`~wsss_affinity.layers.kernels.walk.walk` takes, from affinities.

    Args:
        affinity: ``(B, K, h, w)``, floating point; values at pairs that leave the grid are ignored.
        radius: Radius of the neighbourhood.
        beta: Power the affinities are raised to.

    Returns:
        The planes, ``(B, K + 1, h, w)``, and ``D^{1/2}``, ``(B, h, w)``; both float32.
    """
    affinity = affinity.contiguous()
    batch, count, height, width = affinity.shape
    scale = affinity.new_empty((batch, height, width), dtype=torch.float32)
    planes = scale.new_empty(batch, count + 1, height, width)
    grid = triton.cdiv(height * width, _THREADS), batch
    with torch.cuda.device_of(affinity):
        for kernel in (_degree_kernel, _planes_kernel):
            kernel[grid](
                affinity,
                planes,
                scale,
                beta,
                height,
                width,
                COUNT=count,
                RADIUS=radius,
                THREADS=_THREADS,
            )
    return planes, scale


def pack(
    planes: Tensor, radius: int, lines: int, pitch: int, storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Spread planes on a grid with a rim of zeros, ``radius - 1`` wide above and to the left.

    Weights rounded to a half-precision ``storage`` belong to a slightly different walk. The
    diagonal, which stays float32, is set anew for them such that this one too loses nothing.

    Args:
        planes: ``(B, K + 1, h, w)``, float32.
        radius: Radius of the neighbourhood.
        lines: Lines of the result.
        pitch: Columns of the result.
        storage: Type of the weights.

    Returns:
        The weights, ``(B, lines, slots, pitch)``, and the diagonal, ``(B, lines, pitch)``.
    """
    planes = planes.contiguous()
    batch, count, height, width = planes.shape
    slots = 2 * radius * (radius - 1) + 1
    weights = planes.new_zeros((batch, lines, slots, pitch), dtype=storage)
    diagonal = planes.new_zeros(batch, lines, pitch)
    with torch.cuda.device_of(planes):
        _pack_kernel[triton.cdiv(height * width, _THREADS), batch](
            planes,
            weights,
            diagonal,
            height,
            width,
            lines,
            pitch,
            ROUNDED=storage != planes.dtype,
            COUNT=count - 1,
            RADIUS=radius,
            THREADS=_THREADS,
        )
    return weights, diagonal


@triton.jit
def _pair(slot, pixel, height, width, RADIUS: tl.constexpr):
    """Whether a slot is in the disc, its step, and which pixels have one ahead and one behind."""
    dy = (slot + RADIUS - 1) // (2 * RADIUS - 1)
    dx = slot - dy * (2 * RADIUS - 1)
    y, x = pixel // width, pixel % width
    ahead = (y + dy < height) & (x + dx >= 0) & (x + dx < width)
    behind = (y < height) & (y >= dy) & (x - dx >= 0) & (x - dx < width)
    return dy * dy + dx * dx < RADIUS * RADIUS, dy * width + dx, ahead, behind


@triton.jit
def _sharpened(affinity, inside, beta):
    value = tl.load(affinity, mask=inside, other=0).to(tl.float32)
    return tl.where(value > 0, tl.exp2(beta * tl.log2(tl.where(value > 0, value, 1.0))), 0.0)


@triton.jit
def _degree_kernel(
    affinity,
    planes,
    scale,
    beta,
    height,
    width,
    COUNT: tl.constexpr,
    RADIUS: tl.constexpr,
    THREADS: tl.constexpr,
):
    SLOTS: tl.constexpr = 2 * RADIUS * (RADIUS - 1) + 1
    size = height * width
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    plane = affinity + image * COUNT * size + pixel
    neighbours = tl.full((THREADS,), 0, tl.float32)
    for slot in range(1, SLOTS):
        near, step, ahead, behind = _pair(slot, pixel, height, width, RADIUS)
        if near:
            neighbours += _sharpened(plane, ahead, beta)
            neighbours += _sharpened(plane - step, behind, beta)
            plane += size
    degree = 1 + neighbours
    last = planes + (image * (COUNT + 1) + COUNT) * size + pixel
    tl.store(last, -tl.div_rn(neighbours, degree), mask=pixel < size)
    tl.store(scale + image * size + pixel, tl.sqrt_rn(degree), mask=pixel < size)


@triton.jit
def _planes_kernel(
    affinity,
    planes,
    scale,
    beta,
    height,
    width,
    COUNT: tl.constexpr,
    RADIUS: tl.constexpr,
    THREADS: tl.constexpr,
):
    SLOTS: tl.constexpr = 2 * RADIUS * (RADIUS - 1) + 1
    size = height * width
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    plane = affinity + image * COUNT * size + pixel
    out = planes + image * (COUNT + 1) * size + pixel
    root = scale + image * size + pixel
    own = tl.load(root, mask=pixel < size, other=1)
    for slot in range(1, SLOTS):
        near, step, ahead, _ = _pair(slot, pixel, height, width, RADIUS)
        if near:
            there = tl.load(root + step, mask=ahead, other=1)
            weight = tl.div_rn(_sharpened(plane, ahead, beta), own * there)
            tl.store(out, weight, mask=pixel < size)
            plane += size
            out += size


@triton.jit
def _pack_kernel(
    planes,
    weights,
    diagonal,
    height,
    width,
    lines,
    pitch,
    ROUNDED: tl.constexpr,
    COUNT: tl.constexpr,
    RADIUS: tl.constexpr,
    THREADS: tl.constexpr,
):
    SLOTS: tl.constexpr = 2 * RADIUS * (RADIUS - 1) + 1
    size = height * width
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    line = image * lines + pixel // width + RADIUS - 1
    column = pixel % width + RADIUS - 1
    plane = planes + image * (COUNT + 1) * size + pixel
    last = plane + COUNT * size
    own = tl.load(last, mask=pixel < size, other=0)
    lost = tl.full((THREADS,), 0, tl.float32)
    for slot in range(1, SLOTS):
        near, step, ahead, behind = _pair(slot, pixel, height, width, RADIUS)
        if near:
            exact = tl.load(plane, mask=pixel < size, other=0)
            rounded = exact.to(weights.dtype.element_ty)
            out = weights + (line * SLOTS + slot) * pitch + column
            tl.store(out, rounded, mask=pixel < size)
            if ROUNDED:
                # the root of a pixel's degree is an eigenvector, and 1 + last is 1 / degree
                there = tl.load(last + step, mask=ahead, other=0)
                lost += (exact - rounded.to(tl.float32)) * tl.sqrt((1 + own) / (1 + there))
                there = tl.load(last - step, mask=behind, other=0)
                exact = tl.load(plane - step, mask=behind, other=0)
                rounded = exact.to(weights.dtype.element_ty)
                lost += (exact - rounded.to(tl.float32)) * tl.sqrt((1 + own) / (1 + there))
            plane += size
    tl.store(diagonal + line * pitch + column, own + lost, mask=pixel < size)
