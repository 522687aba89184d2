"""Class scores of an image as a record, and the label map they come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsss_affinity.data.images import decode_mask
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import decode_arrays, encode_arrays
from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.pipeline.storage import Records

_DTYPES = {"float16": np.float16, "float32": np.float32}


def encode_scores(
    classes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    backgrounds: Tensor | None = None,
    dtype: str = "float16",
) -> bytes:
    """Class scores and what they belong to, as a record.

    Args:
        classes: ``(n,)``, 0-based class of each map.
        scores: ``(n', h, w)``; a map of the background may come before those of the classes.
        size: ``(H, W)`` of the image.
        backgrounds: ``(k, h, w)``, maps that may stand in for the background's.
        dtype: ``"float16"`` or ``"float32"``.
    """
    kind = _DTYPES[dtype]
    arrays: dict[str, NDArray[Any]] = {
        "classes": classes.cpu().numpy().astype(np.int16),
        "scores": scores.cpu().numpy().astype(kind),
        "size": np.asarray(size, dtype=np.int32),
    }
    if backgrounds is not None:
        arrays["backgrounds"] = backgrounds.cpu().numpy().astype(kind)
    return encode_arrays(arrays)


def decode_scores(data: bytes, name: object) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Read what :func:`encode_scores` made, as ``(classes, scores float32, size)``.

    Args:
        data: The record.
        name: Of it, for messages.

    Raises:
        WSSSError: If it is damaged.
    """
    arrays = decode_arrays(data, name)
    height, width = (int(side) for side in arrays["size"])
    classes = torch.from_numpy(arrays["classes"].astype(np.int64))
    return classes, torch.from_numpy(arrays["scores"].astype(np.float32)), (height, width)


def read_scores(records: Records, id: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Read the stored scores of an image; see :func:`decode_scores`.

    Raises:
        WSSSError: If there are none, or they are damaged.
    """
    return decode_scores(records.read(id), records.file(id))


def read_labels(records: Records, id: str) -> NDArray[np.uint8]:
    """Read the stored label map of an image, ``(H, W)`` uint8.

    Raises:
        WSSSError: If there is none, or it is damaged.
    """
    return decode_mask(records.read(id), records.file(id))


def read_backgrounds(records: Records, id: str) -> Tensor:
    """Read the ``(k, h, w)`` float32 background maps beside stored scores.

    Raises:
        WSSSError: If there are none.
    """
    arrays = decode_arrays(records.read(id), records.file(id))
    if "backgrounds" not in arrays:
        raise WSSSError(
            f"{records.file(id)} holds no further background maps; run random_walk again"
        )
    return torch.from_numpy(arrays["backgrounds"].astype(np.float32))


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(n, h, w)`` bilinearly to ``(n, H, W)``; n may be 0."""
    if len(scores) == 0:
        return scores.new_zeros(0, *size)
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def finish_scores(scores: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Bring walked scores ``(n, h, w)`` to the size of the image, bilinearly.

    A cell is worth ``stride`` pixels, also the last one, which may reach outside.
    """
    padded = scores.shape[1] * stride, scores.shape[2] * stride
    return resize_scores(scores, padded)[:, : size[0], : size[1]].contiguous()


def best_labels(scores: Tensor, classes: Tensor, background: bool) -> NDArray[np.uint8]:
    """Take the label of the highest score.

    Args:
        scores: ``(n + 1, H, W)`` with the background first, or ``(n, H, W)`` without one.
        classes: ``(n,)``, 0-based class of each map.
        background: Whether there is one.

    Returns:
        ``(H, W)`` uint8: 0 background, 1… classes; 255 where there is no map at all.
    """
    names = torch.cat([torch.zeros(int(background), dtype=torch.int64), classes + 1])
    if len(names) == 0:
        return np.full(scores.shape[1:], UNSURE, dtype=np.uint8)
    labels: NDArray[np.uint8] = names[scores.argmax(0)].numpy().astype(np.uint8)
    return labels
