"""What the walk could take at least on a device: the roofline of random_walk.py.

The kernel cannot take less than its multiply-adds (69 for each pixel, channel and product) at the
rate of a large float32 matrix product, nor less than reading planes and scores and writing the
result once at the speed of a large copy. `streamed` is what it would take if planes and states
went through memory in every product, which a cache or the chip can save.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import seconds

from wsss_affinity.layers import Neighborhood
from wsss_affinity.layers.chebyshev import chebyshev_coefficients


def ceilings(args: argparse.Namespace) -> dict[str, float]:
    """Bytes and float32 multiply-adds a second that the device reaches."""
    size = 256 if args.quick else 2048 if args.device == "cpu" else 8192
    left, right = torch.rand(2, size, size, device=args.device)
    multiply_adds = size**3 / seconds(lambda: left @ right, args.repeats, args.device)
    # more than any cache holds
    source = torch.rand(2**16 if args.quick else 2**26, device=args.device)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), args.repeats, args.device)
    return {
        "bytes_a_second": 2 * 4 * source.numel() / copied,
        "multiply_adds_a_second": args.fma_rate or multiply_adds,
    }


def roofline(
    args: argparse.Namespace, grid: tuple[int, int], timings: dict[str, Any], num_steps: int
) -> dict[str, Any]:
    """Bytes and multiply-adds of a batch, the bound that holds, and the share of it reached.

    Args:
        args: ``device``, ``channels``, ``repeats``, ``quick`` and ``fma_rate``.
        grid: Rows and columns.
        timings: ``batch`` and, for power and chebyshev, ``*_seconds_an_image``.
        num_steps: Steps of the walk that was timed.
    """
    limits = ceilings(args)
    batch, channels, planes = timings["batch"], args.channels, len(Neighborhood())
    pixels = batch * grid[0] * grid[1]
    result: dict[str, Any] = {"batch": batch, "grid": grid, "ceilings": limits}
    degree = len(chebyshev_coefficients(num_steps, 1e-5)) - 1
    for method, products in (("power", num_steps), ("chebyshev", degree)):
        took = batch * timings[f"{method}_seconds_an_image"]
        multiply_adds = products * pixels * channels * (2 * planes + 1)
        needed = 4 * pixels * (planes + 2 * channels)
        # planes and diagonal, one state read and one read and written
        streamed = 4 * pixels * products * (planes + 1 + 3 * channels)
        bounds = {
            "multiply-adds": multiply_adds / limits["multiply_adds_a_second"],
            "memory": needed / limits["bytes_a_second"],
        }
        bound = max(bounds, key=lambda name: bounds[name])
        share = bounds[bound] / took
        result[method] = {
            "products": products,
            "seconds": took,
            "multiply_adds": multiply_adds,
            "bytes_needed": needed,
            "bytes_streamed": streamed,
            "bound": bound,
            "bound_seconds": bounds[bound],
            "streamed_seconds": streamed / limits["bytes_a_second"],
            "share_of_roofline": share,
        }
        print(
            f"{method}: {multiply_adds:.2e} multiply-adds, {needed:.2e} bytes ({streamed:.2e} "
            f"streamed); {bound} bound: {bounds[bound]:.5f} s of {took:.5f} s, "
            f"{100 * share:.0f} % of the roofline"
        )
    return result
