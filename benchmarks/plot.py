"""Draw the figures of docs/performance.md from the results beside this script.

python benchmarks/plot.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import RESULTS
from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# told apart also by those who see fewer colours (Okabe & Ito)
METHODS = {
    "dense": ("dense, the published way", "#d55e00"),
    "power": ("power", "#0072b2"),
    "chebyshev": ("Chebyshev, the default", "#009e73"),
}
PARTS = {
    ("make_cam", "maps"): ("activation maps", "#56b4e9"),
    ("affinity_labels", "dense CRFs"): ("CRFs of the labels", "#0072b2"),
    ("random_walk", "affinities"): ("affinities", "#009e73"),
    ("random_walk", "walk"): ("walk", "#d55e00"),
    ("random_walk", "dense CRF"): ("CRF of the mask", "#cc79a7"),
}


def walk(report: dict[str, Any]) -> Figure:
    """Time against pixels: ours on all grids, the others where they were compared."""
    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    compared = [row for row in report["against_dense"].values() if row.get("batch", 1) == 1]
    points = {
        "dense": [(row["pixels"], row["dense_seconds"]) for row in compared],
        "power": [(row["pixels"], row["power"]["seconds"]) for row in compared],
        "chebyshev": [(row["pixels"], row["seconds"]) for row in report["pixels"]["grids"]],
    }
    for method, (name, colour) in METHODS.items():
        axes.loglog(*zip(*points[method], strict=True), "o-", color=colour, label=name)
    for row in report["pixels"]["grids"]:
        place = row["pixels"], row["seconds"]
        axes.annotate(row["grid"], place, (5, -10), textcoords="offset points", fontsize=7)
    axes.margins(0.12)  # for the names
    axes.set(xlabel="pixels of the grid", ylabel="seconds an image")
    axes.set_title(f"The walk, {report['num_steps']} steps, {setting(report)}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def label_making(report: dict[str, Any]) -> Figure:
    """Where the time of an image goes, and where it went with the published walk."""
    figure = Figure((6, 2.4), layout="constrained")
    axes = figure.subplots()
    spent = {
        (stage, part): row["seconds_an_image"]
        for stage, parts in report["stages"].items()
        for part, row in parts.items()
    }
    bars = {"ours": spent}
    if "published" in report:
        walked = report["published"]["walk_seconds_an_image"]
        bars["published\nwalk"] = {**spent, ("random_walk", "walk"): walked}
    starts = [0.0] * len(bars)
    files = [key for key in spent if key not in PARTS]
    segments = [(name, colour, [key]) for key, (name, colour) in PARTS.items()]
    for name, colour, keys in [*segments, ("files", "#999999", files)]:
        widths = [sum(bar[key] for key in keys) for bar in bars.values()]
        axes.barh(list(bars), widths, left=starts, color=colour, label=name)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="seconds an image")
    axes.set_title(f"Label making, {report['backbone']}, {setting(report)}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def setting(report: dict[str, Any]) -> str:
    return f"{report['device']}, CPU threads: {report['threads']}"


FIGURES = {"random_walk": walk, "label_making": label_making}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    args = parser.parse_args()
    # letters as letters, and the same file from the same results
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "wsss_affinity"})
    args.images.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        for path in sorted(args.results.glob(f"{name}_*.json")):
            figure = draw(json.loads(path.read_text()))
            target = args.images / f"{path.stem}.svg"
            figure.savefig(target, metadata={"Date": None})
            print(target)


if __name__ == "__main__":
    main()
