"""The walk's matrix in symmetric form, kept as half-neighbour planes or CSR, never N×N."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from wsss_affinity.layers.neighborhood import Neighborhood, pair_slices


class WalkMatrix:
    r"""The symmetric :math:`M = D^{-1/2} W D^{-1/2}` of a batch of images.

    It has the eigenvalues of :math:`D^{-1} W`, and :math:`(D^{-1}W)^t = D^{-1/2} M^t D^{1/2}`, so
    a whole walk needs products by ``M`` only, and the gradient of a product is another one.

    Args:
        weights: ``(B, K, h, w)``, the planes of ``W`` off the diagonal, 0 at pairs that leave the
            grid; the diagonal of ``W`` is 1.
        neighborhood: The offsets of the planes.
    """

    def __init__(self, weights: Tensor, neighborhood: Neighborhood) -> None:
        self.neighborhood = neighborhood
        neighbours = torch.zeros_like(weights[:, 0])
        for k, (dy, dx) in enumerate(neighborhood.pairs):
            neighbours = neighbours + weights[:, k] + _shift(weights[:, k], dy, dx)
        degree = 1 + neighbours
        root = degree.rsqrt()
        # 1 / degree, so that rows sum to 1 also where the neighbours are lost in rounding: over
        # hundreds of steps the difference would show in the fourth digit
        diagonal = 1 - neighbours / degree
        ahead = [_shift(root, -dy, -dx) for dy, dx in neighborhood.pairs]
        #: ``(B, K + 1, h, w)``: the planes of ``M``, and its diagonal last.
        self.planes = torch.cat(
            [weights * root.unsqueeze(1) * torch.stack(ahead, 1), diagonal.unsqueeze(1)], 1
        )
        #: ``D^{1/2}`` as ``(B, h, w, 1)``.
        self.scale = degree.sqrt().unsqueeze(-1)
        self._csr = _block_diagonal(self.planes.detach(), neighborhood)

    def product(self, x: Tensor, minus: Tensor | None = None) -> Tensor:
        """``M x``, or ``2 M x - minus``, for ``x`` of shape ``(B, h, w, C)``."""
        result: Tensor = _SymmetricProduct.apply(x, minus, self.planes, self._csr, self)
        return result


def _shift(plane: Tensor, dy: int, dx: int) -> Tensor:
    """Move the values of a ``(…, h, w)`` tensor by ``(dy, dx)``, zeros flowing in."""
    source, target = pair_slices(dy, dx) if dy >= 0 else pair_slices(-dy, -dx)[::-1]
    out = torch.zeros_like(plane)
    out[(..., *target)] = plane[(..., *source)]
    return out


class _SymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        minus: Tensor | None,
        planes: Tensor,
        csr: Tensor | None,
        matrix: WalkMatrix,
    ) -> Tensor:
        ctx.save_for_backward(x, planes)
        ctx.csr, ctx.neighborhood, ctx.recurrence = csr, matrix.neighborhood, minus is not None
        return _product(x, minus, planes, csr, matrix.neighborhood)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, planes = ctx.saved_tensors
        scaled = 2 * grad if ctx.recurrence else grad
        grad_x = grad_planes = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(scaled, None, planes, ctx.csr, ctx.neighborhood)
        if ctx.needs_input_grad[2]:
            grad_planes = torch.zeros_like(planes)
            for k, (dy, dx) in enumerate(ctx.neighborhood.pairs):
                (sy, sx), (ty, tx) = pair_slices(dy, dx)
                here, there = (slice(None), sy, sx), (slice(None), ty, tx)
                both = scaled[here] * x[there] + scaled[there] * x[here]
                grad_planes[:, k, sy, sx] = both.sum(-1)
            grad_planes[:, -1] = (scaled * x).sum(-1)
        return grad_x, -grad if ctx.recurrence else None, grad_planes, None, None


def _product(
    x: Tensor,
    minus: Tensor | None,
    planes: Tensor,
    csr: Tensor | None,
    neighborhood: Neighborhood,
) -> Tensor:
    if csr is not None:
        rows = x.reshape(-1, x.shape[-1])
        if minus is None:
            rows_out: Tensor = torch.sparse.mm(csr, rows)
        else:
            rows_out = torch.addmm(minus.reshape(rows.shape), csr, rows, beta=-1, alpha=2)
        return rows_out.view(x.shape)
    result: Tensor = planes[:, -1, :, :, None] * x
    for k, (dy, dx) in enumerate(neighborhood.pairs):
        (sy, sx), (ty, tx) = pair_slices(dy, dx)
        weight = planes[:, k, sy, sx, None]
        result[:, sy, sx] += weight * x[:, ty, tx]
        result[:, ty, tx] += weight * x[:, sy, sx]
    return result if minus is None else 2 * result - minus


@lru_cache(maxsize=4)  # a pattern takes about 1.4 kB a pixel
def _csr_pattern(
    batch: int, height: int, width: int, radius: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, column indices, and the place of each value in the flattened planes."""
    neighborhood = Neighborhood(radius)
    count, size = len(neighborhood), height * width
    pixel = torch.arange(size).view(height, width)
    valid = neighborhood.valid(height, width)
    rows, columns, places = [pixel.flatten()], [pixel.flatten()], [pixel.flatten() + count * size]
    for k, (dy, dx) in enumerate(neighborhood.pairs):
        source = pixel[valid[k]]
        target = source + dy * width + dx
        rows += [source, target]
        columns += [target, source]
        places += [source + k * size] * 2
    row, column, place = torch.cat(rows), torch.cat(columns), torch.cat(places)
    order = torch.argsort(row * size + column)
    row, column, place = row[order], column[order], place[order]
    image = torch.arange(batch).view(-1, 1)
    starts = torch.zeros(batch * size + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(row, minlength=size).repeat(batch).cumsum(0)
    # MKL takes 32-bit indices without a conversion at every product
    index = torch.int32 if starts[-1] < 2**31 else torch.int64
    columns_all = (column + image * size).flatten()
    places_all = (place + image * ((count + 1) * size)).flatten()
    return starts.to(device, index), columns_all.to(device, index), places_all.to(device)


def _block_diagonal(planes: Tensor, neighborhood: Neighborhood) -> Tensor | None:
    """One CSR matrix with a block of h·w rows an image; None where torch has no CSR product."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if planes.device.type == "cpu" and not mkl:
        return None
    if planes.device.type not in ("cpu", "cuda"):
        return None
    batch, _, height, width = planes.shape
    pattern = _csr_pattern(batch, height, width, neighborhood.radius, planes.device)
    starts, columns, places = pattern
    values = planes.reshape(-1)[places]
    size = batch * height * width
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns, values, (size, size), check_invariants=False
        )
