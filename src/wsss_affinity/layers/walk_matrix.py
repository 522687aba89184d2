"""The walk's matrix in symmetric form, kept as half-neighbour planes or CSR, never N×N."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_affinity.layers.neighborhood import Neighborhood, pair_slices


def normalized(weights: Tensor, neighborhood: Neighborhood) -> tuple[Tensor, Tensor]:
    r"""The symmetric :math:`M = D^{-1/2} W D^{-1/2} = I + L` of a batch of images.

    It has the eigenvalues of :math:`D^{-1} W`, and :math:`(D^{-1}W)^t = D^{-1/2} M^t D^{1/2}`, so
    a whole walk needs products by ``M`` only, and its gradient too. What is kept is ``L``, minus
    the normalised graph Laplacian: a pixel that is nearly cut off has a diagonal of nearly 1 in
    ``M``, beside which float32 loses its neighbours; in ``x + L x`` both are small.

    Args:
        weights: ``(B, K, h, w)``, the planes of ``W`` off the diagonal, 0 at pairs that leave the
            grid; the diagonal of ``W`` is 1.
        neighborhood: The offsets of the planes.

    Returns:
        The planes of ``L = M - I``, its diagonal last, ``(B, K + 1, h, w)``; and the scale
        ``D^{1/2}``, ``(B, h, w, 1)``.
    """
    height, width = weights.shape[2:]
    rim = neighborhood.radius - 1

    def ahead(padded: Tensor, dy: int, dx: int) -> Tensor:
        return padded[:, dy : dy + height, rim + dx : rim + dx + width]

    behind = F.pad(torch.zeros_like(weights[:, 0]), (rim, rim, 0, rim))
    for k, (dy, dx) in enumerate(neighborhood.pairs):
        ahead(behind, dy, dx).add_(weights[:, k])
    neighbours = weights.sum(1) + ahead(behind, 0, 0)
    degree = 1 + neighbours
    root = degree.rsqrt()
    roots = F.pad(root, (rim, rim, 0, rim))
    planes = [
        weights[:, k] * ahead(roots, dy, dx) * root for k, (dy, dx) in enumerate(neighborhood.pairs)
    ]
    return torch.stack([*planes, -neighbours / degree], 1), degree.sqrt().unsqueeze(-1)


class ShiftedProducts:
    """Products with ``L`` as one multiply-add a neighbour, in any torch.

    Args:
        planes: ``(B, K + 1, h, w)``, see :func:`normalized`.
        neighborhood: The offsets of the planes.
    """

    def __init__(self, planes: Tensor, neighborhood: Neighborhood) -> None:
        self._planes = planes
        self._pairs = neighborhood.pairs
        self._gradient: Tensor | None = None

    def add_product(self, out: Tensor, x: Tensor, scale: float = 1) -> None:
        """``out += scale · L x`` in place, both ``(B, h, w, C)``."""
        out.addcmul_(self._planes[:, -1, :, :, None], x, value=scale)
        for k, (dy, dx) in enumerate(self._pairs):
            (sy, sx), (ty, tx) = pair_slices(dy, dx)
            weight = self._planes[:, k, sy, sx, None]
            out[:, sy, sx].addcmul_(weight, x[:, ty, tx], value=scale)
            out[:, ty, tx].addcmul_(weight, x[:, sy, sx], value=scale)

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """Add the gradient of ``<left, L right>`` to what :meth:`gradient` returns."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self._planes)
        for k, (dy, dx) in enumerate(self._pairs):
            (sy, sx), (ty, tx) = pair_slices(dy, dx)
            here, there = (slice(None), sy, sx), (slice(None), ty, tx)
            both = (left[here] * right[there]).addcmul_(left[there], right[here])
            self._gradient[:, k, sy, sx] += both.sum(-1)
        self._gradient[:, -1] += (left * right).sum(-1)

    def gradient(self) -> Tensor:
        """Sum of the gradients with respect to the planes."""
        return torch.zeros_like(self._planes) if self._gradient is None else self._gradient


