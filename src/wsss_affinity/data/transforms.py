"""From photographs to normalised tensors, labels of their pixels moving along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
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
    """Random scale, flip, crop and colour, of an image and the labels of its pixels together.

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
        self, image: Image.Image, target: NDArray[Any] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Crop an RGB image and what belongs to its pixels.

        Args:
            image: Of any size.
            target: A label map ``(H, W)`` uint8, or scores ``(n, H, W)`` float.

        Returns:
            The image ``(3, S, S)``; the labels ``(S, S)`` int64, 255 where the crop reaches
            outside the image, or the scores ``(n, S, S)`` float32, 0 there.
        """
        if self.long_side is not None:
            scale = _randint(*self.long_side) / max(image.size)
            width, height = (max(1, round(scale * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        if target is not None:
            target = _resize(target, (image.height, image.width))
        if float(torch.rand(())) < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            target = None if target is None else target[..., ::-1]

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
        if target is None:
            return canvas, None
        window = np.array(target[..., top : top + height, left : left + width])
        place = (..., slice(y, y + height), slice(x, x + width))
        if target.ndim == 2:
            cropped = torch.full((size, size), UNSURE, dtype=torch.int64)
        else:
            cropped = torch.zeros(len(target), size, size)
        cropped[place] = torch.from_numpy(window).to(cropped.dtype)
        return canvas, cropped


def _resize(target: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    if target.ndim == 2:
        return resize_mask(target, size)
    if target.shape[1:] == size:
        return target
    scores = torch.from_numpy(target).float()[None]
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)[0].numpy()


def _randint(low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))
