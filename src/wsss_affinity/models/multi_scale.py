"""Maps of an image summed over scales and mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_scale_sum(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    size: tuple[int, int],
    scales: Sequence[float],
    flip: bool,
) -> Tensor:
    """Sum the maps that ``function`` makes of rescaled and mirrored images.

    Args:
        function: Maps images ``(B, 3, h, w)`` to maps ``(B, C, h', w')``.
        images: ``(B, 3, H, W)``.
        size: Size of the result; every map is resized to it bilinearly.
        scales: Factors on height and width; images are resized bicubically.
        flip: Whether mirror images take part.

    Returns:
        ``(B, C, *size)``.

    Raises:
        ValueError: If ``scales`` is empty or holds a factor that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive factors, e.g. (0.5, 1.0), got {list(scales)}")
    total: Tensor | None = None
    for scale in scales:
        target = [max(1, round(scale * side)) for side in images.shape[-2:]]
        scaled = images
        if target != list(images.shape[-2:]):
            # with antialias the kernel is PIL's, also where the image is enlarged
            scaled = F.interpolate(images, target, mode="bicubic", antialias=True)
        batch = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        batch = batch.contiguous(memory_format=torch.channels_last)
        maps = F.interpolate(function(batch), size, mode="bilinear", align_corners=False)
        if flip:
            plain, mirrored = maps.chunk(2)
            maps = plain + mirrored.flip(-1)
        total = maps if total is None else total + maps
    assert total is not None
    return total
