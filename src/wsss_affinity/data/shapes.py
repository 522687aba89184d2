"""A generated data set in VOC's layout, for the demo and the tests.

Every object is a textured body that looks alike in all classes, with one small badge that tells
its class, on a cluttered background. A classifier looks at badges; masks need bodies.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsss_affinity.data.images import save_mask
from wsss_affinity.data.source import Source
from wsss_affinity.data.voc import voc_source
from wsss_affinity.files import make_directory, write_bytes, write_error
from wsss_affinity.losses.affinity import UNSURE

SHAPES_CLASSES = ("cross", "ring", "checker", "bars")
_FORMAT = 1  # part of the folder's name: raise it when the pictures change


def shapes_source(
    root: str | Path,
    *,
    seed: int = 0,
    num_train: int = 240,
    num_val: int = 60,
    image_size: int = 128,
    classes: Sequence[str] | None = None,
) -> Source:
    """Generate the data set below ``root`` unless it is there, and list it.

    Args:
        root: Folder for generated data sets.
        seed: Same seed, same pictures.
        num_train: Images of the split ``train``.
        num_val: Images of the split ``val``.
        image_size: Sides of the images in pixels, at least 32; they vary by up to a quarter.
        classes: Restrict to some of ``cross, ring, checker, bars``.

    Raises:
        WSSSError: If the folder cannot be written or a class is unknown.
    """
    name = f"shapes-v{_FORMAT}-seed{seed}-{num_train}+{num_val}-{image_size}px"
    folder = Path(root).expanduser() / name
    if not folder.is_dir():
        make_directory(folder.parent)
        partial = folder.with_name(f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            _generate(partial, seed, {"train": num_train, "val": num_val}, image_size)
            os.replace(partial, folder)
        except OSError as error:
            if not folder.is_dir():  # or another process was faster
                raise write_error(folder, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return voc_source(
        folder,
        train_split="train",
        val_split="val" if num_val else None,
        classes=classes,
        all_classes=SHAPES_CLASSES,
    )


def _generate(root: Path, seed: int, splits: dict[str, int], size: int) -> None:
    for code, (split, count) in enumerate(splits.items()):
        names = []
        for index in range(count):
            rng = np.random.default_rng([seed, code, index])
            name = f"{split}_{index:05d}"
            image, mask, labels = draw(rng, size)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="JPEG", quality=92)
            write_bytes(root / "JPEGImages" / f"{name}.jpg", buffer.getvalue())
            save_mask(root / "SegmentationClass" / f"{name}.png", mask)
            write_bytes(root / "Annotations" / f"{name}.xml", _annotation(name, labels))
            names.append(name)
        listing = "".join(f"{name}\n" for name in names)
        write_bytes(root / "ImageSets" / "Segmentation" / f"{split}.txt", listing.encode())


def _annotation(name: str, labels: list[int]) -> bytes:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    for label in labels:
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = SHAPES_CLASSES[label]
    return ElementTree.tostring(root)


def draw(
    rng: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """Draw one picture.

    Args:
        rng: Source of all that is random in it.
        size: Sides in pixels, varied by up to a quarter.

    Returns:
        Image ``(H, W, 3)`` uint8, mask ``(H, W)`` uint8 with a void rim around objects, and the
        0-based class of each object.
    """
    height, width = (int(rng.integers(round(0.75 * size), size + 1)) for _ in range(2))
    image = _clutter(rng, height, width)
    mask = np.zeros((height, width), dtype=np.uint8)
    labels: list[int] = []
    for _ in range(int(rng.integers(1, 4))):
        body, centre, extent = _body(rng, height, width, size)
        if (body & (mask > 0)).any():
            continue  # objects stand apart, so that each badge is seen
        label = int(rng.integers(len(SHAPES_CLASSES)))
        texture = _texture(rng, height, width)
        image[body] = texture[body]
        _badge(rng, image, label, centre, extent)
        mask[body] = label + 1
        mask[_rim(body)] = UNSURE
        labels.append(label)
    noise = rng.normal(0, 6, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8), mask, labels


def _smooth(rng: np.random.Generator, height: int, width: int, cells: int) -> NDArray[np.float64]:
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    smooth: NDArray[np.float64] = (
        np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255.0
    )
    return smooth


def _clutter(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Smooth blotches of dull colours, with strokes and boxes across them."""
    low, high = rng.uniform(40, 120, 3), rng.uniform(100, 190, 3)
    blend = _smooth(rng, height, width, int(rng.integers(3, 7)))[..., None]
    picture = Image.fromarray((low + blend * (high - low)).astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(6, 14))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        dx, dy = rng.uniform(-0.3, 0.3, 2) * (width, height)
        grey = rng.uniform(50, 180)
        colour = tuple(int(c) for c in (grey + rng.normal(0, 18, 3)).clip(0, 255))
        if rng.random() < 0.6:
            canvas.line((x, y, x + dx, y + dy), fill=colour, width=int(rng.integers(1, 5)))
        else:
            box = (min(x, x + dx), min(y, y + dy), max(x, x + dx), max(y, y + dy))
            canvas.rectangle(box, outline=colour, width=int(rng.integers(1, 4)))
    return np.asarray(picture).astype(np.float64)


