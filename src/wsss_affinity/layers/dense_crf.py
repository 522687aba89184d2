"""Dense conditional random field on class scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_affinity.errors import WSSSError
from wsss_affinity.layers.mean_field import mean_field

Backend = Literal["auto", "pydensecrf", "torch"]


def dense_crf(
    image: Tensor | NDArray[np.uint8],
    scores: Tensor,
    *,
    num_iterations: int = 10,
    gaussian_sxy: float = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 80.0,
    bilateral_srgb: float = 13.0,
    bilateral_compat: float = 10.0,
    backend: Backend = "auto",
) -> Tensor:
    r"""Sharpen scores to the edges of an image by mean-field inference in a dense CRF.

    The unary energy is :math:`-\log(\mathrm{clip}(score, 10^{-5}, 1))`, not renormalised; the
    pairwise energy is Potts with a Gaussian kernel on positions and a bilateral one on positions
    and colours (Krähenbühl & Koltun, NeurIPS 2011; defaults of Ahn & Kwak's published code).

    ``pydensecrf`` runs on one core of the CPU and approximates both kernels on a lattice: time is
    linear in pixels. ``torch`` runs on the device of ``scores`` and compares every pixel with every
    other; it is exact, but for weights that sum to less than 1e-5 of a pixel's own. Its time is
    quadratic in pixels, so it is meant for GPUs. It alone is differentiable, in the scores.

    Args:
        image: ``(H, W, 3)`` uint8, RGB, or a batch ``(B, H, W, 3)``.
        scores: ``(L, H, W)``, or ``(B, L, H, W)`` for a batch; give only the labels that occur,
            the time grows with ``L``.
        num_iterations: Mean-field iterations; 0 gives the clipped scores, normalised.
        gaussian_sxy: Width of the Gaussian kernel in pixels.
        gaussian_compat: Weight of the Gaussian kernel.
        bilateral_sxy: Width of the bilateral kernel in pixels.
        bilateral_srgb: Width of the bilateral kernel in grey levels (0 to 255).
        bilateral_compat: Weight of the bilateral kernel.
        backend: ``"pydensecrf"``, ``"torch"``, or ``"auto"``: torch for scores on a GPU.

    Returns:
        Float32 probabilities of the shape of ``scores``, on its device. An image or batch without
        pixels has none.

    Raises:
        ValueError: If the shapes do not fit, there is no label, the image is not uint8, or a
            parameter is not as :class:`DenseCRF` wants it.
        WSSSError: If ``pydensecrf`` is wanted and not installed.

    >>> image = torch.tensor([[[0, 0, 0], [9, 9, 9], [200, 200, 200]]], dtype=torch.uint8)
    >>> scores = torch.tensor([[[0.9, 0.4, 0.2]], [[0.1, 0.6, 0.8]]])
    >>> dense_crf(image, scores, gaussian_compat=0, backend="torch").argmax(0)
    tensor([[0, 0, 1]])
    """
    crf = DenseCRF(
        num_iterations=num_iterations,
        gaussian_sxy=gaussian_sxy,
        gaussian_compat=gaussian_compat,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_compat=bilateral_compat,
        backend=backend,
    )
    return crf(image, scores)


@dataclass(frozen=True)
class DenseCRF:
    """Parameters of :func:`dense_crf`, ready to call on ``(image, scores)``.

    Args:
        num_iterations: Mean-field iterations.
        gaussian_sxy: Width of the Gaussian kernel in pixels.
        gaussian_compat: Weight of the Gaussian kernel.
        bilateral_sxy: Width of the bilateral kernel in pixels.
        bilateral_srgb: Width of the bilateral kernel in grey levels (0 to 255).
        bilateral_compat: Weight of the bilateral kernel.
        backend: ``"pydensecrf"``, ``"torch"``, or ``"auto"``: torch for scores on a GPU.

    Raises:
        ValueError: If the number of iterations is not a whole number of at least 0, a width is not
            positive, a weight is negative, one of them is not finite, or the backend is unknown.
    """

    num_iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            choices = ", ".join(get_args(Backend))
            raise ValueError(f"backend must be one of {choices}, got {self.backend!r}")
        if not _is_count(self.num_iterations):
            raise ValueError(
                f"num_iterations must be a whole number of at least 0, got {self.num_iterations!r}"
            )
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("gaussian_compat", "bilateral_compat"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be at least 0 and finite, got {getattr(self, name)!r}"
                )

    def __call__(self, image: Tensor | NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Map image ``(H, W, 3)`` and scores ``(L, H, W)`` to probabilities ``(L, H, W)``.

        A batch has one more dimension in front, everywhere. Raises what :func:`dense_crf` does.
        """
        return self.snapshots(image, [scores], [self.num_iterations])[0][0]

    def snapshots(
        self,
        image: Tensor | NDArray[np.uint8],
        stacks: Sequence[Tensor],
        iterations: Sequence[int],
    ) -> list[list[Tensor]]:
        """Refine several stacks of scores of one image, and look on while it iterates.

        The results equal those of separate calls; kernels and iterations are shared.

        Args:
            image: ``(H, W, 3)`` uint8, RGB, or a batch ``(B, H, W, 3)``.
            stacks: Scores ``(L, H, W)``, or ``(B, L, H, W)``, all of one shape.
            iterations: After how many iterations to look, in any order; ``num_iterations`` does
                not count here.

        Returns:
            For each stack its probabilities, shaped as it, after each number of iterations.

        Raises:
            ValueError: If there is no stack or no number of iterations, one of these is not a whole
                number of at least 0, the shapes do not fit, there is no label, or the image is not
                uint8.
            WSSSError: If ``pydensecrf`` is wanted and not installed.
        """
        _check(image, stacks, iterations)
        # a copy, since read-only arrays are refused further on
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        if stacks[0].shape[-3] == 1 or stacks[0].numel() == 0:
            # one label has probability 1 everywhere, and pydensecrf needs two labels and a pixel
            return [[torch.ones_like(s, dtype=torch.float32) for _ in iterations] for s in stacks]
        # (B, S, L, H, W), and one image is a batch of one
        scores = torch.stack(list(stacks), -4)
        single = pixels.ndim == 3
        if single:
            pixels, scores = pixels[None], scores[None]
        on_gpu = scores.device.type == "cuda"
        if self.backend == "torch" or (self.backend == "auto" and on_gpu):
            results = self._by_all_pairs(pixels, scores, iterations)
        else:
            results = self._by_lattice(pixels, scores, iterations)
        if single:
            results = [result[0] for result in results]
        return [list(row) for row in zip(*(result.unbind(-4) for result in results), strict=True)]

    def _by_all_pairs(
        self, images: Tensor, scores: Tensor, iterations: Sequence[int]
    ) -> list[Tensor]:
        """Probabilities ``(B, S, L, H, W)`` after each number of iterations, by torch."""
        return mean_field(
            images,
            scores.float(),
            iterations,
            gaussian_sxy=self.gaussian_sxy,
            gaussian_compat=self.gaussian_compat,
            bilateral_sxy=self.bilateral_sxy,
            bilateral_srgb=self.bilateral_srgb,
            bilateral_compat=self.bilateral_compat,
        )

    def _by_lattice(
        self, images: Tensor, scores: Tensor, iterations: Sequence[int]
    ) -> list[Tensor]:
        """The same, by pydensecrf."""
        try:
            from pydensecrf.densecrf import DenseCRF2D
        except ImportError as error:
            raise WSSSError(
                "the dense CRF needs pydensecrf; install it with `pip install pydensecrf2`"
            ) from error

        labels, height, width = scores.shape[2:]
        energies = scores.detach().float().cpu().clamp(1e-5, 1).log().neg().flatten(3).contiguous()
        results = [np.empty(scores.shape, np.float32) for _ in iterations]
        for image, pixels in enumerate(images.cpu().numpy()):
            # the kernels hang on the image alone; building them takes as long as some iterations
            crf = DenseCRF2D(width, height, labels)
            crf.addPairwiseGaussian(sxy=self.gaussian_sxy, compat=self.gaussian_compat)
            crf.addPairwiseBilateral(
                sxy=self.bilateral_sxy,
                srgb=self.bilateral_srgb,
                rgbim=np.ascontiguousarray(pixels),
                compat=self.bilateral_compat,
            )
            for stack, energy in enumerate(energies[image].numpy()):
                crf.setUnaryEnergy(energy)
                state, *buffers = crf.startInference()
                for step in range(max(iterations) + 1):
                    if step:
                        crf.stepInference(state, *buffers)
                    for result, wanted in zip(results, iterations, strict=True):
                        if step == wanted:
                            result[image, stack] = np.reshape(state, (labels, height, width))
        return [torch.from_numpy(result).to(scores.device) for result in results]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(
    image: Tensor | NDArray[np.uint8], stacks: Sequence[Tensor], iterations: Sequence[int]
) -> None:
    if not stacks:
        raise ValueError("stacks must hold at least one tensor of scores, got none")
    if not iterations or not all(map(_is_count, iterations)):
        raise ValueError(
            f"iterations must be one or more whole numbers of at least 0, got {list(iterations)!r}"
        )
    shape, dtype = tuple(image.shape), str(image.dtype).removeprefix("torch.")
    if len(shape) not in (3, 4) or shape[-1] != 3 or dtype != "uint8":
        raise ValueError(
            f"image must be (H, W, 3) uint8 or a batch (B, H, W, 3), got {dtype} {shape}"
        )
    first = tuple(stacks[0].shape)
    for scores in stacks:
        got = tuple(scores.shape)
        if len(got) != len(shape) or got[-2:] != shape[-3:-1] or got[:-3] != shape[:-3]:
            layout = "(L, H, W)" if len(shape) == 3 else "(B, L, H, W)"
            raise ValueError(f"scores {layout} must have the image's size {shape[:-1]}, got {got}")
        if got != first:
            raise ValueError(f"stacks of scores must have one shape, got {first} and {got}")
    if first[-3] == 0:
        raise ValueError("scores (L, H, W) must hold at least one label, got none")
