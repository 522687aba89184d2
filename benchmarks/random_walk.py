"""The random walk: against the dense one, and its cost in pixels, steps, channels and gradients.

All times are of one run, the minimum over the repeats after a warm-up, with float32 inputs made
from random features. The dense walk is the published one, eight squarings of the N×N matrix and
one product, timed with its matrix already there; where that takes minutes, one squaring is timed
and counted eight times, and the report says so. Errors are the largest difference to the dense
walk in float64, on large grids to 256 sparse products in float64. Memory is the peak over what is
held with the inputs there: in a fresh process on the CPU, in tensors on CUDA.

The roofline: the kernel cannot take less than its multiply-adds (69 for each pixel, channel and
product) at the rate of a large float32 matrix product, nor less than reading planes and scores and
writing the result once at the speed of a large copy. `streamed` is what it would take if planes
and states went through memory in every product, which a cache or the chip can save.

    python benchmarks/random_walk.py
    python benchmarks/random_walk.py --device cuda --repeats 20
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss_affinity.layers import Neighborhood, pairwise_affinity, random_walk
from wsss_affinity.layers.chebyshev import chebyshev_coefficients

STEPS = 256
GRIDS = {
    "VOC/8": (47, 63),
    "VOC/4": (94, 125),
    "COCO/4": (120, 160),
    "2048x1024/8": (128, 256),
    "2048x1024/4": (256, 512),
}
QUICK_GRIDS = {"VOC/8": (6, 7), "VOC/4": (8, 9), "2048x1024/4": (12, 20)}
METHODS = ("power", "chebyshev")


def inputs(
    args: argparse.Namespace, grid: tuple[int, int], batch: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = 0.5 * torch.randn(batch, 16, *grid, generator=generator)
    scores = torch.rand(batch, args.channels, *grid, generator=generator)
    return scores.to(args.device), pairwise_affinity(features.to(args.device))


def seconds(args: argparse.Namespace, run: Callable[[], Any], repeats: int | None = None) -> float:
    times = []
    for _ in range((args.repeats if repeats is None else repeats) + 1):
        if args.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if args.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def exponent(sizes: list[float], times: list[float]) -> float:
    """Slope of the straight line through the logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, times))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


# --- against the dense walk ---------------------------------------------------------------------


def dense_seconds(args: argparse.Namespace, scores: Tensor, affinity: Tensor) -> dict[str, Any]:
    height, width = scores.shape[2:]
    size = height * width
    identity = torch.eye(size, device=args.device).view(1, size, height, width)
    matrix = random_walk(identity, affinity, num_steps=1, method="power").view(size, size)
    del identity
    flat, out = scores[0].flatten(1), torch.empty_like(matrix)
    doublings = round(math.log2(STEPS))
    if args.device == "cpu" and size > 4000:
        torch.mm(matrix[:64], matrix)
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        squaring = time.perf_counter() - start
        product = seconds(args, lambda: flat @ out)
        return {"dense_seconds": doublings * squaring + product, "squarings_timed": 1}

    def walk() -> None:
        power = matrix
        for _ in range(doublings):
            power = power @ power
        flat @ power

    return {
        "dense_seconds": seconds(args, walk, min(args.repeats, 3)),
        "squarings_timed": doublings,
    }


def against_dense(args: argparse.Namespace, grids: dict[str, tuple[int, int]]) -> dict[str, Any]:
    rows = {}
    for name in ("VOC/8", "VOC/4"):
        scores, affinity = inputs(args, grids[name])
        size = scores[0, 0].numel()
        dense_fits = size <= (4000 if args.device == "cpu" else 12000)
        reference = "dense" if dense_fits else "power"
        exact = random_walk(scores.double(), affinity.double(), method=reference)
        row: dict[str, Any] = {"pixels": size, "reference": f"{reference} in float64"}
        for method in METHODS:
            walked = random_walk(scores, affinity, method=method)
            row[method] = {
                "seconds": seconds(args, partial(random_walk, scores, affinity, method=method)),
                "largest_difference": (walked.double() - exact).abs().max().item(),
            }
        row.update(dense_seconds(args, scores, affinity))
        for method in METHODS:
            ratio = row["dense_seconds"] / row[method]["seconds"]
            row[method]["times_faster_than_dense"] = ratio
            print(
                f"{name:>12} {method:>10} {row[method]['seconds']:10.5f} s, dense "
                f"{row['dense_seconds']:9.4f} s ({row['squarings_timed']} squarings timed): "
                f"{ratio:7.0f}x, error {row[method]['largest_difference']:.1e}"
            )
        rows[name] = row
    return rows


