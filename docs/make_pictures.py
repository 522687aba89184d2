"""Draw the pictures of docs/method.md from a run on `shapes`, made first where there is none.

python docs/make_pictures.py output_dir=outputs --ids train_00219 train_00042
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import wsss_affinity as wa
from wsss_affinity.data.images import load_image, load_mask, voc_palette
from wsss_affinity.data.source import Sample
from wsss_affinity.data.transforms import to_tensor
from wsss_affinity.layers import Neighborhood, add_background
from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.pipeline import RunResult
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import load_trained
from wsss_affinity.pipeline.scores import (
    best_labels,
    finish_scores,
    read_labels,
    resize_scores,
)
from wsss_affinity.pipeline.storage import Records

#: an RGB image, or a map of values from 0 to 1
Tile = Image.Image | Tensor | NDArray[Any]

IMAGES = Path(__file__).parent / "images"
STEPS = (0, 1, 4, 16, 64, 256)
# wide enough to read, small enough for a repository
_WIDTH, _DPI = 8.0, 90
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Picture:
    """A training image, and what a run made of it.

    Attributes:
        sample: The image.
        cfg: The configuration of the run.
        result: What the run left.
        affinity_net: The trained AffinityNet.
    """

    sample: Sample
    cfg: DictConfig
    result: RunResult
    affinity_net: wa.AffinityNet

    @cached_property
    def image(self) -> Image.Image:
        """RGB, 8 bit."""
        return load_image(self.sample.image)

    @cached_property
    def cam(self) -> Tensor:
        """Activation maps of the classes present, ``(n, H, W)``."""
        maps = list(self.result.cam(self.sample.id).values())
        return resize_scores(torch.stack(maps), (self.image.height, self.image.width))

    @property
    def classes(self) -> Tensor:
        """Those that are present, 0-based, ``(n,)``."""
        return torch.tensor(self.sample.labels)

    @cached_property
    def affinity(self) -> Tensor:
        """Affinities ``(K, h, w)``."""
        pixels = self._tensor(self.affinity_net.backbone)
        stride = self.affinity_net.stride
        pad = (0, -pixels.shape[3] % stride, 0, -pixels.shape[2] % stride)
        with torch.inference_mode():
            affinity: Tensor = self.affinity_net(F.pad(pixels, pad))
        return affinity[0]

    def walked(self, num_steps: int) -> Tensor:
        """Scores after some steps, the background first, ``(n + 1, h, w)``."""
        section = self.cfg.walk
        scores = add_background(self.cam, section.alpha)[None]
        with torch.inference_mode():
            return self.affinity_net.propagate(
                self._tensor(self.affinity_net.backbone),
                scores,
                beta=section.beta,
                num_steps=num_steps,
            )[0]

    def mask(self, scores: Tensor) -> NDArray[np.uint8]:
        """The best label of scores with the background first, at the size of the image."""
        stride = self.affinity_net.stride
        size = self.image.height, self.image.width
        return best_labels(finish_scores(scores, size, stride), self.classes, background=True)

    def crf(self, alpha: float) -> NDArray[np.uint8]:
        """The label that the dense CRF of the affinity labels gives each pixel."""
        crf = wa.DenseCRF(**self.cfg.affinity_labels.crf)
        sharp = crf(np.asarray(self.image), add_background(self.cam, alpha))
        return best_labels(sharp, self.classes, background=True)

    @property
    def affinity_labels(self) -> NDArray[np.uint8]:
        """As stored."""
        folder = self.result.stages["affinity_labels"].path / "labels"
        return read_labels(Records(folder, ".png"), self.sample.id)

    @property
    def pseudo_mask(self) -> NDArray[np.uint8]:
        """As stored."""
        return self.result.mask(self.sample.id)

    @property
    def segmentation(self) -> NDArray[np.uint8]:
        """What the segmentation network says, no label given."""
        net = self.result.segmentation_net()
        with torch.inference_mode():
            scores = net.probabilities(self._tensor(net), flip=False)[0]
        return best_labels(scores, torch.arange(len(scores) - 1), background=True)

    @property
    def ground_truth(self) -> NDArray[np.uint8]:
        """For comparison only."""
        assert self.sample.mask is not None
        return load_mask(self.sample.mask)

    def _tensor(self, net: Any) -> Tensor:
        return to_tensor(self.image, net.mean, net.std)[None]


def cam(picture: Picture) -> Figure:
    """Activation maps, and backgrounds made of them."""
    names, maps = list(picture.result.cam(picture.sample.id)), picture.cam
    labels, walk = picture.cfg.affinity_labels, picture.cfg.walk
    alphas = (labels.alpha_low, walk.alpha, labels.alpha_high)
    figure, axes = row(1 + len(names) + len(alphas))
    show(axes[0], "image", picture.image)
    for axis, name, each in zip(axes[1:], names, maps, strict=False):
        show(axis, f"CAM of {name}", each)
    for axis, alpha in zip(axes[1 + len(names) :], alphas, strict=True):
        show(axis, f"background, α = {alpha:g}", add_background(maps, alpha)[0])
    return figure


def affinity_labels(picture: Picture) -> Figure:
    """The two dense CRFs, and the pixels that they make sure."""
    section = picture.cfg.affinity_labels
    figure, axes = row(5)
    show(axes[0], "image", picture.image)
    for axis, alpha in zip(axes[1:], (section.alpha_low, section.alpha_high), strict=False):
        show(axis, f"dense CRF, α = {alpha:g}", coloured(picture.crf(alpha), picture.image))
    show(axes[3], "affinity labels", coloured(picture.affinity_labels, picture.image))
    show(axes[4], "ground truth", coloured(picture.ground_truth, picture.image))
    return figure


def affinity(picture: Picture) -> Figure:
    """Affinities of one cell with its neighbours, and where neighbours differ."""
    net, beta = picture.affinity_net, picture.cfg.walk.beta
    discs = around(picture.affinity, net.radius)
    # of the cells whose disc is whole, the one whose neighbours differ most: it is at an edge
    known = (~discs.isnan()).sum(-1)
    spread = torch.where(discs.isnan(), 0, discs).std(-1)
    spread[known < known.max()] = -1
    y, x = divmod(int(spread.argmax()), spread.shape[1])
    disc = discs[y, x].view(2 * net.radius - 1, -1)
    figure, axes = row(4)
    show(axes[0], "image, and one cell's disc", picture.image)
    for side in (1, len(disc)):  # the cell, and all that its disc touches
        size, before = side * net.stride, side // 2
        corner = (x - before) * net.stride - 0.5, (y - before) * net.stride - 0.5
        axes[0].add_patch(Rectangle(corner, size, size, fill=False, edgecolor="white"))
    show(axes[1], "affinities a of that cell", disc)
    show(axes[2], f"its weights a^{beta:g}", disc**beta)
    show(axes[3], "1 - a of the next cells", boundaries(picture.affinity, net.radius))
    return figure


def walk(picture: Picture) -> Figure:
    """The share of a class in the scores, and the best label, as the walk goes on."""
    height = 0.4 + 2 * _WIDTH / len(STEPS) * picture.image.height / picture.image.width
    figure = Figure((_WIDTH, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots(2, len(STEPS))
    for column, num_steps in zip(axes.T, STEPS, strict=True):
        scores = picture.walked(num_steps)
        share = scores / scores.sum(0, keepdim=True).clamp_min(1e-6)
        title = "1 step" if num_steps == 1 else f"{num_steps} steps"
        show(column[0], title, 1 - share[0])
        show(column[1], "", coloured(picture.mask(scores), picture.image))
    return figure


def masks(picture: Picture) -> Figure:
    """What is made of the walked scores."""
    figure, axes = row(5)
    show(axes[0], "image", picture.image)
    walked = picture.mask(picture.walked(picture.cfg.walk.num_steps))
    for axis, title, mask in (
        (axes[1], "walk, best label", walked),
        (axes[2], "pseudo-mask, after CRF", picture.pseudo_mask),
        (axes[3], "segmentation", picture.segmentation),
        (axes[4], "ground truth", picture.ground_truth),
    ):
        show(axis, title, coloured(mask, picture.image))
    return figure


def steps(pictures: Sequence[Picture]) -> Figure:
    """All steps, one row an image."""
    labels = "image", "CAM", "affinity labels", "boundaries", "walk"
    titles = (*labels, "pseudo-mask", "segmentation", "ground truth")
    height = 0.3 + len(pictures) * _WIDTH / len(titles)
    figure = Figure((_WIDTH, height), dpi=_DPI, layout="constrained")
    for picture, axes in zip(
        pictures, figure.subplots(len(pictures), len(titles), squeeze=False), strict=True
    ):
        walked = picture.walked(picture.cfg.walk.num_steps)
        tiles: tuple[Tile, ...] = (
            picture.image,
            picture.cam.amax(0),
            coloured(picture.affinity_labels, picture.image),
            boundaries(picture.affinity, picture.affinity_net.radius),
            1 - walked[0] / walked.sum(0).clamp_min(1e-6),
            *(
                coloured(mask, picture.image)
                for mask in (picture.pseudo_mask, picture.segmentation, picture.ground_truth)
            ),
        )
        first = picture is pictures[0]
        for axis, title, tile in zip(axes, titles, tiles, strict=True):
            show(axis, title if first else "", tile)
    return figure


def row(count: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure of some square panels side by side."""
    figure = Figure((_WIDTH, 0.3 + _WIDTH / count), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(1, count)


def show(axis: Axes, title: str, tile: Tile) -> None:
    """Draw one panel."""
    axis.imshow(np.asarray(tile), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=7)
    axis.axis("off")


def coloured(mask: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
    """Lay the colours of a mask over a dimmed image; unsure pixels are grey."""
    colours = voc_palette()
    colours[UNSURE] = _GREY
    return (0.3 * np.asarray(image) + 0.7 * colours[mask]).astype(np.uint8)


def around(planes: Tensor, radius: int) -> Tensor:
    """Affinities of each cell in all directions, ``(h, w, (2 radius - 1)²)``.

    NaN outside the disc and outside the image.
    """
    _, height, width = planes.shape
    side = 2 * radius - 1
    discs = planes.new_full((height, width, side, side), torch.nan)
    discs[:, :, radius - 1, radius - 1] = 1
    for plane, (dy, dx) in zip(planes, Neighborhood(radius).pairs, strict=True):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                discs[y, x, radius - 1 + dy, radius - 1 + dx] = plane[y, x]
                discs[y + dy, x + dx, radius - 1 - dy, radius - 1 - dx] = plane[y, x]
    return discs.flatten(2)


def boundaries(planes: Tensor, radius: int) -> Tensor:
    """How little each cell has to do with the one below or to the right, ``(h, w)``."""
    neighborhood = Neighborhood(radius)
    near = [k for k, (dy, dx) in enumerate(neighborhood.pairs) if dy + abs(dx) == 1]
    inside = neighborhood.valid(*planes.shape[1:])[near]
    return torch.where(inside, 1 - planes[near], 0).amax(0)


FIGURES = {
    "cam": cam,
    "labels": affinity_labels,
    "affinity": affinity,
    "walk": walk,
    "masks": masks,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pipeline, or reuse it, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of the configuration, as key=value")
    parser.add_argument(
        "--ids", nargs="+", help="images to show, the first of them in all pictures"
    )
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the pictures")
    args = parser.parse_args(arguments)
    cfg = wa.load_config(["experiment=shapes", *args.overrides])
    result = wa.run_pipeline(cfg)
    assert result.source is not None  # no dry run
    net = Context(cfg, result.source).affinity_net()
    load_trained(net, result.stages["train_affinity"].path)
    samples = {sample.id: sample for sample in result.source.train}
    ids = args.ids or list(samples)[:2]
    pictures = [Picture(samples[id], cfg, result, net) for id in ids]
    figures = {name: draw(pictures[0]) for name, draw in FIGURES.items()}
    args.images.mkdir(parents=True, exist_ok=True)
    for name, figure in {"steps": steps(pictures), **figures}.items():
        path = args.images / f"method_{name}.png"
        # the same file from the same run
        figure.savefig(path, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.05)
        print(path)


if __name__ == "__main__":
    main()
