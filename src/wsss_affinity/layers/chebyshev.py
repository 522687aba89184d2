"""Powers and Chebyshev series of the walk's matrix, and their gradient."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_affinity.layers import kernels, walk_llvm
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.walk_matrix import CSRProducts, ShiftedProducts, products


@lru_cache(maxsize=64)
def chebyshev_coefficients(num_steps: int, tol: float) -> tuple[float, ...]:
    """Coefficients c_0 … c_m of x^t, cut to err by at most ``tol`` and rescaled to sum 1."""
    t = num_steps
    full = [0.0] * (t + 1)
    for k in range(t % 2, t + 1, 2):
        log_binomial = math.lgamma(t + 1) - math.lgamma((t - k) / 2 + 1)
        log_binomial -= math.lgamma((t + k) / 2 + 1)
        full[k] = math.exp(log_binomial + (1 - t) * math.log(2)) / (2 if k == 0 else 1)
    tail, degree = 0.0, t
    # rescaling can double what cutting errs by
    while degree > 1 and tail + full[degree] <= tol / 2:
        tail += full[degree]
        degree -= 1
    kept = full[: degree + 1]
    total = math.fsum(kept)
    return tuple(c / total for c in kept)


def walk(
    rows: Tensor,
    planes: Tensor,
    neighborhood: Neighborhood,
    coefficients: tuple[float, ...] | None,
    num_steps: int,
    storage: torch.dtype | None = None,
) -> Tensor:
    r"""Compute :math:`\sum_k c_k T_k(M) x`, or :math:`M^t x` where there are no coefficients.

    Differentiable, once, in rows and planes: for that it keeps both, and the backward pass needs
    about 14 tensors like the rows, whatever the number of steps.

    Args:
        rows: ``x`` as ``(B, h, w, C)``, contiguous.
        planes: ``(B, K + 1, h, w)``, see :func:`~wsss_affinity.layers.walk_matrix.normalized`.
        neighborhood: The offsets of the planes.
        coefficients: :math:`c_0 … c_m`, see :func:`chebyshev_coefficients`.
        num_steps: ``t``; not used with coefficients.
        storage: Type the CUDA kernel keeps the weights in, float32 unless given.

    Returns:
        ``(B, h, w, C)``.
    """
    channels = rows.shape[-1]
    if rows.device.type == "cpu":
        # MKL's products with a multiple of four columns take as little as half the time
        rows = F.pad(rows, (0, -channels % 4))
    walked: Tensor = _Walk.apply(rows, planes, neighborhood, coefficients, num_steps, storage)
    return walked[..., :channels]


class _Walk(torch.autograd.Function):
    """The whole walk on the symmetric matrix as one node, so that no step leaves a tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        planes: Tensor,
        neighborhood: Neighborhood,
        coefficients: tuple[float, ...] | None,
        num_steps: int,
        storage: torch.dtype | None,
    ) -> Tensor:
        ctx.save_for_backward(rows, planes)
        ctx.walk = neighborhood, coefficients, num_steps, storage
        return _walk(rows, planes, *ctx.walk)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # sums in place go through views of it
        grad = grad.contiguous()
        rows, planes = ctx.saved_tensors
        neighborhood, coefficients, num_steps, _ = ctx.walk
        if not ctx.needs_input_grad[1]:
            # the matrix is symmetric
            return _walk(grad, planes, *ctx.walk), None, None, None, None, None
        if coefficients is None:
            # the power as its series, cut where nothing is left of it, takes fewer products and
            # no stored steps
            coefficients = chebyshev_coefficients(num_steps, torch.finfo(rows.dtype).eps / 1000)
        grad_rows, grad_planes = torch.empty_like(rows), torch.empty_like(planes)
        for part, matrix in products(planes, neighborhood):
            grad_rows[part] = _series_gradient(matrix, rows[part], grad[part], coefficients)
            grad_planes[part] = matrix.gradient()
        return grad_rows, grad_planes, None, None, None, None