# --- cost ---------------------------------------------------------------------------------------


def cost_of_batches(args: argparse.Namespace, grid: tuple[int, int]) -> list[dict[str, Any]]:
    sizes = (1, 2) if args.quick else (1, 8) if args.device == "cpu" else (1, 4, 16, 64, 256)
    rows = []
    for batch in sizes:
        scores, affinity = inputs(args, grid, batch)
        row: dict[str, Any] = {"batch": batch}
        for method in METHODS:
            took = seconds(args, partial(random_walk, scores, affinity, method=method))
            row[f"{method}_seconds_an_image"] = took / batch
        print(
            f"batch {batch:4d}: "
            + ", ".join(
                f"{m} {1e6 * row[f'{m}_seconds_an_image']:.1f} µs an image" for m in METHODS
            )
        )
        rows.append(row)
    return rows


def cost_of_pixels(args: argparse.Namespace, grids: dict[str, tuple[int, int]]) -> dict[str, Any]:
    rows = []
    for name, grid in grids.items():
        scores, affinity = inputs(args, grid)
        pixels = scores[0, 0].numel()
        took = seconds(args, partial(random_walk, scores, affinity))
        memory = peak_mib(args, grid, STEPS, backward=False)
        print(f"{name:>12}: {pixels:7d} pixels, {took:9.5f} s, {memory:7.1f} MiB")
        rows.append({"grid": name, "pixels": pixels, "seconds": took, "peak_memory_mib": memory})
    slope = exponent([row["pixels"] for row in rows], [row["seconds"] for row in rows])
    print(f"time grows with pixels to the power {slope:.2f}")
    return {"exponent": slope, "grids": rows}


def cost_of_steps(args: argparse.Namespace, grid: tuple[int, int]) -> dict[str, Any]:
    scores, affinity = inputs(args, grid)
    steps = (4, 16) if args.quick else (64, 256, 1024, 4096)
    result: dict[str, Any] = {"steps": steps}
    for method in METHODS:
        times = [
            seconds(args, partial(random_walk, scores, affinity, num_steps=t, method=method))
            for t in steps
        ]
        result[method] = {"seconds": times, "exponent": exponent(list(steps), times)}
        print(f"{method}: time grows with steps to the power {result[method]['exponent']:.2f}")
    return result


def cost_of_gradients(args: argparse.Namespace, grid: tuple[int, int]) -> list[dict[str, Any]]:
    leaves = [x.requires_grad_() for x in inputs(args, grid)]

    def forward(**options: Any) -> None:
        with torch.no_grad():
            random_walk(*leaves, **options)

    def both(**options: Any) -> None:
        torch.autograd.grad(random_walk(*leaves, **options).sum(), leaves)

    rows = []
    for num_steps in (4, 16) if args.quick else (64, 256, 1024):
        for method in METHODS:
            options = {"num_steps": num_steps, "method": method}
            row = {
                **options,
                "forward_seconds": seconds(args, partial(forward, **options)),
                "forward_and_backward_seconds": seconds(args, partial(both, **options)),
                "peak_memory_mib": peak_mib(args, grid, num_steps, backward=True, method=method),
            }
            print(
                f"{num_steps:5d} steps {method:>10}: forward {row['forward_seconds']:.5f} s, with "
                f"gradients {row['forward_and_backward_seconds']:.5f} s, "
                f"{row['peak_memory_mib']:.1f} MiB"
            )
            rows.append(row)
    return rows


# --- memory -------------------------------------------------------------------------------------


def peak_mib(
    args: argparse.Namespace,
    grid: tuple[int, int],
    num_steps: int,
    backward: bool,
    method: str = "auto",
) -> float:
    if args.device == "cuda":
        return memory_of(args, grid, num_steps, backward, method)
    command = [sys.executable, __file__, "--channels", args.channels, "--threads", args.threads]
    command += ["--memory-of", *grid, num_steps, int(backward), method]
    result = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return float(result.stdout)


