"""Images a second of label making, and where the time goes.

The stages make_cam, affinity_labels and random_walk go over a few generated pictures in one
process, one picture after the other, with the library's own pieces and the stages' settings:
activation maps at several scales, two dense CRFs for the affinity labels, affinities, the walk,
a dense CRF on its result, and all files that are read and written on the way. Networks have random
weights, since time does not hang on them. Each part ends when the device is done with it. All
numbers are of the fastest of the passes after a warm-up, so that parts sum to the whole.

The stages share their CPU work among processes, which is not measured here. With `--published` the
passes alternate with others whose walk is the published one, eight squarings of the N×N matrix.

    python benchmarks/label_making.py --published
    python benchmarks/label_making.py --device cuda --backbone resnet38d --published
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import surroundings, wait, write
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsss_affinity.data.images import load_image, save_mask
from wsss_affinity.data.shapes import SHAPES_CLASSES, draw
from wsss_affinity.data.soft_labels import affinity_labels_of
from wsss_affinity.data.transforms import to_tensor
from wsss_affinity.layers import DenseCRF, add_background, normalize_cam, random_walk
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.pipeline.scores import (
    best_labels,
    decode_scores,
    encode_scores,
    finish_scores,
    read_scores,
    resize_scores,
)
from wsss_affinity.pipeline.storage import RecordWriter

SCALES = (1.0, 0.5, 1.5, 2.0)
STORE_STRIDE = 4
ALPHA_LOW, ALPHA_HIGH = 4.0, 32.0
# the background of the walk, and those that walk along to be scored
ALPHAS = (16.0, 4.0, 8.0, 16.0)
CRF = DenseCRF()
FINAL_CRF = DenseCRF(num_iterations=1)


@dataclass
class Clock:
    """Seconds by stage and part; every moment between two laps counts."""

    device: str
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str, part: str) -> None:
        """Count what passed since the last lap for a part."""
        wait(self.device)
        now = time.perf_counter()
        parts = self.seconds.setdefault(stage, {})
        parts[part] = parts.get(part, 0) + now - self.last
        self.last = now

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(sum(parts.values()) for parts in self.seconds.values())


@dataclass
class Pictures:
    """Pictures in a folder: photographs, with the classes on each."""

    folder: Path
    classes: list[Tensor]

    @classmethod
    def make(cls, folder: Path, count: int, height: int, width: int) -> Pictures:
        """Draw so many and write them as JPEG; each shows an object."""
        rng, classes = np.random.default_rng(0), []
        for index in range(count):
            pixels, _, labels = draw(rng, 128)
            while not labels:
                pixels, _, labels = draw(rng, 128)
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            image.save(folder / f"{index}.jpg", quality=95)
            classes.append(torch.tensor(sorted(set(labels))))
        return cls(folder, classes)


class LabelMaker:
    """The three stages over pictures."""

    def __init__(self, args: argparse.Namespace, pictures: Pictures) -> None:
        torch.manual_seed(0)
        self.device, self.crf_device = args.device, args.crf_device
        self.pictures = pictures
        self.scores = RecordWriter(pictures.folder, ".npz")
        self.cam_net = CAMNet(args.backbone, len(SHAPES_CLASSES), output_stride=args.output_stride)
        self.affinity_net = AffinityNet(args.backbone)
        for net in (self.cam_net, self.affinity_net):
            net.eval().to(args.device).to(memory_format=torch.channels_last)

    def run(self, method: Any = "auto", count: int | None = None) -> tuple[Clock, list[Any]]:
        """Time one pass and return the masks it makes; the walk goes by ``method``."""
        clock, masks = Clock("cuda" if "cuda" in (self.device, self.crf_device) else "cpu"), []
        with torch.inference_mode():
            for index, classes in enumerate(self.pictures.classes[:count]):
                self._make_cam(clock, str(index), classes)
                self._affinity_labels(clock, str(index))
                masks.append(self._random_walk(clock, str(index), method))
        return clock, masks

    def _path(self, name: str) -> Path:
        return self.pictures.folder / name

    def _tensor(self, net: CAMNet | AffinityNet, name: str) -> Tensor:
        image = load_image(self._path(f"{name}.jpg"))
        return to_tensor(image, net.backbone.mean, net.backbone.std)[None].to(self.device)

    def _crf(self, crf: DenseCRF, image: NDArray[np.uint8], scores: Tensor) -> Tensor:
        return crf(image, scores.to(self.crf_device)).cpu()

    def _make_cam(self, clock: Clock, name: str, classes: Tensor) -> None:
        image = self._tensor(self.cam_net, name)
        clock.lap("make_cam", "read")
        size = image.shape[2], image.shape[3]
        grid = -(-size[0] // STORE_STRIDE), -(-size[1] // STORE_STRIDE)
        cam = self.cam_net.multi_scale_cam(image, size=grid, scales=SCALES)[0].cpu()
        cam = normalize_cam(cam[classes])
        clock.lap("make_cam", "maps")
        self.scores.write(f"{name}_cam", encode_scores(classes, cam, size))
        clock.lap("make_cam", "write")

    def _affinity_labels(self, clock: Clock, name: str) -> None:
        image = np.asarray(load_image(self._path(f"{name}.jpg")))
        classes, cam, size = read_scores(self.scores.stored, f"{name}_cam")
        cam = resize_scores(cam, size)
        clock.lap("affinity_labels", "read")
        low = self._crf(CRF, image, add_background(cam, ALPHA_LOW))
        high = self._crf(CRF, image, add_background(cam, ALPHA_HIGH))
        labels = affinity_labels_of(low, high, classes).numpy().astype(np.uint8)
        clock.lap("affinity_labels", "dense CRFs")
        save_mask(self._path(f"{name}_labels.png"), labels)
        clock.lap("affinity_labels", "write")

    def _random_walk(self, clock: Clock, name: str, method: Any) -> NDArray[np.uint8]:
        net, stride = self.affinity_net, self.affinity_net.stride
        image = self._tensor(net, name)
        classes, cam, size = read_scores(self.scores.stored, f"{name}_cam")
        cam = resize_scores(cam, size)
        backgrounds = [add_background(cam, alpha)[:1] for alpha in ALPHAS]
        scores = torch.cat([*backgrounds, cam])[None].to(self.device)
        clock.lap("random_walk", "read")
        # the parts of AffinityNet.propagate
        pad = (0, -size[1] % stride, 0, -size[0] % stride)
        affinity = net(F.pad(image, pad))
        clock.lap("random_walk", "affinities")
        inside = F.pad(scores.new_ones(1, 1, *size), pad)
        pooled = F.avg_pool2d(F.pad(scores, pad), stride) / F.avg_pool2d(inside, stride)
        walked = random_walk(pooled, affinity, radius=net.radius, method=method)[0].cpu()
        clock.lap("random_walk", "walk")
        first, rest = walked[: len(ALPHAS)], walked[len(ALPHAS) :]
        record = encode_scores(classes, torch.cat([first[:1], rest]), size, backgrounds=first[1:])
        self.scores.write(f"{name}_walk", record)
        clock.lap("random_walk", "write")
        pixels = np.asarray(load_image(self._path(f"{name}.jpg")))
        classes, scores, size = decode_scores(record, name)
        scores = finish_scores(scores, size, stride)
        clock.lap("random_walk", "read")
        mask = best_labels(self._crf(FINAL_CRF, pixels, scores), classes, background=True)
        clock.lap("random_walk", "dense CRF")
        save_mask(self._path(f"{name}_mask.png"), mask)
        clock.lap("random_walk", "write")
        return mask


def measure(args: argparse.Namespace, maker: LabelMaker) -> dict[str, Any]:
    methods = ("auto", "dense") if args.published else ("auto",)
    fastest: dict[str, Clock] = {}
    masks = {}
    for method in methods:
        maker.run(method, count=1)
    for _ in range(args.repeats):
        for method in methods:
            clock, masks[method] = maker.run(method)
            fastest[method] = min(fastest.get(method, clock), clock, key=lambda c: c.total)
    clock = fastest["auto"]
    result: dict[str, Any] = {
        "images_a_second": args.images / clock.total,
        "seconds_an_image": clock.total / args.images,
        "stages": {
            stage: {
                part: {"seconds_an_image": spent / args.images, "share": spent / clock.total}
                for part, spent in parts.items()
            }
            for stage, parts in clock.seconds.items()
        },
    }
    if args.published:
        dense = fastest["dense"]
        ours, theirs = (c.seconds["random_walk"]["walk"] for c in (clock, dense))
        result["published"] = {
            "images_a_second": args.images / dense.total,
            "walk_seconds_an_image": theirs / args.images,
            "walk_times_faster": theirs / ours,
            "whole_times_faster": dense.total / clock.total,
            "same_labels": float(np.equal(masks["auto"], masks["dense"]).mean()),
        }
    return result


def show(report: dict[str, Any]) -> None:
    for stage, parts in report["stages"].items():
        for part, row in parts.items():
            print(
                f"{stage:>16} {part:<11} {1e3 * row['seconds_an_image']:9.1f} ms an image "
                f"{row['share']:6.1%}"
            )
    print(f"{report['images_a_second']:.3f} images a second")
    if "published" in report:
        row = report["published"]
        print(
            f"the published walk takes {1e3 * row['walk_seconds_an_image']:.1f} ms an image: ours "
            f"is {row['walk_times_faster']:.1f}x faster, the whole {row['whole_times_faster']:.2f}x"
            f"; masks agree on {row['same_labels']:.2%} of the pixels"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--output-stride", type=int, default=16, help="of the classifier")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--crf-device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cpu, as the stages do: pydensecrf; cuda: torch",
    )
    parser.add_argument("--published", action="store_true", help="the published walk, too")
    parser.add_argument("--output", type=Path, help="default: a file in results/ beside this one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    report: dict[str, Any] = {
        "backbone": args.backbone,
        "output_stride": args.output_stride,
        "height": args.height,
        "width": args.width,
        "images": args.images,
        "scales": SCALES,
        "crf_iterations": [CRF.num_iterations, FINAL_CRF.num_iterations],
        "crf_device": args.crf_device,
        "repeats": args.repeats,
        **surroundings(args.device),
    }
    with tempfile.TemporaryDirectory() as folder:
        pictures = Pictures.make(Path(folder), args.images, args.height, args.width)
        report["classes_an_image"] = sum(map(len, pictures.classes)) / args.images
        report.update(measure(args, LabelMaker(args, pictures)))
    show(report)

    write(report, f"label_making_{args.device}", args.output)


if __name__ == "__main__":
    main()
