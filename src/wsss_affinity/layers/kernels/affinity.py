"""Pairwise affinity in Triton.

Pixels are numbered row by row; a tile of them is what one program works on. Every kernel writes
each of its results once, so that nothing is added atomically and runs agree to the last bit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_affinity.layers.neighborhood import Neighborhood

_PIXELS = 128


@triton.jit
def _affinity_kernel(
    features,
    affinity,
    offsets,
    num_pairs,
    channels,
    height,
    width,
    DTYPE: tl.constexpr,
    PIXELS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Affinities of a tile of pixels to PAIRS of their neighbours, summed over all channels."""
    size = height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    pair = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
    image = tl.program_id(2).to(tl.int64)
    dy = tl.load(offsets + 2 * pair, mask=pair < num_pairs, other=0)[:, None]
    dx = tl.load(offsets + 2 * pair + 1, mask=pair < num_pairs, other=0)[:, None]
    column = (pixel % width)[None, :] + dx
    inside = pixel < size
    stored = (pair < num_pairs)[:, None] & inside[None, :]
    valid = stored & ((pixel // width)[None, :] + dy < height) & (column >= 0) & (column < width)
    neighbour = pixel[None, :] + dy * width + dx

    total = tl.full((PAIRS, PIXELS), 0, DTYPE)
    plane = features + image * channels * size
    # unrolled, so that the loads of several channels are under way together
    for _ in tl.range(0, channels, loop_unroll_factor=4):
        here = tl.load(plane + pixel, mask=inside, other=0).to(DTYPE)
        there = tl.load(plane + neighbour, mask=valid, other=0).to(DTYPE)
        # where there is no neighbour this sums up nonsense, which is not stored
        total += tl.abs(here[None, :] - there)
        plane += size
    value = tl.where(valid, tl.exp(-total / channels), 0)
    place = (image * num_pairs + pair[:, None]) * size + pixel[None, :]
    tl.store(affinity + place, value.to(affinity.dtype.element_ty), mask=stored)


@triton.jit
def _sign_times(difference, weight):
    return tl.where(difference > 0, weight, tl.where(difference < 0, -weight, 0))


@triton.jit
def _affinity_backward_kernel(
    features,
    weight,
    gradient,
    offsets,
    num_pairs,
    channels,
    height,
    width,
    DTYPE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of a tile of pixels in CHANNELS channels, collected from all their neighbours."""
    size = height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)[:, None]
    image = tl.program_id(2).to(tl.int64)
    row, column = pixel // width, pixel % width
    inside = pixel < size
    exists = channel < channels
    place = (image * channels + channel) * size + pixel[None, :]
    here = tl.load(features + place, mask=exists & inside[None, :], other=0).to(DTYPE)

    total = tl.full((CHANNELS, PIXELS), 0, DTYPE)
    plane = weight + image * num_pairs * size
    for k in range(num_pairs):
        dy, dx = tl.load(offsets + 2 * k), tl.load(offsets + 2 * k + 1)
        shift = dy * width + dx
        # the pairs in which the pixel is the first, then those in which it is the second
        after = inside & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        before = inside & (row >= dy) & (column >= dx) & (column - dx < width)
        ahead = tl.load(features + place + shift, mask=exists & after[None, :], other=0).to(DTYPE)
        behind = tl.load(features + place - shift, mask=exists & before[None, :], other=0).to(DTYPE)
        first = tl.load(plane + pixel, mask=after, other=0)[None, :]
        second = tl.load(plane + pixel - shift, mask=before, other=0)[None, :]
        total += _sign_times(here - ahead, first) + _sign_times(here - behind, second)
        plane += size
    total = total.to(gradient.dtype.element_ty)
    tl.store(gradient + place, total, mask=exists & inside[None, :])


@lru_cache(maxsize=64)
def _offsets(radius: int, device: torch.device) -> Tensor:
    return Neighborhood(radius).offsets.to(device, torch.int32)


def _type(tensor: Tensor) -> tl.dtype:
    """What sums are held in."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def pairwise_affinity(features: Tensor, radius: int) -> Tensor:
    """Affinities ``(B, K, H, W)`` of features ``(B, D, H, W)``, in their dtype."""
    features = features.contiguous()
    batch, channels, height, width = features.shape
    offsets = _offsets(radius, features.device)
    affinity = features.new_empty(batch, len(offsets), height, width)
    if affinity.numel() == 0:
        return affinity
    pairs = 8
    tiles = triton.cdiv(height * width, _PIXELS), triton.cdiv(len(offsets), pairs), batch
    with torch.cuda.device_of(features):
        _affinity_kernel[tiles](
            features,
            affinity,
            offsets,
            len(offsets),
            channels,
            height,
            width,
            DTYPE=_type(features),
            PIXELS=_PIXELS,
            PAIRS=pairs,
        )
    return affinity


def pairwise_affinity_backward(features: Tensor, weight: Tensor, radius: int) -> Tensor:
    """Gradient ``(B, D, H, W)``: for each pair, ``weight · sign(f_i - f_j)`` at i, minus it at j.

    ``weight`` is ``(B, K, H, W)`` in float32, or float64 if the features are.
    """
    features = features.contiguous()
    batch, channels, height, width = features.shape
    offsets = _offsets(radius, features.device)
    gradient = torch.empty_like(features)
    if gradient.numel() == 0:
        return gradient
    at_once = 8
    tiles = triton.cdiv(height * width, _PIXELS), triton.cdiv(channels, at_once), batch
    with torch.cuda.device_of(features):
        _affinity_backward_kernel[tiles](
            features,
            weight.contiguous(),
            gradient,
            offsets,
            len(offsets),
            channels,
            height,
            width,
            DTYPE=_type(features),
            PIXELS=_PIXELS,
            CHANNELS=at_once,
        )
    return gradient
