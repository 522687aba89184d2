"""The sparse random walk that spreads class scores along affinities."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn

from wsss_affinity.layers.chebyshev import chebyshev_coefficients, walk
from wsss_affinity.layers.neighborhood import Border, Neighborhood, pair_slices
from wsss_affinity.layers.transforms import outside_graphs, refuse_export, refuse_vmap
from wsss_affinity.layers.walk_planes import rounded, sharpened, symmetric

Method = Literal["auto", "power", "chebyshev", "dense"]
# what affinities may exceed 1 by
_ROUNDING = 1e-5


# a graph would be thousands of steps
@outside_graphs
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
    storage: torch.dtype | None = None,
) -> Tensor:
    r"""Walk ``num_steps`` random steps from every pixel and average the scores met there.

    With :math:`W_{ij} = a_{ij}^\beta` for neighbours in both directions, :math:`W_{ii} = 1` and
    the row sums on the diagonal of :math:`D`, the result is :math:`(D^{-1} W)^t x`
    (Ahn & Kwak, CVPR 2018, section 3.3; their :math:`x T^t` with columns of :math:`T` normalised
    is the same, since :math:`W` is symmetric).

    Methods:
        ``"dense"`` builds the N×N matrix and squares it: the published way, kept as reference.
        ``"power"`` multiplies ``num_steps`` times by the sparse matrix.
        ``"chebyshev"`` expands the power in Chebyshev polynomials, whose number grows
        with :math:`\sqrt{t}` (Sachdeva & Vishnoi, 2014): 72 products where the power takes 256, 146
        where it takes 1024. The degree is the smallest whose neglected coefficients sum to
        at most ``tol / 2``; the kept ones are rescaled to sum 1, so that constants stay constant.
        ``"auto"`` takes chebyshev where that saves products, and power otherwise.

    Images of different sizes:
        Where all affinities of a pixel are 0, its score stays and reaches no other. So images walk
        together, each as by itself, when their affinities are padded with 0 to one size
        (:func:`torch.nn.functional.pad`) and their scores with any finite numbers. Pairs that
        leave an image must be 0 too, as :func:`~wsss_affinity.layers.pairwise_affinity` makes
        them; others are multiplied by ``Neighborhood(radius).valid(h, w)`` before padding. The
        border ``"psa"`` looks at the edges of the padded grid; for that of each image, multiply
        by ``valid(h, w, "psa")`` instead and walk with ``border="full"``.

    Args:
        scores: ``(B, C, h, w)`` floating point. NaN or infinite values are not looked for; they
            make NaN of what they reach in their image and channel.
        affinity: ``(B, K, h, w)`` in [0, 1], see :func:`~wsss_affinity.layers.pairwise_affinity`.
            Pairs that leave the grid are ignored, but their values lie in [0, 1] too.
        radius: Radius the affinities were computed with.
        beta: Sharpness: affinities are raised to this power.
        num_steps: Length of the walk ``t``; 0 returns the scores.
        method: See above.
        tol: Bound on the error of ``"chebyshev"``, relative to the scores in the degree-weighted
            2-norm.
        border: Which pairs exist at the border, see :meth:`Neighborhood.valid`.
        storage: ``torch.float16`` or ``torch.bfloat16`` rounds the weights of neighbours to that
            type. What a pixel keeps is set anew, so that constants stay constant; sums and scores
            are as without. Scores in [0, 1] change by less than 2e-4 and 1e-3 in 256 steps on
            47×63 pixels. The CUDA kernel, which walks in float32, also keeps the weights in that
            type, in half the memory; elsewhere the result is the same and nothing is saved.
            Gradients are those of the rounded walk, with the rounding itself taken for the
            identity.

    Returns:
        ``(B, C, h, w)`` in the dtype of ``scores``; float16 and bfloat16 walk in float32.
        Differentiable in ``scores`` and ``affinity``, once: the sparse methods keep the scores and
        one matrix for it, and need about 14 tensors of the size of the scores in the backward
        pass, however long the walk.

    Raises:
        ValueError: If shapes, radius or devices do not fit each other, if affinities are negative,
            above 1 or NaN, if an option is out of range, or under ``torch.func.vmap``.

    Example:
        >>> x = torch.eye(4).view(1, 4, 2, 2)
        >>> walked = random_walk(x, torch.ones(1, 4, 2, 2), radius=2, num_steps=8)
        >>> walked[0, 0]
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
    """
    refuse_export("random_walk")
    _RefuseVmap.apply(scores, affinity)
    neighborhood = Neighborhood(radius)
    _check_tensors(scores, affinity, neighborhood)
    _check_options(beta, num_steps, method, tol, border, storage)
    if num_steps == 0 or scores.numel() == 0:
        return scores.clone()
    height, width = scores.shape[2:]
    coefficients = chebyshev_coefficients(num_steps, tol)
    if method == "auto":
        method = "chebyshev" if len(coefficients) - 1 < num_steps else "power"
    # half precision is for storage only: autocast would multiply in it
    kind = scores.device.type
    with torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext():
        dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
        valid = neighborhood.valid(height, width, border).to(affinity.device)
        if method == "dense":
            weights = sharpened(affinity.to(dtype), valid, beta)
            walked = _dense(scores.to(dtype), weights, neighborhood, num_steps)
        else:
            planes, scale = symmetric(affinity, valid, beta, neighborhood, dtype)
            del valid
            if storage is not None:
                planes = rounded(planes, scale, neighborhood, storage)
            kept = coefficients if method == "chebyshev" else None
            # in place of a name, so that the rows are freed where the walk makes others
            rows = walk(_to_rows(scores, scale), planes, neighborhood, kept, num_steps, storage)
            walked = (rows / scale).permute(0, 3, 1, 2).contiguous()
    return walked.to(scores.dtype)


class _RefuseVmap(torch.autograd.Function):
    """Does nothing, but ``torch.func.vmap`` asks it how to map."""

    @staticmethod
    def forward(scores: Tensor, affinity: Tensor) -> None:
        pass

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: None) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, scores: Tensor, affinity: Tensor) -> NoReturn:
        refuse_vmap("random_walk")


def _check_tensors(scores: Tensor, affinity: Tensor, neighborhood: Neighborhood) -> None:
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
    if affinity.numel():
        low, high = affinity.detach().aminmax()
        # both are NaN if any value is
        if not bool((low >= 0) & (high <= 1 + _ROUNDING)):
            raise ValueError(
                f"affinity must hold values in [0, 1], as exp(-distance) does, "
                f"got {low.item():g} to {high.item():g}"
            )


def _check_options(
    beta: float,
    num_steps: int,
    method: str,
    tol: float,
    border: str,
    storage: torch.dtype | None,
) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps must be a whole number of at least 0, got {num_steps!r}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie between 0 and 1, got {tol}")
    if border not in get_args(Border):
        raise ValueError(f"border must be 'full' or 'psa', got {border!r}")
    if storage not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"storage must be torch.float16, torch.bfloat16 or None, got {storage!r}")
    if storage is not None and method == "dense":
        raise ValueError(f"storage is for the sparse methods; leave out {storage} for 'dense'")


def _to_rows(scores: Tensor, scale: Tensor) -> Tensor:
    return (scores.to(scale.dtype).permute(0, 2, 3, 1) * scale).contiguous()


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
        storage: ``torch.float16`` or ``torch.bfloat16`` for rounded weights.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        radius: int = 5,
        beta: float = 8.0,
        num_steps: int = 256,
        method: Method = "auto",
        tol: float = 1e-5,
        border: Border = "full",
        storage: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(beta, num_steps, method, tol, border, storage)
        self.radius = Neighborhood(radius).radius
        self.beta = beta
        self.num_steps = num_steps
        self.method: Method = method
        self.tol = tol
        self.border: Border = border
        self.storage = storage

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
            storage=self.storage,
        )

    def extra_repr(self) -> str:
        """Parameters for ``repr``."""
        names = ("radius", "beta", "num_steps", "method", "tol", "border", "storage")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
