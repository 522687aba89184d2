"""Maps of an image summed over scales and mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: what is said where memory is short; only torch's allocator for CUDA has an error of its own
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def multi_scale_sum(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    size: tuple[int, int],
    scales: Sequence[float],
    flip: bool,
) -> Tensor:
    """Sum the maps that ``function`` makes of rescaled and mirrored images.

    Where an image and its mirror image do not fit into memory together, they go one by one.

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
        RuntimeError: If a single image does not fit into memory; see :func:`out_of_memory`.
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
        maps = in_halves(
            lambda x: F.interpolate(function(x), size, mode="bilinear", align_corners=False), batch
        )
        if flip:
            plain, mirrored = maps.chunk(2)
            maps = plain + mirrored.flip(-1)
        total = maps if total is None else total + maps
    assert total is not None
    return total


def in_halves(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Apply ``function`` to a batch, or to its halves in turn where memory does not suffice.

    Args:
        function: Maps a batch to a batch, each item by itself.
        batch: ``(B, …)``.

    Raises:
        RuntimeError: If a single item does not fit.
    """
    try:
        return function(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not out_of_memory(error):
            raise
    # here, not above: the error keeps alive what was computed until then
    torch.cuda.empty_cache()
    return torch.cat([in_halves(function, half) for half in batch.chunk(2)])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory, of the CPU or the GPU, did not suffice."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    )
