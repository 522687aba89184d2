"""Time of the dense CRF's torch backend against pydensecrf, and how far they agree.

Both refine the same scores of the same image: pydensecrf on one core of the CPU, torch on the
device, with image and scores already there. Times are the minimum over the repeats, after a
warm-up. The image is a photograph if one is given, and shaded noisy regions otherwise.

    python benchmarks/dense_crf.py --repeats 3 --image photograph.jpg
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from wsss_affinity.layers import dense_crf


def inputs(height: int, width: int, labels: int, photograph: Path | None) -> tuple[Tensor, Tensor]:
    """An image, and scores like a network's: smooth, and unsure at the borders."""
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, cells: int) -> Tensor:
        values = torch.randn(1, channels, cells, cells, generator=generator)
        return F.interpolate(values, (height, width), mode="bicubic")[0]

    guess = 4 * smooth(labels, 5)
    scores = (guess + smooth(labels, 10)).softmax(0)
    if photograph:
        with Image.open(photograph) as opened:
            pixels = np.array(opened.convert("RGB").resize((width, height)))
        return torch.from_numpy(pixels), scores
    colours = torch.randint(20, 236, (labels, 3), generator=generator)[guess.argmax(0)]
    grain = 6 * torch.randn(height, width, 3, generator=generator)
    image = colours + 12 * smooth(3, 8).permute(1, 2, 0) + grain
    return image.clamp(0, 255).byte(), scores


def seconds(refine: Callable[[], Tensor], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        # the copy waits for the device
        refine()[0, 0, 0].item()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--labels", type=int, default=21)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--image", type=Path, help="a photograph, resized to height and width")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    kind = "cuda" if args.device.startswith("cuda") else "cpu"
    results = Path(__file__).parent / "results"
    output = args.output or results / f"dense_crf_{kind}.json"

    image, scores = inputs(args.height, args.width, args.labels, args.image)
    there, scores_there = image.to(args.device), scores.to(args.device)
    options: dict[str, Any] = {"num_iterations": args.iterations}

    def lattice() -> Tensor:
        return dense_crf(image, scores, backend="pydensecrf", **options)

    def exact() -> Tensor:
        return dense_crf(there, scores_there, backend="torch", **options)

    difference = (exact().cpu() - lattice()).abs()
    agree = exact().cpu().argmax(0) == lattice().argmax(0)
    before, after = seconds(lattice, args.repeats), seconds(exact, args.repeats)
    # one more product than iterations, for the normalisation
    pairs = (args.height * args.width) ** 2 * (args.iterations + 1)
    report = {
        "height": args.height,
        "width": args.width,
        "labels": args.labels,
        "iterations": args.iterations,
        "image": "photograph" if args.image else "made up",
        "repeats": args.repeats,
        "device": device_name(args.device),
        "pydensecrf_device": device_name("cpu"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "pydensecrf_seconds": before,
        "torch_seconds": after,
        "times_faster_than_pydensecrf": before / after,
        "pairs_per_second": pairs / after,
        "same_labels": agree.float().mean().item(),
        "mean_difference": difference.mean().item(),
    }
    print(f"{args.height} x {args.width}, {args.labels} labels, {args.iterations} iterations")
    print(f"pydensecrf {before:9.4f} s, one core of {report['pydensecrf_device']}")
    print(f"torch      {after:9.4f} s, {report['device']}, torch {torch.__version__}")
    print(f"{before / after:.2f}x as fast, {pairs / after:.2e} pairs of pixels a second")
    print(f"{report['same_labels']:.2%} of the pixels get the same label")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
