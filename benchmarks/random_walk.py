"""The random walk: against the dense one, and its cost in pixels, steps, channels and gradients.

All times are of one run, the minimum over the repeats after a warm-up, with float32 inputs made
from random features. The dense walk is the published one, eight squarings of the N×N matrix and
one product, timed with its matrix already there and without TF32; where that takes minutes, one
squaring is timed and counted eight times, and the report says so. Errors are the largest
difference to the dense walk in float64, on large grids to 256 sparse products in float64. Memory
is the peak over what is held with the inputs there: in a fresh process on the CPU, in tensors on
CUDA. The roofline is explained in roofline.py.

    python benchmarks/random_walk.py
    python benchmarks/random_walk.py --device cuda --repeats 20
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    exponent,
    held_mib,
    in_fresh_process,
    peak_mib,
    reset_peak,
    seconds,
    surroundings,
    write,
)
from dense_walk import against_dense
from roofline import roofline
from torch import Tensor

from wsss_affinity.layers import Neighborhood, pairwise_affinity, random_walk

STEPS = 256
GRIDS = {
    "VOC/8": (47, 63),
    "VOC/4": (94, 125),
    "COCO/4": (120, 160),
    "2048x1024/8": (128, 256),
    "2048x1024/4": (256, 512),
}
QUICK_GRIDS = {"VOC/8": (6, 7), "VOC/4": (8, 9), "2048x1024/4": (12, 20)}
BATCHES = (1, 4, 16, 64, 256)
QUICK_BATCHES = (1, 2)
METHODS = ("power", "chebyshev")
# one image is hardly work for a GPU: roofline and ratio to dense are told for so many there
MANY = 64


def inputs(
    args: argparse.Namespace, grid: tuple[int, int], batch: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = 0.5 * torch.randn(batch, 16, *grid, generator=generator)
    scores = torch.rand(batch, args.channels, *grid, generator=generator)
    return scores.to(args.device), pairwise_affinity(features.to(args.device))


def timed(args: argparse.Namespace, scores: Tensor, affinity: Tensor, **options: Any) -> float:
    walk = partial(random_walk, scores, affinity, **options)
    return seconds(walk, args.repeats, args.device)


def compare(args: argparse.Namespace, grids: dict[str, tuple[int, int]]) -> dict[str, Any]:
    cases = [("VOC/8", 1), ("VOC/4", 1)]
    if args.device == "cuda":
        cases.append(("VOC/8", QUICK_BATCHES[-1] if args.quick else MANY))
    rows = {}
    for grid, batch in cases:
        row = against_dense(*inputs(args, grids[grid], batch), STEPS, args.repeats)
        for method in METHODS:
            ours = row[method]
            print(
                f"{batch} x {grid} {method:>10} {ours['seconds']:10.5f} s, dense "
                f"{row['dense_seconds']:9.4f} s ({row['squarings_timed']} squarings timed): "
                f"{ours['times_faster_than_dense']:.0f}x, error {ours['largest_difference']:.1e}"
            )
        rows[grid if batch == 1 else f"{batch} x {grid}"] = row
    return rows


# --- cost ---------------------------------------------------------------------------------------


def cost_of_batches(args: argparse.Namespace, grid: tuple[int, int]) -> list[dict[str, Any]]:
    rows = []
    for batch in QUICK_BATCHES if args.quick else BATCHES:
        walked = inputs(args, grid, batch)
        row: dict[str, Any] = {"batch": batch}
        for method in METHODS:
            took = timed(args, *walked, num_steps=STEPS, method=method) / batch
            row[f"{method}_seconds_an_image"] = took
            print(f"batch {batch:4d} {method:>10}: {1e6 * took:.1f} µs an image")
        rows.append(row)
    return rows


def cost_of_pixels(args: argparse.Namespace, grids: dict[str, tuple[int, int]]) -> dict[str, Any]:
    rows = []
    for name, grid in grids.items():
        pixels = grid[0] * grid[1]
        took = timed(args, *inputs(args, grid), num_steps=STEPS)
        memory = memory_of_walk(args, grid, STEPS, backward=False)
        print(f"{name:>12}: {pixels:7d} pixels, {took:9.5f} s, {memory:7.1f} MiB")
        rows.append({"grid": name, "pixels": pixels, "seconds": took, "peak_memory_mib": memory})
    slope = exponent([row["pixels"] for row in rows], [row["seconds"] for row in rows])
    print(f"time grows with pixels to the power {slope:.2f}")
    return {"exponent": slope, "grids": rows}


def cost_of_steps(args: argparse.Namespace, grid: tuple[int, int]) -> dict[str, Any]:
    walked = inputs(args, grid)
    steps: list[int] = [4, 16] if args.quick else [64, 256, 1024, 4096]
    result: dict[str, Any] = {"steps": steps}
    for method in METHODS:
        times = [timed(args, *walked, num_steps=t, method=method) for t in steps]
        result[method] = {"seconds": times, "exponent": exponent(steps, times)}
        print(f"{method}: time grows with steps to the power {result[method]['exponent']:.2f}")
    return result


def cost_of_gradients(args: argparse.Namespace, grid: tuple[int, int]) -> list[dict[str, Any]]:
    scores, affinity = inputs(args, grid)
    leaves = [scores.clone().requires_grad_(), affinity.clone().requires_grad_()]

    def both(**options: Any) -> None:
        torch.autograd.grad(random_walk(*leaves, **options).sum(), leaves)

    rows = []
    for num_steps in (4, 16) if args.quick else (64, 256, 1024):
        for method in METHODS:
            options = {"num_steps": num_steps, "method": method}
            row = {
                **options,
                "forward_seconds": timed(args, scores, affinity, **options),
                "forward_and_backward_seconds": seconds(
                    partial(both, **options), args.repeats, args.device
                ),
                "peak_memory_mib": memory_of_walk(args, grid, num_steps, True, method),
            }
            print(
                f"{num_steps:5d} steps {method:>10}: forward {row['forward_seconds']:.5f} s, with "
                f"gradients {row['forward_and_backward_seconds']:.5f} s, "
                f"{row['peak_memory_mib']:.1f} MiB"
            )
            rows.append(row)
    return rows


# --- memory -------------------------------------------------------------------------------------


def memory_of_walk(
    args: argparse.Namespace,
    grid: tuple[int, int],
    num_steps: int,
    backward: bool,
    method: Any = "auto",
) -> float:
    """Mebibytes at the peak over those held with the inputs."""
    if args.device == "cuda":
        return memory_here(args, grid, num_steps, backward, method)
    options = ["--channels", args.channels, "--threads", args.threads]
    return in_fresh_process(
        __file__, *options, "--memory-of", *grid, num_steps, int(backward), method
    )


def memory_here(
    args: argparse.Namespace, grid: tuple[int, int], num_steps: int, backward: bool, method: Any
) -> float:
    def run(height: int, width: int) -> float:
        # made without any intermediate result, which would count as a peak
        scores = torch.rand(1, args.channels, height, width, device=args.device)
        affinity = torch.rand(1, len(Neighborhood()), height, width, device=args.device)
        leaves = [x.requires_grad_(backward) for x in (scores, affinity)]
        before = held_mib(args.device)
        walked = random_walk(*leaves, num_steps=num_steps, method=method)
        if backward:
            walked.sum().backward()
        return peak_mib(args.device) - before

    run(4, 4)  # brings in the libraries, which are no part of the walk's memory
    reset_peak(args.device)
    return run(*grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--channels", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--fma-rate",
        type=float,
        help="float32 multiply-adds a second of the device, as its maker states them; "
        "default: those that a matrix product reaches",
    )
    parser.add_argument("--quick", action="store_true", help="tiny grids, to see that it runs")
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # plain float32, not its shorter form on matrix units
    torch.backends.cuda.matmul.allow_tf32 = False

    if args.memory_of:
        height, width, num_steps, backward = map(int, args.memory_of[:4])
        print(memory_here(args, (height, width), num_steps, bool(backward), args.memory_of[4]))
        return

    grids = QUICK_GRIDS if args.quick else GRIDS
    small = grids["VOC/8"]
    report: dict[str, Any] = {
        "channels": args.channels,
        "radius": 5,
        "beta": 8.0,
        "num_steps": STEPS,
        "dtype": "float32",
        "repeats": args.repeats,
        **surroundings(args.device),
    }
    report["against_dense"] = compare(args, grids)
    report["batches"] = cost_of_batches(args, small)
    report["pixels"] = cost_of_pixels(args, grids)
    report["steps"] = cost_of_steps(args, small)
    report["gradients"] = cost_of_gradients(args, small)
    timings = next(r for r in reversed(report["batches"]) if r["batch"] <= MANY)
    report["roofline"] = roofline(args, small, timings, STEPS)
    write(report, f"random_walk_{args.device}", args.output)


if __name__ == "__main__":
    main()