def _walk(
    rows: Tensor,
    planes: Tensor,
    neighborhood: Neighborhood,
    coefficients: tuple[float, ...] | None,
    num_steps: int,
    storage: torch.dtype | None,
) -> Tensor:
    if kernels.available(rows) and rows.dtype == torch.float32:
        from wsss_affinity.layers.kernels import walk as kernel

        radius, kept = neighborhood.radius, storage or torch.float32
        return kernel.walk(rows, planes, radius, coefficients, num_steps, storage=kept)
    if walk_llvm.available(rows, neighborhood.radius):
        return walk_llvm.walk(rows, planes, neighborhood, coefficients, num_steps)
    walked = torch.empty_like(rows)
    for part, matrix in products(planes, neighborhood):
        if coefficients is None:
            walked[part] = _power(matrix, rows[part], num_steps)
        else:
            walked[part] = _series(matrix, rows[part], coefficients)
    return walked


def _power(matrix: ShiftedProducts | CSRProducts, x: Tensor, num_steps: int) -> Tensor:
    """``M^t x`` by ``t`` products; ``x`` is ``(B, h, w, C)``."""
    x, after = x.clone(), torch.empty_like(x)
    for _ in range(num_steps):
        after.copy_(x)
        matrix.add_product(after, x)
        x, after = after, x
    return x


def _series(
    matrix: ShiftedProducts | CSRProducts, x: Tensor, coefficients: tuple[float, ...]
) -> Tensor:
    r"""``Σ c_k T_k(M) x`` by one product a degree; ``x`` is ``(B, h, w, C)``.

    With :math:`v_k = T_k(M) x`, the recurrence :math:`v_{k+1} = 2 M v_k - v_{k-1}` is that of the
    changes :math:`v_{k+1} - v_k = (v_k - v_{k-1}) + 2 L v_k`: small where the walk hardly moves,
    and so rounded less.
    """
    state, change, total = x.clone(), torch.zeros_like(x), coefficients[0] * x
    for k, c in enumerate(coefficients[1:], 1):
        matrix.add_product(change, state, 1 if k == 1 else 2)
        state += change
        if c:
            total.add_(state, alpha=c)
    return total


def _series_gradient(
    matrix: ShiftedProducts | CSRProducts,
    x: Tensor,
    grad: Tensor,
    coefficients: tuple[float, ...],
) -> Tensor:
    r"""Gradient of ``<grad, Σ c_k T_k(M) x>`` with respect to ``x``; that of ``M`` goes to matrix.

    The adjoint of the recurrence is Clenshaw's, :math:`b_k = c_k g + 2 M b_{k+1} - b_{k+2}`, and
    the gradient of ``M`` is :math:`b_1 v_0^T + 2 \sum_{k \ge 1} b_{k+1} v_k^T`. The states are not
    kept: the recurrence is its own inverse, so :math:`v` runs back beside :math:`b`. Whatever the
    degree, memory is that of 13 tensors like ``x``.
    """
    channels, degree = x.shape[-1], len(coefficients) - 1
    state, change = x.clone(), torch.zeros_like(x)
    for k in range(1, degree + 1):
        matrix.add_product(change, state, 1 if k == 1 else 2)
        state += change
    # b_{k+1} and v_k side by side, and the changes to the next pair
    state = torch.cat([torch.zeros_like(x), state], -1)
    change = torch.cat([torch.zeros_like(x), -change], -1)
    outer = _OuterProducts(matrix, x)
    for k in range(degree, 0, -1):
        if k < degree:
            matrix.add_product(change, state, 2)
        change[..., :channels].add_(grad, alpha=coefficients[k])
        state += change
        outer.add(state[..., :channels], state[..., channels:], 2 if k > 1 else 1)
    outer.flush()
    adjoint, change = state[..., :channels], change[..., :channels]
    result = (coefficients[0] * grad).add_(change)
    matrix.add_product(result, adjoint)
    return result


class _OuterProducts:
    """Collects a few pairs: one pass over the pattern of the matrix for all of them is faster."""

    def __init__(self, matrix: ShiftedProducts | CSRProducts, like: Tensor) -> None:
        self._matrix = matrix
        self._left, self._right = like.new_zeros(2, *like.shape[:-1], 4, like.shape[-1])
        self._count = 0

    def add(self, left: Tensor, right: Tensor, scale: float) -> None:
        torch.mul(left, scale, out=self._left[..., self._count, :])
        self._right[..., self._count, :] = right
        self._count += 1
        if self._count == self._left.shape[-2]:
            self.flush()

    def flush(self) -> None:
        self._left[..., self._count :, :] = 0
        self._matrix.add_outer(self._left.flatten(-2), self._right.flatten(-2))
        self._count = 0