class CSRProducts:
    """Products with ``L`` as one block-diagonal CSR matrix: MKL's on the CPU, cuSPARSE's on CUDA.

    Arguments and methods are those of :class:`ShiftedProducts`.
    """

    def __init__(self, planes: Tensor, neighborhood: Neighborhood) -> None:
        batch, _, height, width = planes.shape
        self._shape = planes.shape
        self._grid = batch, height, width, neighborhood.radius, planes.device
        starts, columns, places = _pattern(*self._grid)
        # the values are a copy, so that the planes can be freed
        self._matrix = _csr(starts, columns, planes.reshape(-1).index_select(0, places))
        self._gradient: Tensor | None = None

    def add_product(self, out: Tensor, x: Tensor, scale: float = 1) -> None:
        """``out += scale · L x`` in place, both ``(B, h, w, C)``."""
        rows = out.view(-1, out.shape[-1])
        torch.addmm(rows, self._matrix, x.reshape(rows.shape), alpha=scale, out=rows)

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """Add the gradient of ``<left, L right>`` to what :meth:`gradient` returns."""
        if self._gradient is None:
            starts, columns = self._matrix.crow_indices(), self._matrix.col_indices()
            self._gradient = _csr(starts, columns, torch.zeros_like(self._matrix.values()))
        left, right = (x.reshape(-1, x.shape[-1]) for x in (left, right))
        torch.sparse.sampled_addmm(self._gradient, left, right.t(), out=self._gradient)

    def gradient(self) -> Tensor:
        """Sum of the gradients with respect to the planes."""
        total = self._matrix.values().new_zeros(self._shape)
        if self._gradient is not None:
            # the two directions of a pair share one value of the planes
            total.view(-1).index_add_(0, _pattern(*self._grid)[2], self._gradient.values())
        return total


def products(
    planes: Tensor, neighborhood: Neighborhood
) -> Iterator[tuple[slice, ShiftedProducts | CSRProducts]]:
    """The products of a batch, as (images, their products) one after the other.

    On the CPU images come one by one: a matrix and its states then stay in the cache for all the
    steps of a walk, and memory does not grow with the batch.

    Args:
        planes: ``(B, K + 1, h, w)``, see :func:`normalized`.
        neighborhood: The offsets of the planes.
    """
    batch = len(planes)
    if planes.device.type == "cuda":
        yield slice(0, batch), CSRProducts(planes, neighborhood)
    elif planes.device.type == "cpu" and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        for b in range(batch):
            yield slice(b, b + 1), CSRProducts(planes[b : b + 1], neighborhood)
    else:  # no CSR products in torch
        yield slice(0, batch), ShiftedProducts(planes, neighborhood)


def _csr(starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    size = len(starts) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns, values, (size, size), check_invariants=False
        )


def _pattern(
    batch: int, height: int, width: int, radius: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, column indices, and the place of each value in the flattened planes."""
    # 550 bytes a pixel: those of small grids are kept, the others are made anew for each walk
    make = _kept_pattern if height * width <= 2**14 else _make_pattern
    starts, columns, places = make(height, width, radius, device)
    if batch == 1:
        return starts, columns, places
    size, values = height * width, len(columns)
    planes = len(Neighborhood(radius)) + 1
    # 32-bit indices as long as they reach the last value and place
    index = torch.int32 if 2 * batch * planes * size < 2**31 else torch.int64
    image = torch.arange(batch, dtype=index, device=device).view(-1, 1)
    starts = torch.cat([starts[:1].to(index), (starts[1:] + image * values).flatten()])
    return starts, (columns + image * size).flatten(), (places + image * planes * size).flatten()


def _make_pattern(
    height: int, width: int, radius: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The pattern of one image."""
    with torch.inference_mode(False):  # kept, and used later where there are gradients
        forward = {offset: k for k, offset in enumerate(Neighborhood(radius).pairs)}
        backward = {(-dy, -dx): k for (dy, dx), k in forward.items()}
        offsets = sorted([*forward, *backward, (0, 0)])
        size, count, rim = height * width, len(forward), radius - 1
        # MKL takes 32-bit indices without a conversion at every product
        index = torch.int32 if 2 * (count + 1) * size < 2**31 else torch.int64
        dy, dx = torch.tensor(offsets, dtype=index).unbind(1)
        column = dy * width + dx
        # a value stands in the planes at the pair's first pixel
        plane = [forward.get(o, backward.get(o, count)) for o in offsets]
        first = [y * width + x if (y, x) in backward else 0 for y, x in offsets]
        place = torch.tensor(plane, dtype=index) * size + torch.tensor(first, dtype=index)
        x = torch.arange(width, dtype=index).view(-1, 1)
        beside = (x + dx >= 0) & (x + dx < width)
        bands = []  # of rows with the same neighbours; those off the top and the bottom are alike
        y = 0
        while y < height:
            rows = max(1, height - 2 * rim) if y == rim else 1
            bands.append((y, rows, beside & (y + dy >= 0) & (y + dy < height)))
            y += rows
        lengths = torch.cat([valid.sum(1).repeat(rows) for _, rows, valid in bands])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(index)
        columns, places = (torch.empty(int(starts[-1]), dtype=index) for _ in range(2))
        end = 0
        for y, rows, valid in bands:
            pixel = torch.arange(y, y + rows, dtype=index).view(-1, 1) * width
            begin, end = end, end + rows * int(valid.sum())
            for values, relative in ((columns, column), (places, place)):
                torch.add(pixel, (x + relative)[valid], out=values[begin:end].view(rows, -1))
        return starts.to(device), columns.to(device), places.to(device)


_kept_pattern = lru_cache(maxsize=8)(_make_pattern)
