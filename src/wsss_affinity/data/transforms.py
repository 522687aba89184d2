"""From photographs to normalised tensors, a mask moving along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter

from wsss_affinity.data.images import resize_mask
from wsss_affinity.errors import WSSSError
from wsss_affinity.losses.affinity import UNSURE


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn 8-bit RGB into a normalised ``(3, H, W)`` float tensor."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    offset, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return (pixels - offset) / scale


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, flip, crop and colour, of an image and its mask together.

    Draws from torch's global generator, so that a seed set before each call fixes it.

    Attributes:
        crop_size: Side of the square crop in pixels; a smaller image is put at a random place.
        mean: Of RGB in [0, 1], subtracted.
        std: Divided by.
        long_side: Range of the longer side that the image is rescaled to; None keeps its size.
        jitter: Strength of brightness, contrast, saturation and hue; None leaves colours.
        flip: Probability of mirroring.
        padding: Colour around a smaller image: ``"mean"`` (0 once normalised) or ``"black"``.

    Raises:
        WSSSError: If a value is out of range.
    """

    crop_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    long_side: tuple[int, int] | None = None
    jitter: tuple[float, float, float, float] | None = (0.3, 0.3, 0.3, 0.1)
    flip: float = 0.5
    padding: Literal["mean", "black"] = "mean"

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise WSSSError(f"transform.crop_size must be at least 1, got {self.crop_size}")
        if self.padding not in ("mean", "black"):
            raise WSSSError(f"transform.padding must be 'mean' or 'black', got {self.padding!r}")
        if self.long_side is not None and not 1 <= self.long_side[0] <= self.long_side[1]:
            raise WSSSError(
                f"transform.long_side must be a range [shortest, longest], got {self.long_side}"
            )

    def __call__(
        self, image: Image.Image, mask: NDArray[np.uint8] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map an RGB image and a mask ``(H, W)`` to ``(3, S, S)`` and ``(S, S)`` int64.

        The mask is 255 where the crop reaches outside the image.
        """
        if self.long_side is not None:
            scale = _randint(*self.long_side) / max(image.size)
            width, height = (max(1, round(scale * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        if mask is not None:
            mask = resize_mask(mask, (image.height, image.width))
        if float(torch.rand(())) < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = None if mask is None else mask[:, ::-1]

        size = self.crop_size
        width, height = min(size, image.width), min(size, image.height)
        left, top = _randint(0, image.width - width), _randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        if self.jitter is not None:
            image = ColorJitter(*self.jitter)(image)
        pixels = to_tensor(image, self.mean, self.std)

        canvas = torch.zeros(3, size, size)
        if self.padding == "black":
            canvas = to_tensor(Image.new("RGB", (size, size)), self.mean, self.std)
        x, y = _randint(0, size - width), _randint(0, size - height)
        canvas[:, y : y + height, x : x + width] = pixels
        if mask is None:
            return canvas, None
        labels = torch.full((size, size), UNSURE, dtype=torch.int64)
        window = np.array(mask[top : top + height, left : left + width])
        labels[y : y + height, x : x + width] = torch.from_numpy(window).long()
        return canvas, labels


def _randint(low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))
