"""Products of the walk's matrix with the states: CSR against shifted multiply-adds.

Both multiply the same matrix and states of one image as the walk does in every step:
`out += L x`. Times are the minimum over the repeats after a warm-up.

    python benchmarks/walk_products.py
    python benchmarks/walk_products.py --device cuda --repeats 100
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import seconds, surroundings, write

from wsss_affinity.layers import Neighborhood
from wsss_affinity.layers.walk_matrix import CSRProducts, ShiftedProducts, WalkMatrix

GRIDS = {"VOC/8": (47, 63), "VOC/4": (94, 125), "2048x1024/8": (128, 256)}
PRODUCTS = {"csr": CSRProducts, "shifted": ShiftedProducts}


def measure(grid: tuple[int, int], args: argparse.Namespace) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    neighborhood = Neighborhood()
    weights = torch.rand(1, len(neighborhood), *grid, generator=generator)
    weights *= neighborhood.valid(*grid)
    matrix = WalkMatrix(weights.to(args.device), neighborhood)
    x = torch.rand(1, *grid, args.channels, generator=generator).to(args.device)
    row, results = {}, []
    for name, kind in PRODUCTS.items():
        products = kind(matrix.planes, neighborhood)
        out = torch.zeros_like(x)
        products.add_product(out, x)
        results.append(out.clone())
        row[f"{name}_seconds"] = seconds(
            lambda products=products, out=out: products.add_product(out, x),
            args.repeats,
            args.device,
        )
    row["times_faster"] = row["shifted_seconds"] / row["csr_seconds"]
    row["largest_difference"] = (results[0] - results[1]).abs().max().item()
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
    write(report, f"walk_products_{args.device}", args.output)


if __name__ == "__main__":
    main()
