"""Time, error and memory of the random walk's methods on one image.

Each method walks the same random scores along the same random affinities. Times are the minimum
over the repeats, after a warm-up; memory is what a fresh process that runs one method holds at
its peak, over what it held before the inputs were made.

    python benchmarks/random_walk.py --repeats 5
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import wsss_affinity.layers as layers

METHODS = ("dense", "power", "chebyshev")


def inputs(height: int, width: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = 0.5 * torch.randn(1, 16, height, width, generator=generator)
    scores = torch.rand(1, channels, height, width, generator=generator)
    return scores, layers.pairwise_affinity(features)


def seconds(scores: torch.Tensor, affinity: torch.Tensor, method: Any, repeats: int) -> float:
    layers.random_walk(scores, affinity, method=method)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        layers.random_walk(scores, affinity, method=method)
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands ru_maxrss of the parent on to the processes it starts, but not this
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    # kilobytes, but bytes on macOS
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_of(method: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--height", args.height, "--width", args.width]
    command += ["--channels", args.channels, "--threads", args.threads, "--memory-of", method]
    result = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return float(result.stdout)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=47, help="rows of the feature grid")
    parser.add_argument("--width", type=int, default=63, help="columns of the feature grid")
    parser.add_argument("--channels", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "random_walk_cpu.json"
    )
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.memory_of:
        # a first product brings in the libraries, which are no part of the method's memory
        layers.random_walk(*inputs(4, 4, 1), method=args.memory_of)
        before = peak_mib()
        layers.random_walk(*inputs(args.height, args.width, args.channels), method=args.memory_of)
        print(peak_mib() - before)
        return

    scores, affinity = inputs(args.height, args.width, args.channels)
    exact = layers.random_walk(scores.double(), affinity.double(), method="dense")
    report: dict[str, Any] = {
        "height": args.height,
        "width": args.width,
        "channels": args.channels,
        "radius": 5,
        "beta": 8.0,
        "num_steps": 256,
        "dtype": "float32",
        "repeats": args.repeats,
        "device": cpu_name(),
        "threads": args.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "methods": {},
    }
    for method in METHODS:
        walked = layers.random_walk(scores, affinity, method=method)
        report["methods"][method] = {
            "seconds": seconds(scores, affinity, method, args.repeats),
            "largest_difference": (walked.double() - exact).abs().max().item(),
            "peak_memory_mib": memory_of(method, args),
        }
    dense = report["methods"]["dense"]["seconds"]
    for row in report["methods"].values():
        row["times_faster_than_dense"] = dense / row["seconds"]

    print(f"{args.height} x {args.width} grid, {args.channels} channels, 256 steps, float32")
    print(f"{report['device']}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'method':>10} {'seconds':>9} {'vs dense':>9} {'error':>9} {'peak MiB':>9}")
    for method, row in report["methods"].items():
        print(
            f"{method:>10} {row['seconds']:9.4f} {row['times_faster_than_dense']:8.1f}x "
            f"{row['largest_difference']:9.1e} {row['peak_memory_mib']:9.1f}"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
