"""The sparse random walk that spreads class scores along affinities."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from wsss_affinity.layers.neighborhood import Border, Neighborhood, pair_slices
from wsss_affinity.layers.walk_matrix import WalkMatrix

Method = Literal["auto", "power", "chebyshev", "dense"]


def random_walk(
    scores: Tensor,
    affinity: Tensor,
    *,
    radius: int = 5,
    beta: float = 8.0,
    num_steps: int = 256,
    method: Method = "auto",
    tol: float = 1e-5,
    border: Border = "full",
) -> Tensor:
    r"""Walk ``num_steps`` random steps from every pixel and average the scores met there.

    With :math:`W_{ij} = a_{ij}^\beta` for neighbours in both directions, :math:`W_{ii} = 1` and
    the row sums on the diagonal of :math:`D`, the result is :math:`(D^{-1} W)^t x`
    (Ahn & Kwak, CVPR 2018, section 3.3; their :math:`x T^t` with columns of :math:`T` normalised
    is the same, since :math:`W` is symmetric).

    Methods:
        ``"dense"`` builds the N×N matrix and squares it: the published way, kept as reference.
        ``"power"`` multiplies ``num_steps`` times by the sparse matrix.
        ``"chebyshev"`` expands the power in Chebyshev polynomials, about :math:`\sqrt{t}` products
        (Sachdeva & Vishnoi, 2014): the degree is the smallest whose neglected coefficients sum to
        at most ``tol / 2``; the kept ones are rescaled to sum 1, so that constants stay constant.
        ``"auto"`` takes chebyshev where that saves products, and power otherwise.

    Args:
        scores: ``(B, C, h, w)`` floating point.
        affinity: ``(B, K, h, w)`` in [0, 1], see :func:`~wsss_affinity.layers.pairwise_affinity`.
            Values at pairs that leave the grid are ignored.
        radius: Radius the affinities were computed with.
        beta: Sharpness: affinities are raised to this power.
        num_steps: Length of the walk ``t``; 0 returns the scores.
        method: See above.
        tol: Bound on the error of ``"chebyshev"``, relative to the scores in the degree-weighted
            2-norm.
        border: Which pairs exist at the border, see :meth:`Neighborhood.valid`.

    Returns:
        ``(B, C, h, w)`` in the dtype of ``scores``. Differentiable in ``scores`` and ``affinity``.

    Raises:
        ValueError: If shapes, radius or devices do not fit each other, if affinities are negative
            or NaN, or if an option is out of range.

    Example:
        >>> x = torch.eye(4).view(1, 4, 2, 2)
        >>> walked = random_walk(x, torch.ones(1, 4, 2, 2), radius=2, num_steps=8)
        >>> walked[0, 0]
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
    """
    neighborhood = Neighborhood(radius)
    _check(scores, affinity, neighborhood, beta, num_steps, method, tol)
    if num_steps == 0 or scores.numel() == 0:
        return scores.clone()
    height, width = scores.shape[2:]
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    valid = neighborhood.valid(height, width, border).to(affinity.device)
    planes = torch.where(valid, affinity.to(dtype), 0)
    # 0 ** beta has an infinite slope for beta < 1; those pairs are cut anyway
    planes = torch.where(planes > 0, planes.clamp_min(torch.finfo(dtype).tiny) ** beta, 0)

    x = scores.to(dtype)
    coefficients = _chebyshev_coefficients(num_steps, tol)
    if method == "auto":
        method = "chebyshev" if len(coefficients) - 1 < num_steps else "power"
    if method == "dense":
        walked = _dense(x, planes, neighborhood, num_steps)
    else:
        matrix = WalkMatrix(planes, neighborhood)
        rows = x.permute(0, 2, 3, 1).contiguous() * matrix.scale
        if method == "power":
            rows = _power(rows, matrix, num_steps)
        else:
            rows = _chebyshev(rows, matrix, coefficients)
        walked = (rows / matrix.scale).permute(0, 3, 1, 2).contiguous()
    return walked.to(scores.dtype)


def _check(
    scores: Tensor,
    affinity: Tensor,
    neighborhood: Neighborhood,
    beta: float,
    num_steps: int,
    method: str,
    tol: float,
) -> None:
    planes = len(neighborhood)
    fits = (
        scores.ndim == affinity.ndim == 4
        and scores.shape[0] == affinity.shape[0]
        and scores.shape[2:] == affinity.shape[2:]
        and affinity.shape[1] == planes
    )
    if not fits:
        raise ValueError(
            f"scores (B, C, h, w) and affinity (B, {planes}, h, w) expected for radius "
            f"{neighborhood.radius}, got {tuple(scores.shape)} and {tuple(affinity.shape)}"
        )
    if not (scores.is_floating_point() and affinity.is_floating_point()):
        raise ValueError(
            f"scores and affinity must be floating point, got {scores.dtype} and {affinity.dtype}"
        )
    if scores.device != affinity.device:
        raise ValueError(
            f"scores are on {scores.device} and affinity on {affinity.device}; move one of them"
        )
    if affinity.numel() and not bool((affinity.detach() >= 0).all()):
        raise ValueError("affinity holds negative or NaN values; exp(-distance) lies in [0, 1]")
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps must be a whole number of at least 0, got {num_steps!r}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie between 0 and 1, got {tol}")


@lru_cache(maxsize=64)
def _chebyshev_coefficients(num_steps: int, tol: float) -> tuple[float, ...]:
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


def _power(x: Tensor, matrix: WalkMatrix, num_steps: int) -> Tensor:
    for _ in range(num_steps):
        x = matrix.product(x)
    return x


def _chebyshev(x: Tensor, matrix: WalkMatrix, coefficients: tuple[float, ...]) -> Tensor:
    # T_0 = x, T_1 = M x, T_{k+1} = 2 M T_k - T_{k-1}
    previous, current = x, matrix.product(x)
    total = coefficients[0] * previous + coefficients[1] * current
    for c in coefficients[2:]:
        previous, current = current, matrix.product(current, minus=previous)
        if c:
            total = total + c * current
    return total


def _dense(x: Tensor, planes: Tensor, neighborhood: Neighborhood, num_steps: int) -> Tensor:
    batch, _, height, width = x.shape
    size = height * width
    image = torch.arange(batch, device=x.device).view(-1, 1)
    pixel = torch.arange(size, device=x.device).view(height, width)
    matrix = torch.eye(size, dtype=x.dtype, device=x.device).repeat(batch, 1, 1)
    for k, (dy, dx) in enumerate(neighborhood.pairs):
        source, target = pair_slices(dy, dx)
        i, j = pixel[source].flatten(), pixel[target].flatten()
        value = planes[(slice(None), k, *source)].flatten(1)
        matrix = matrix.index_put((image, i, j), value).index_put((image, j, i), value)
    transition = matrix / matrix.sum(1, keepdim=True)
    power: Tensor = torch.linalg.matrix_power(transition, num_steps)
    return (x.flatten(2) @ power).view_as(x)


class RandomWalk(nn.Module):
    """:func:`random_walk` as a layer that stores its options.

    Args:
        radius: Radius the affinities are computed with.
        beta: Sharpness of the affinities.
        num_steps: Length of the walk.
        method: ``"auto"``, ``"power"``, ``"chebyshev"`` or ``"dense"``.
        tol: Error bound of ``"chebyshev"``.
        border: ``"full"`` or ``"psa"``.
    """

    def __init__(
        self,
        radius: int = 5,
        beta: float = 8.0,
        num_steps: int = 256,
        method: Method = "auto",
        tol: float = 1e-5,
        border: Border = "full",
    ) -> None:
        super().__init__()
        self.radius = radius
        self.beta = beta
        self.num_steps = num_steps
        self.method: Method = method
        self.tol = tol
        self.border: Border = border

    def forward(self, scores: Tensor, affinity: Tensor) -> Tensor:
        """Map scores ``(B, C, h, w)`` and affinities ``(B, K, h, w)`` to walked scores."""
        return random_walk(
            scores,
            affinity,
            radius=self.radius,
            beta=self.beta,
            num_steps=self.num_steps,
            method=self.method,
            tol=self.tol,
            border=self.border,
        )

    def extra_repr(self) -> str:
        """Parameters for ``repr``."""
        names = ("radius", "beta", "num_steps", "method", "tol", "border")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
