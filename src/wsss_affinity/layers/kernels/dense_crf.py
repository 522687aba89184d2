"""The bilateral filter of the dense CRF in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# the sum of two bfloat16 has 16 bits, and holds small weights that float16 would lose
_HALF = torch.bfloat16
# channels that one program sums: more would not fit its registers
_MAX_CHANNELS = 64
# pixels of the other tile that are compared with at once
_STEP = 64


@triton.jit
def _sum_kernel(
    features,
    high,
    low,
    result,
    starts,
    near,
    channels,
    DIMS: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sum CHANNELS channels for the pixels of one tile over all tiles near it."""
    tile = tl.program_id(0).to(tl.int64)
    pixel = tl.arange(0, TILE)
    other = tl.arange(0, STEP)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = (channel < channels)[None, :]
    steps: tl.constexpr = TILE // STEP

    total = tl.zeros((TILE, CHANNELS), tl.float32)
    first, last = tl.load(starts + tile), tl.load(starts + tile + 1)
    for k in range(first * steps, last * steps):
        near_tile = tl.load(near + k // steps).to(tl.int64)
        start = (k % steps) * STEP
        distance = tl.zeros((TILE, STEP), tl.float32)
        # differences, not a product: that would lose the digits that narrow kernels hang on
        for dim in tl.static_range(DIMS):
            here = tl.load(features + (tile * DIMS + dim) * TILE + pixel)
            there = tl.load(features + (near_tile * DIMS + dim) * TILE + start + other)
            difference = here[:, None] - there[None, :]
            distance = tl.fma(difference, difference, distance)
        weight = tl.exp2(-distance)
        weight_high = weight.to(high.dtype.element_ty)
        weight_low = (weight - weight_high.to(tl.float32)).to(high.dtype.element_ty)
        place = (near_tile * TILE + start + other)[:, None] * channels + channel[None, :]
        value_high = tl.load(high + place, mask=exists, other=0)
        value_low = tl.load(low + place, mask=exists, other=0)
        total = tl.dot(weight_high, value_high, total)
        total = tl.dot(weight_high, value_low, total)
        total = tl.dot(weight_low, value_high, total)
    place = (tile * TILE + pixel)[:, None] * channels + channel[None, :]
    tl.store(result + place, total, mask=exists)


def sum_near_tiles(features: Tensor, values: Tensor, starts: Tensor, near: Tensor) -> Tensor:
    """See ``mean_field.sum_near_tiles``; float32, and T a power of two."""
    tiles, tile, channels = values.shape
    high = values.to(_HALF).contiguous()
    low = (values - high).to(_HALF).contiguous()
    result = torch.empty_like(high, dtype=torch.float32)
    # products of matrices want 16 columns at least
    at_once = min(max(triton.next_power_of_2(channels), 16), _MAX_CHANNELS)
    with torch.cuda.device_of(values):
        _sum_kernel[tiles, triton.cdiv(channels, at_once)](
            features.mT.contiguous(),  # plane by plane, so that neighbours load together
            high,
            low,
            result,
            starts,
            near,
            channels,
            DIMS=features.shape[-1],
            TILE=tile,
            STEP=_STEP,
            CHANNELS=at_once,
            num_warps=8,
        )
    return result
