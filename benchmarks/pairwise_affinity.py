"""Time and memory of pairwise_affinity and its loss against the gather formulation.

Both take a batch of features and label maps through affinities and loss, forward and backward, and
must agree. The gather formulation is the published one: it selects the features of both pixels of
each pair by index, as tensors of shape (B, C, K, N), and averages the loss over three masks. It
leaves out the pairs that ``border="psa"`` leaves out; ours computes all affinities, and leaves them
out of the loss. Runs of the two alternate; times are the minimum over the repeats, after a warm-up.
Memory is what is held at the peak, inputs and their gradient included: on the CPU by a fresh
process, over what it held before the inputs were made; on CUDA in tensors.

    python benchmarks/pairwise_affinity.py --repeats 3
    python benchmarks/pairwise_affinity.py --repeats 20 --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import held_mib, in_fresh_process, peak_mib, reset_peak, surroundings, wait, write
from torch import Tensor

from wsss_affinity.layers import Neighborhood, pairwise_affinity
from wsss_affinity.losses import affinity_loss

RADIUS = 5
EPS = 1e-5


def inputs(batch: int, channels: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, channels, size, size, generator=generator)
    # patches of one label, as on photographs; a tenth of them unsure
    values = torch.tensor([0] * 5 + [1, 1, 2, 7, 255])
    patches = torch.randint(len(values), (batch, size // 4 + 1, size // 4 + 1), generator=generator)
    labels = values[patches].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :size, :size]
    return features.to(device).requires_grad_(), labels.to(device)


def ours(features: Tensor, labels: Tensor) -> Tensor:
    return affinity_loss(pairwise_affinity(features, RADIUS), labels, RADIUS, "psa")["loss"]


def gather(features: Tensor, labels: Tensor) -> Tensor:
    height, width = labels.shape[1:]
    rim = RADIUS - 1
    pixels = torch.arange(height * width, device=labels.device).view(height, width)
    source = pixels[: height - rim, rim : width - rim].flatten()
    dy, dx = Neighborhood(RADIUS).offsets.to(labels.device).unbind(1)
    target = source + (dy * width + dx)[:, None]

    flat = features.flatten(2)
    first = flat.index_select(2, source).unsqueeze(2)
    second = flat.index_select(2, target.flatten()).unflatten(2, target.shape)
    affinity = torch.exp(-(second - first).abs().mean(1))

    first = labels.flatten(1).index_select(1, source).unsqueeze(1)
    second = labels.flatten(1).index_select(1, target.flatten()).unflatten(1, target.shape)
    sure = (first != 255) & (second != 255)
    bg = (sure & (first == second) & (first == 0)).float()
    fg = (sure & (first == second) & (first != 0)).float()
    neg = (sure & (first != second)).float()
    terms = [(pairs * -(affinity + EPS).log()).sum() / (pairs.sum() + EPS) for pairs in (bg, fg)]
    last = (neg * -(1 + EPS - affinity).log()).sum() / (neg.sum() + EPS)
    return terms[0] / 4 + terms[1] / 4 + last / 2


FORMULATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gather": gather, "ours": ours}


def run(name: str, features: Tensor, labels: Tensor) -> tuple[float, Tensor, float]:
    """Loss, gradient and seconds."""
    features.grad = None
    wait(features.device.type)
    start = time.perf_counter()
    loss = FORMULATIONS[name](features, labels)
    loss.backward()
    wait(features.device.type)
    seconds = time.perf_counter() - start
    assert features.grad is not None
    return loss.item(), features.grad, seconds


def memory(name: str, args: argparse.Namespace) -> float:
    """Mebibytes at the peak, in this process."""
    # a first run brings in the libraries, which are no part of the formulation's memory
    run(name, *inputs(1, 2, 8, args.device))
    reset_peak(args.device)
    before = held_mib(args.device)
    run(name, *inputs(args.batch, args.channels, args.size, args.device))
    return peak_mib(args.device) - before


def memory_in_a_fresh_process(name: str, args: argparse.Namespace) -> float:
    options: list[Any] = ["--memory-of", name]
    for option in ("batch", "channels", "size", "threads", "device"):
        options += [f"--{option}", getattr(args, option)]
    return in_fresh_process(__file__, *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=448)
    parser.add_argument("--size", type=int, default=56, help="rows and columns of the feature grid")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    parser.add_argument("--memory-of", choices=FORMULATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.memory_of:
        print(memory(args.memory_of, args))
        return

    rows = {
        name: {"peak_memory_mib": memory_in_a_fresh_process(name, args)} for name in FORMULATIONS
    }
    features, labels = inputs(args.batch, args.channels, args.size, args.device)
    loss, gradient, _ = run("gather", features, labels)
    our_loss, our_gradient, _ = run("ours", features, labels)
    times: dict[str, list[float]] = {name: [] for name in FORMULATIONS}
    for _ in range(args.repeats):
        for name in FORMULATIONS:
            times[name].append(run(name, features, labels)[2])
    for name, row in rows.items():
        row["seconds"] = min(times[name])

    report: dict[str, Any] = {
        "batch": args.batch,
        "channels": args.channels,
        "size": args.size,
        "radius": RADIUS,
        "dtype": "float32",
        "repeats": args.repeats,
        **surroundings(args.device),
        "formulations": rows,
        "times_faster": rows["gather"]["seconds"] / rows["ours"]["seconds"],
        "times_less_memory": rows["gather"]["peak_memory_mib"] / rows["ours"]["peak_memory_mib"],
        "loss_difference": abs(our_loss - loss),
        "gradient_difference": ((our_gradient - gradient).norm() / gradient.norm()).item(),
    }
    print(f"{args.batch} x {args.channels} x {args.size} x {args.size}, float32, radius {RADIUS}")
    print(f"{'':>8} {'seconds':>9} {'peak MiB':>9}")
    for name, row in rows.items():
        print(f"{name:>8} {row['seconds']:9.4f} {row['peak_memory_mib']:9.1f}")
    print(
        f"{report['times_faster']:.1f}x faster, {report['times_less_memory']:.1f}x less memory; "
        f"loss differs by {report['loss_difference']:.1e}, "
        f"gradient by {report['gradient_difference']:.1e} of its norm"
    )
    write(report, f"pairwise_affinity_{args.device}", args.output)


if __name__ == "__main__":
    main()
