r"""Time of the dense CRF's torch backend against pydensecrf, and how far their labels agree.

Both refine the same scores of the same image: pydensecrf on one core of the CPU, torch on the
device, with image and scores already there. Times are the minimum over the repeats, after a
warm-up. Agreement is the share of pixels with the same label, for each photograph, for the two
backgrounds that affinity labels are made with, after one iteration and after all of them.

Scores are like those of class activation maps: for each object two round blobs at random places
and faint noise, drawn at stride 8 and enlarged, its largest value 1; background (1 - max)^α. They
know nothing of the image, so that borders move far. Photographs are those given, shrunk, since the
exact CRF is quadratic in pixels and its kernels are so many pixels wide whatever the image's size.
Without any an image is made up, of shaded noisy regions.

    python benchmarks/dense_crf.py --image photographs/*.jpg --repeats 20
    python benchmarks/dense_crf.py --image photographs/*.jpg --shrink 3 --height 125 --width 167 \
        --device cpu --threads 1 --repeats 1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import device_name, held_mib, peak_mib, reset_peak, seconds, surroundings, write
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from wsss_affinity.layers import DenseCRF, add_background, normalize_cam

ALPHAS = (4.0, 32.0)


def photograph(path: Path, shrink: float) -> Tensor:
    with Image.open(path) as opened:
        size = [round(side / shrink) for side in opened.size]
        return torch.from_numpy(np.array(opened.convert("RGB").resize(size)))


def made_up(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, cells: int) -> Tensor:
        values = torch.randn(1, channels, cells, cells, generator=generator)
        return F.interpolate(values, (height, width), mode="bicubic")[0]

    regions = smooth(8, 5).argmax(0)
    colours = torch.randint(20, 236, (8, 3), generator=generator)[regions]
    grain = 6 * torch.randn(height, width, 3, generator=generator)
    return (colours + 12 * smooth(3, 8).permute(1, 2, 0) + grain).clamp(0, 255).byte()


def activation_maps(objects: int, height: int, width: int, seed: int) -> Tensor:
    """``(objects, height, width)``, see above."""
    generator = torch.Generator().manual_seed(seed)
    grid = -(-height // 8), -(-width // 8)
    y, x = (torch.linspace(0, side / max(grid), side) for side in grid)
    # two blobs an object, a tenth to a fifth of the long side wide
    centre = torch.rand(objects, 2, 2, generator=generator)
    spread = 0.1 + 0.1 * torch.rand(objects, 2, 1, 1, generator=generator)
    strength = 0.5 + 0.5 * torch.rand(objects, 2, 1, 1, generator=generator)
    down = y - y[-1] * centre[..., :1]
    across = x - x[-1] * centre[..., 1:]
    distance = down[..., :, None].square() + across[..., None, :].square()
    maps = (strength * (-distance / (2 * spread.square())).exp()).sum(1)
    noise = torch.rand(1, objects, 6, 6, generator=generator)
    maps = maps + 0.1 * F.interpolate(noise, grid, mode="bicubic")[0].clamp(0, 1)
    return normalize_cam(F.interpolate(maps[None], (height, width), mode="bilinear")[0])


def agreement(
    image: Tensor, device: str, iterations: int, objects: int, seed: int
) -> dict[str, Any]:
    height, width = image.shape[:2]
    maps = activation_maps(objects, height, width, seed)
    stacks = [add_background(maps, alpha) for alpha in ALPHAS]
    looks = [1, iterations]
    lattice = DenseCRF(backend="pydensecrf").snapshots(image, stacks, looks)
    stacks = [stack.to(device) for stack in stacks]
    exact = DenseCRF(backend="torch").snapshots(image.to(device), stacks, looks)
    shares = [
        [
            (left.argmax(0) == right.argmax(0).cpu()).float().mean().item()
            for left, right in zip(*pair, strict=True)
        ]
        for pair in zip(lattice, exact, strict=True)
    ]
    return {
        "height": height,
        "width": width,
        "after_one_iteration": [share for share, _ in shares],
        "after_all": [share for _, share in shares],
    }


def agreements(images: list[Tensor], args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for number, image in enumerate(images):
        row = agreement(image, args.device, args.iterations, args.objects, number)
        shares = ", ".join(
            f"{first:.2%} then {last:.2%} for α {alpha:g}"
            for alpha, first, last in zip(
                ALPHAS, row["after_one_iteration"], row["after_all"], strict=True
            )
        )
        print(f"{number:3d}: {row['height']} x {row['width']}, same labels {shares}", flush=True)
        rows.append(row)
    result: dict[str, Any] = {"images": rows, "alphas": ALPHAS, "objects": args.objects}
    for name in ("after_one_iteration", "after_all"):
        every = torch.tensor([row[name] for row in rows])
        result[name] = {"mean": every.mean().item(), "worst": every.min().item()}
        print(f"same labels {name}: mean {every.mean():.2%}, worst {every.min():.2%}")
    return result


def speed(image: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    height, width = image.shape[:2]
    maps = activation_maps(args.labels - 1, height, width, 0)
    scores = add_background(maps, ALPHAS[0])
    there, scores_there = image.to(args.device), scores.to(args.device)
    lattice = DenseCRF(num_iterations=args.iterations, backend="pydensecrf")
    exact = DenseCRF(num_iterations=args.iterations, backend="torch")
    before = seconds(lambda: lattice(image, scores), args.repeats, "cpu")
    after = seconds(lambda: exact(there, scores_there), args.repeats, args.device)
    # one more product than iterations, for the normalisation
    pairs = (height * width) ** 2 * (args.iterations + 1)
    report = {
        "height": height,
        "width": width,
        "labels": args.labels,
        "repeats": args.repeats,
        "pydensecrf_device": device_name("cpu"),
        "pydensecrf_seconds": before,
        "torch_seconds": after,
        "times_faster_than_pydensecrf": before / after,
        "pairs_per_second": pairs / after,
    }
    print(f"{height} x {width}, {args.labels} labels, {args.iterations} iterations")
    print(f"pydensecrf {before:9.4f} s, one core of {report['pydensecrf_device']}")
    print(f"torch      {after:9.4f} s, {args.device}")
    print(f"{before / after:.3g}x as fast, {pairs / after:.2e} pairs of pixels a second")
    if args.device == "cuda":
        held = held_mib(args.device)
        reset_peak(args.device)
        exact(there, scores_there)
        report["peak_memory_mib"] = peak_mib(args.device) - held
        print(f"{report['peak_memory_mib']:.1f} MiB at the peak, image and scores not counted")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, nargs="*", default=[], help="photographs")
    parser.add_argument("--shrink", type=float, default=1, help="divides the photographs' sides")
    parser.add_argument("--objects", type=int, default=2, help="labels but one, for agreement")
    parser.add_argument("--height", type=int, default=375, help="of the image that is timed")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--labels", type=int, default=21, help="for the time")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
    )
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # matrix products of the Gaussian kernel in plain float32
    torch.backends.cuda.matmul.allow_tf32 = False

    size = args.height, args.width
    images = [photograph(path, args.shrink) for path in args.image] or [made_up(*size)]
    timed = images[0].permute(2, 0, 1)[None].float()
    timed = F.interpolate(timed, size, mode="bicubic").clamp(0, 255).byte()[0].permute(1, 2, 0)
    report = {
        "image": "photographs" if args.image else "made up",
        "shrunk": args.shrink,
        "iterations": args.iterations,
        **surroundings(args.device),
        "speed": speed(timed.contiguous(), args),
        "agreement": agreements(images, args),
    }
    write(report, f"dense_crf_{args.device}", args.output)


if __name__ == "__main__":
    main()
