"""The published walk, for random_walk.py to compare with: eight squarings of the N×N matrix."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from common import seconds
from torch import Tensor

from wsss_affinity.layers import random_walk


def against_dense(scores: Tensor, affinity: Tensor, num_steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of the dense walk and of ours for a batch, and how far ours is from float64.

    The dense walk starts with its matrix there. Where N is large on the CPU, one squaring is timed
    and counted for all, and the reference is the sparse power in float64.
    """
    device, pixels = scores.device.type, scores[0, 0].numel()
    reference: Any = "dense" if pixels <= (4000 if device == "cpu" else 12000) else "power"
    exact = torch.cat(
        [
            random_walk(*(x.double()[None] for x in image), num_steps=num_steps, method=reference)
            for image in zip(scores, affinity, strict=True)
        ]
    )
    row: dict[str, Any] = {"pixels": pixels, "batch": len(scores)}
    row["reference"] = f"{reference} in float64"
    row.update(_dense_seconds(scores, affinity, num_steps, repeats))
    for method in ("power", "chebyshev"):
        walk = partial(random_walk, scores, affinity, num_steps=num_steps, method=method)
        error = (walk().double() - exact).abs().max().item()
        took = seconds(walk, repeats, device)
        row[method] = {
            "seconds": took,
            "largest_difference": error,
            "times_faster_than_dense": row["dense_seconds"] / took,
        }
    return row


def _transition(affinity: Tensor) -> Tensor:
    """The dense matrix ``(N, N)`` of one image: one step from each of its pixels."""
    height, width = affinity.shape[-2:]
    size = height * width
    identity = torch.eye(size, device=affinity.device).view(1, size, height, width)
    # as the GPU's memory is fast, without the kernels that are measured
    method: Any = "dense" if affinity.is_cuda else "power"
    return random_walk(identity, affinity[None], num_steps=1, method=method).view(size, size)


def _dense_seconds(
    scores: Tensor, affinity: Tensor, num_steps: int, repeats: int
) -> dict[str, Any]:
    matrix = torch.stack([_transition(each) for each in affinity])
    flat, doublings, device = scores.flatten(2), round(math.log2(num_steps)), scores.device.type
    if device == "cpu" and flat.shape[2] > 4000:
        torch.bmm(matrix[:, :64], matrix)
        start = time.perf_counter()
        square = torch.bmm(matrix, matrix)
        squaring = time.perf_counter() - start
        product = seconds(lambda: flat @ square, 1, device)
        return {"dense_seconds": doublings * squaring + product, "squarings_timed": 1}

    def walk() -> None:
        power = matrix
        for _ in range(doublings):
            power = power @ power
        flat @ power

    return {
        "dense_seconds": seconds(walk, repeats, device),
        "squarings_timed": doublings,
    }
