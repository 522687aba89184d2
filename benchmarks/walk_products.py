"""Products of the walk's matrix with the states, CSR against shifted multiply-adds, and the walk.

Both multiply the same matrix and states of one image as the walk does in every step:
`out += L x`. On the CPU the whole walk, 256 steps by Chebyshev, is timed as well: compiled by LLVM
and by products. Times are the minimum over the repeats after a warm-up.

    python benchmarks/walk_products.py
    python benchmarks/walk_products.py --device cuda --repeats 100
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import seconds, surroundings, write
from torch import Tensor

from wsss_affinity.layers import Neighborhood, random_walk, walk_llvm
from wsss_affinity.layers.walk_matrix import CSRProducts, ShiftedProducts, normalized

GRIDS = {"VOC/8": (47, 63), "VOC/4": (94, 125), "2048x1024/8": (128, 256)}
PRODUCTS = {"csr": CSRProducts, "shifted": ShiftedProducts}


def measure(grid: tuple[int, int], args: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    neighborhood = Neighborhood()
    weights = torch.rand(1, len(neighborhood), *grid, generator=generator)
    weights *= neighborhood.valid(*grid)
    row = products(weights, args, generator)
    if args.device == "cpu":
        row["walk"] = walks(weights, args, generator)
    return row


def products(
    weights: Tensor, args: argparse.Namespace, generator: torch.Generator
) -> dict[str, Any]:
    grid, neighborhood = weights.shape[2:], Neighborhood()
    planes, _ = normalized(weights.to(args.device), neighborhood)
    x = torch.rand(1, *grid, args.channels, generator=generator).to(args.device)
    row: dict[str, Any] = {}
    results = []
    for name, kind in PRODUCTS.items():
        made = kind(planes, neighborhood)
        out = torch.zeros_like(x)
        made.add_product(out, x)
        results.append(out.clone())
        row[f"{name}_seconds"] = seconds(
            partial(made.add_product, out, x), args.repeats, args.device
        )
    row["times_faster"] = row["shifted_seconds"] / row["csr_seconds"]
    row["largest_difference"] = (results[0] - results[1]).abs().max().item()
    return row


def walks(weights: Tensor, args: argparse.Namespace, generator: torch.Generator) -> dict[str, Any]:
    """Seconds of the whole walk; None by LLVM where :func:`walk_llvm.available` has it not."""
    scores = torch.rand(1, args.channels, *weights.shape[2:], generator=generator)
    walk = partial(random_walk, scores, weights)
    row: dict[str, Any] = {}
    with mock.patch.object(walk_llvm, "walk", wraps=walk_llvm.walk) as compiled:
        expected = walk()
        row["llvm_seconds"] = seconds(walk, args.repeats, "cpu") if compiled.called else None
    with mock.patch.object(walk_llvm, "available", return_value=False):
        row["products_seconds"] = seconds(walk, args.repeats, "cpu")
        row["largest_difference"] = (walk() - expected).abs().max().item()
    if row["llvm_seconds"]:
        row["times_faster"] = row["products_seconds"] / row["llvm_seconds"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    # the walk rounds 21 up to a multiple of four on the CPU
    parser.add_argument("--channels", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        "channels": args.channels,
        "radius": 5,
        "dtype": "float32",
        "repeats": args.repeats,
        **surroundings(args.device),
    }
    report["grids"] = {name: measure(grid, args) for name, grid in GRIDS.items()}
    for name, row in report["grids"].items():
        print(
            f"{name:>12}: CSR {1e6 * row['csr_seconds']:9.1f} µs, shifted "
            f"{1e6 * row['shifted_seconds']:9.1f} µs a product, {row['times_faster']:.1f}x"
        )
        walked = row.get("walk", {})
        if "times_faster" in walked:
            print(
                f"{name:>12}: LLVM {1e3 * walked['llvm_seconds']:9.2f} ms, products "
                f"{1e3 * walked['products_seconds']:9.2f} ms a walk, "
                f"{walked['times_faster']:.2f}x"
            )
    write(report, f"walk_products_{args.device}", args.output)


if __name__ == "__main__":
    main()
