"""Reading photographs of any kind, and masks that open in colour."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.losses.affinity import UNSURE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def load_image(path: Path, max_side: int | None = None) -> Image.Image:
    """Read a photograph as 8-bit RGB, upright.

    Greyscale, palette, CMYK and 16-bit images are converted, transparency is laid on white, and
    the orientation stored by a camera is applied.

    Args:
        path: The file.
        max_side: A longer image is reduced so that its longer side has this many pixels.

    Raises:
        WSSSError: If the file is missing or no image.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            rgb = _to_rgb(image)
    except FileNotFoundError:
        raise WSSSError(f"image {path} does not exist; restore it or take it off the list") from (
            None
        )
    except Exception as error:
        raise WSSSError(
            f"image {path} cannot be read ({error}); replace it or take it off the list"
        ) from error
    if max_side is not None and max(rgb.size) > max_side:
        scale = max_side / max(rgb.size)
        width, height = (max(1, round(scale * side)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files come as I;16 or as I; PIL alone would clip them at 255
        top = 65535.0 if image.mode != "F" or values.max(initial=0) > 255 else 255.0
        grey = (values.clip(0, top) * (255.0 / top)).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def load_mask(path: Path) -> NDArray[np.uint8]:
    """Read a label map ``(H, W)`` uint8 from a palette or greyscale PNG.

    Raises:
        WSSSError: If the file is missing, damaged, a colour image, or holds a value above 255.
    """
    return _read_mask(path, path)


def decode_mask(data: bytes, name: object) -> NDArray[np.uint8]:
    """Read a label map from the content of its file, as :func:`load_mask` does.

    Args:
        data: The file.
        name: Of it, for messages.

    Raises:
        WSSSError: If it is damaged.
    """
    return _read_mask(io.BytesIO(data), name)


def _read_mask(file: Path | io.BytesIO, name: object) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as opened:
            if opened.mode not in ("P", "L", "1") and not opened.mode.startswith("I"):
                raise WSSSError(
                    f"mask {name} has mode {opened.mode}; expected a palette or greyscale PNG "
                    "whose values are class indices"
                )
            values = np.asarray(opened)
    except WSSSError:
        raise
    except FileNotFoundError:
        raise WSSSError(f"mask {name} does not exist; restore it or take it off the list") from (
            None
        )
    except Exception as error:
        raise WSSSError(f"mask {name} cannot be read ({error}); replace it") from error
    outside = values[(values < 0) | (values > UNSURE)]
    if outside.size:
        raise WSSSError(
            f"mask {name} holds the value {outside[0]}; expected class indices from 0 to 255, "
            "save it with those"
        )
    return values.astype(np.uint8)


@lru_cache(maxsize=1)
def voc_palette() -> NDArray[np.uint8]:
    """The 256 colours of PASCAL VOC's masks, ``(256, 3)``."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            level = (index >> (3 * bit + channel)) & 1
            colours[:, channel] |= (level << (7 - bit)).astype(np.uint8)
    return colours


def save_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    """Write a label map ``(H, W)`` as a PNG with VOC's palette, so that it opens in colour."""
    write_bytes(path, mask_png(mask))


def mask_png(mask: NDArray[np.uint8]) -> bytes:
    """The file that :func:`save_mask` writes."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8), mode="L")
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a label map to ``(H, W)`` by nearest neighbour."""
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)
