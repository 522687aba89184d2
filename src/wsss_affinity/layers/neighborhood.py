"""The half-disc of neighbours that pairs every pixel with the others around it, once."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Border = Literal["full", "psa"]


@lru_cache(maxsize=64)
def _half_disc(radius: int) -> tuple[tuple[int, int], ...]:
    reach = range(-(radius - 1), radius)
    below = [(dy, dx) for dy in range(1, radius) for dx in reach if dy**2 + dx**2 < radius**2]
    return (*((0, dx) for dx in range(1, radius)), *below)


class Neighborhood:
    r"""Forward half-disc of a pixel: the ``K`` offsets ``(dy, dx)`` nearer than ``radius``.

    The offsets are ``(0, 1), …, (0, radius-1)`` and then, for each ``dy`` from 1 to
    ``radius - 1``, every ``dx`` with ``dy² + dx² < radius²``. The other half of the disc is their
    mirror image and holds the same pairs (Ahn & Kwak, CVPR 2018, section 3.2).

    Args:
        radius: Radius of the disc in pixels of the feature grid, at least 2.

    Raises:
        ValueError: If ``radius`` is below 2, where a pixel has no neighbour.

    Example:
        >>> Neighborhood(radius=5).offsets.shape
        torch.Size([34, 2])
        >>> Neighborhood(radius=2).offsets.tolist()
        [[0, 1], [1, -1], [1, 0], [1, 1]]
    """

    def __init__(self, radius: int = 5) -> None:
        if isinstance(radius, bool) or not isinstance(radius, int) or radius < 2:
            raise ValueError(f"radius must be a whole number of at least 2, got {radius!r}")
        self.radius = radius

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The offsets as plain integers."""
        return _half_disc(self.radius)

    @property
    def offsets(self) -> Tensor:
        """The offsets ``(dy, dx)`` as an integer tensor of shape ``(K, 2)``."""
        return torch.tensor(self.pairs, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(radius={self.radius})"

    def valid(self, height: int, width: int, border: Border = "full") -> Tensor:
        """Mark the pairs that exist on a grid.

        Args:
            height: Rows of the grid.
            width: Columns of the grid.
            border: ``"full"`` keeps every pair inside the grid. ``"psa"`` keeps the pairs that the
                published code uses: its source pixels stop ``radius - 1`` rows before the bottom
                and ``radius - 1`` columns before each side.

        Returns:
            Boolean tensor ``(K, height, width)``, True where both ``p`` and ``p + offset`` count.

        Raises:
            ValueError: If ``border`` is neither ``"full"`` nor ``"psa"``.
        """
        if border not in ("full", "psa"):
            raise ValueError(f"border must be 'full' or 'psa', got {border!r}")
        dy, dx = (o.view(-1, 1, 1) for o in self.offsets.unbind(1))
        y = torch.arange(height).view(1, -1, 1)
        x = torch.arange(width).view(1, 1, -1)
        inside = (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        if border == "psa":
            rim = self.radius - 1
            inside = inside & (y < height - rim) & (x >= rim) & (x < width - rim)
        return inside


def pair_slices(dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Row and column slices of all pixels ``p`` and of all ``p + (dy, dx)`` on a grid.

    ``x[(..., *source)]`` and ``x[(..., *target)]`` have one shape, empty when the grid is smaller
    than the offset.
    """
    top = slice(None, -dy if dy else None), slice(dy, None)
    if dx >= 0:
        side = slice(None, -dx if dx else None), slice(dx, None)
    else:
        side = slice(-dx, None), slice(None, dx)
    return (top[0], side[0]), (top[1], side[1])
