"""The contact sheet: a few images and all that was made of them, side by side."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from wsss_affinity.data.images import load_image, voc_palette
from wsss_affinity.data.source import Sample
from wsss_affinity.data.transforms import to_tensor
from wsss_affinity.files import write_bytes
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.pipeline.context import Context, leave_out
from wsss_affinity.pipeline.fit import load_trained
from wsss_affinity.pipeline.predict import load_own_network
from wsss_affinity.pipeline.scores import best_labels, read_labels, read_scores, resize_scores
from wsss_affinity.pipeline.storage import Records

Panel = Callable[[Sample, Image.Image], "Image.Image | None"]
_WIDTH, _MARGIN, _TITLE = 180, 6, 16
_GREY = np.array([96, 96, 96], dtype=np.float64)


def contact_sheet(context: Context, path: Path, num_images: int) -> None:
    """Draw one row an image and one column a stage, as far as the stages were run.

    Args:
        context: Its ``inputs`` say which columns there are.
        path: The PNG to write.
        num_images: Rows, taken evenly from the scored images (or from all, where none is scored).
    """
    failed = [problem for known in context.failed.values() for problem in known]
    pool = leave_out(context.source.score, failed) or context.source.train
    rows = [pool[i * len(pool) // num_images] for i in range(min(num_images, len(pool)))]
    panels = _panels(context)
    if not rows:
        return
    tiles: list[list[Image.Image | None]] = []
    for sample in rows:
        image = load_image(sample.image, context.max_side)
        tiles.append([panel(sample, image) for panel in panels.values()])
    heights = [max(_height(t) for t in line if t is not None) for line in tiles]
    width = len(panels) * (_WIDTH + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN * len(rows) + _TITLE), "white")
    canvas = ImageDraw.Draw(sheet)
    for column, title in enumerate(panels):
        canvas.text((_MARGIN + column * (_WIDTH + _MARGIN), 2), title, fill="black")
    y = _TITLE
    for line, height in zip(tiles, heights, strict=True):
        for column, tile in enumerate(line):
            if tile is not None:
                size = (_WIDTH, _height(tile))
                place = (_MARGIN + column * (_WIDTH + _MARGIN), y)
                sheet.paste(tile.resize(size, Image.Resampling.BILINEAR), place)
        y += height + _MARGIN
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _height(tile: Image.Image) -> int:
    return max(1, round(tile.height * _WIDTH / tile.width))


def _panels(context: Context) -> dict[str, Panel]:
    made = context.inputs
    panels: dict[str, Panel] = {"image": lambda _, image: image}
    if "make_cam" in made:
        cams = Records(made["make_cam"], ".npz")
        panels["CAM"] = lambda s, image: _heat(image, *read_scores(cams, s.id))
    if "affinity_labels" in made:
        labels = Records(made["affinity_labels"] / "labels", ".png")
        panels["affinity labels"] = lambda s, image: _overlay(image, read_labels(labels, s.id))
    if "train_affinity" in made:
        panels["boundaries"] = _boundaries(context)
    if "random_walk" in made:
        walked = Records(made["random_walk"] / "scores", ".npz")
        masks = Records(made["random_walk"] / "masks", ".png")
        panels["walk"] = lambda s, image: _walk(image, *read_scores(walked, s.id))
        panels["pseudo-mask"] = lambda s, image: _overlay(image, read_labels(masks, s.id))
    if "train_segmentation" in made:
        panels["segmentation"] = _segmentation(context)
    if context.source.score:
        panels["ground truth"] = lambda s, image: (
            _overlay(image, context.source.read_mask(s)) if s.mask else None
        )
    return panels


def _overlay(image: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """Lay a mask's colours over a dimmed image; unsure pixels are grey."""
    colours = voc_palette().astype(np.float64)
    colours[UNSURE] = _GREY
    pixels = np.asarray(image.resize((mask.shape[1], mask.shape[0]))).astype(np.float64)
    return Image.fromarray((0.35 * pixels + 0.65 * colours[mask]).astype(np.uint8))


def _heat(
    image: Image.Image, classes: Tensor, scores: Tensor, size: tuple[int, int]
) -> Image.Image:
    """Lay each class's colour over the image, as strong as its score."""
    pixels = np.asarray(image).astype(np.float64) * 0.6
    maps = resize_scores(scores, size).clamp(0, 1).numpy()[..., None]
    for index, strength in zip(classes.tolist(), maps, strict=True):
        colour = np.minimum(voc_palette()[index + 1].astype(np.float64) * 1.6 + 40, 255)
        pixels = pixels * (1 - strength) + colour * strength
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _walk(
    image: Image.Image, classes: Tensor, scores: Tensor, size: tuple[int, int]
) -> Image.Image:
    share = scores / scores.sum(0, keepdim=True).clamp_min(1e-6)
    # a background may come first
    return _heat(image, classes, share[len(share) - len(classes) :], size)


def _boundaries(context: Context) -> Panel:
    net = context.affinity_net()
    load_trained(net, context.inputs["train_affinity"])
    offsets = Neighborhood(net.radius).pairs
    near = [k for k, (dy, dx) in enumerate(offsets) if dy + abs(dx) == 1]

    def panel(_: Sample, image: Image.Image) -> Image.Image:
        pixels = to_tensor(image, net.backbone.mean, net.backbone.std)[None]
        pad = (0, -pixels.shape[3] % net.stride, 0, -pixels.shape[2] % net.stride)
        with torch.inference_mode():
            affinity: Tensor = net(F.pad(pixels, pad))[0, near]
        # the weaker of the two steps right and down, where there are such pixels
        inside = Neighborhood(net.radius).valid(*affinity.shape[-2:])[near]
        edge = torch.where(inside, 1 - affinity, 0).amax(0).numpy()
        grey = Image.fromarray((255 * edge / max(edge.max(), 1e-6)).astype(np.uint8))
        return grey.resize(image.size, Image.Resampling.NEAREST).convert("RGB")

    return panel


def _segmentation(context: Context) -> Panel:
    net, description = load_own_network(context.cfg, context.inputs["train_segmentation"])
    classes = torch.arange(len(description["classes"]))

    def panel(_: Sample, image: Image.Image) -> Image.Image:
        pixels = to_tensor(image, net.mean, net.std)[None]
        with torch.inference_mode():
            scores = net.probabilities(pixels, flip=False)[0]
        return _overlay(image, best_labels(scores, classes, description["background"]))

    return panel