def memory_of(
    args: argparse.Namespace, grid: tuple[int, int], num_steps: int, backward: bool, method: Any
) -> float:
    """Mebibytes at the peak over those held with the inputs, in this process."""

    def run(height: int, width: int) -> float:
        # made without any intermediate result, which would count as a peak
        scores = torch.rand(1, args.channels, height, width, device=args.device)
        affinity = torch.rand(1, len(Neighborhood()), height, width, device=args.device)
        leaves = [x.requires_grad_(backward) for x in (scores, affinity)]
        before = held_mib("VmRSS", args.device)
        walked = random_walk(*leaves, num_steps=num_steps, method=method)
        if backward:
            walked.sum().backward()
        return held_mib("VmHWM", args.device) - before

    run(4, 4)  # brings in the libraries, which are no part of the walk's memory
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return run(*grid)


def held_mib(field: str, device: str) -> float:
    """VmRSS, which is held now, or VmHWM, the most so far."""
    if device == "cuda":
        peak = field == "VmHWM"
        held = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return held() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**10


# --- roofline -----------------------------------------------------------------------------------


def ceilings(args: argparse.Namespace) -> dict[str, float]:
    """Bytes and float32 multiply-adds a second that the device reaches."""
    size = 256 if args.quick else 2048 if args.device == "cpu" else 8192
    left, right = torch.rand(2, size, size, device=args.device)
    # plain float32, not its shorter forms on matrix units
    torch.backends.cuda.matmul.allow_tf32 = False
    multiply_adds = size**3 / seconds(args, lambda: left @ right)
    source = torch.rand(16 * size * size, device=args.device)
    target = torch.empty_like(source)
    moved = 2 * 4 * source.numel() / seconds(args, lambda: target.copy_(source))
    return {"bytes_a_second": moved, "multiply_adds_a_second": args.fma_rate or multiply_adds}


def roofline(args: argparse.Namespace, grid: tuple[int, int], batch: int) -> dict[str, Any]:
    limits = ceilings(args)
    scores, affinity = inputs(args, grid, batch)
    pixels, channels = batch * grid[0] * grid[1], args.channels
    planes = len(Neighborhood())
    result: dict[str, Any] = {"batch": batch, "grid": grid, "ceilings": limits}
    for method in METHODS:
        products = STEPS if method == "power" else len(chebyshev_coefficients(STEPS, 1e-5)) - 1
        took = seconds(args, partial(random_walk, scores, affinity, method=method))
        multiply_adds = products * pixels * channels * (2 * planes + 1)
        needed = 4 * pixels * (planes + 2 * channels)
        # planes and diagonal, one state read and one read and written
        streamed = 4 * pixels * products * (planes + 1 + 3 * channels)
        bounds = {
            "multiply-adds": multiply_adds / limits["multiply_adds_a_second"],
            "memory": needed / limits["bytes_a_second"],
        }
        bound = max(bounds, key=lambda name: bounds[name])
        result[method] = {
            "products": products,
            "seconds": took,
            "multiply_adds": multiply_adds,
            "bytes_needed": needed,
            "bytes_streamed": streamed,
            "bound": bound,
            "bound_seconds": bounds[bound],
            "streamed_seconds": streamed / limits["bytes_a_second"],
            "share_of_roofline": bounds[bound] / took,
        }
        row = result[method]
        print(
            f"{method}: {multiply_adds:.2e} multiply-adds, {needed:.2e} bytes ({streamed:.2e} "
            f"streamed); {bound} bound: {row['bound_seconds']:.5f} s of {took:.5f} s, "
            f"{100 * row['share_of_roofline']:.0f} % of the roofline"
        )
    return result


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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

    if args.memory_of:
        height, width, num_steps, backward = map(int, args.memory_of[:4])
        print(memory_of(args, (height, width), num_steps, bool(backward), args.memory_of[4]))
        return

    grids = QUICK_GRIDS if args.quick else GRIDS
    report: dict[str, Any] = {
        "channels": args.channels,
        "radius": 5,
        "beta": 8.0,
        "num_steps": STEPS,
        "dtype": "float32",
        "repeats": args.repeats,
        "device": device_name(args.device),
        "threads": args.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(f"{report['device']}, {args.threads} threads, torch {torch.__version__}")
    small = grids["VOC/8"]
    report["against_dense"] = against_dense(args, grids)
    report["batches"] = cost_of_batches(args, small)
    report["pixels"] = cost_of_pixels(args, grids)
    report["steps"] = cost_of_steps(args, small)
    report["gradients"] = cost_of_gradients(args, small)
    report["roofline"] = roofline(args, small, report["batches"][-1]["batch"])

    results = Path(__file__).parent / "results"
    output = args.output or results / f"random_walk_{args.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