def _body(
    rng: np.random.Generator, height: int, width: int, size: int
) -> tuple[NDArray[np.bool_], tuple[float, float], float]:
    """A wobbly blob: its pixels, its centre (y, x) and its mean radius."""
    radius = rng.uniform(0.17, 0.3) * size
    cy, cx = rng.uniform(0.25, 0.75) * height, rng.uniform(0.2, 0.8) * width
    y, x = np.mgrid[:height, :width]
    angle = np.arctan2(y - cy, x - cx)
    stretch = rng.uniform(0.7, 1.3)
    distance = np.hypot((y - cy) * stretch, (x - cx) / stretch)
    lobes, phase = int(rng.integers(2, 6)), rng.uniform(0, 2 * math.pi)
    return distance < radius * (1 + 0.15 * np.sin(lobes * angle + phase)), (cy, cx), radius


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Fine weave in two vivid shades; which colour says nothing about the class."""
    hue = rng.uniform(0, 2 * math.pi)
    colour = 128 + 100 * np.cos(hue + np.array([0.0, 2.1, 4.2]))
    y, x = np.mgrid[:height, :width]
    turn, period = rng.uniform(0, math.pi), rng.uniform(4, 7)
    along = np.sin(2 * math.pi * (x * math.cos(turn) + y * math.sin(turn)) / period)
    across = np.sin(2 * math.pi * (y * math.cos(turn) - x * math.sin(turn)) / period)
    shade = 28 * along * across + 30 * (_smooth(rng, height, width, 4) - 0.5)
    weave: NDArray[np.float64] = colour + shade[..., None]
    return weave


def _badge(
    rng: np.random.Generator,
    image: NDArray[np.float64],
    label: int,
    centre: tuple[float, float],
    extent: float,
) -> None:
    """Paint the part that tells the class, somewhere inside the body."""
    half = max(3, round(0.3 * extent))
    shift = rng.uniform(-0.35, 0.35, 2) * extent
    top, left = round(centre[0] + shift[0]) - half, round(centre[1] + shift[1]) - half
    y, x = np.mgrid[: 2 * half + 1, : 2 * half + 1] - half
    dark = {
        "cross": (abs(x) < 0.3 * half) | (abs(y) < 0.3 * half),
        "ring": abs(np.hypot(y, x) - 0.65 * half) < 0.27 * half,
        "checker": ((x > 0) ^ (y > 0)),
        "bars": (np.floor((y + half) / max(1, 0.42 * half)) % 2) == 0,
    }[SHAPES_CLASSES[label]]
    paint = np.where(dark, 15.0, 240.0)
    height, width = image.shape[:2]
    rows, columns = np.clip(y + half + top, 0, height - 1), np.clip(x + half + left, 0, width - 1)
    image[rows, columns] = paint[..., None]


def _rim(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the body that touch its outside: void, as in VOC's masks."""
    padded = np.pad(body, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return body & ~inner
