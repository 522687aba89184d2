"""Dense conditional random field on class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_affinity.errors import WSSSError


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
) -> Tensor:
    r"""Sharpen scores to the edges of an image by mean-field inference in a dense CRF.

    The unary energy is :math:`-\log(\mathrm{clip}(score, 10^{-5}, 1))`, not renormalised; the
    pairwise energy is Potts with a Gaussian kernel on positions and a bilateral one on positions
    and colours (Krähenbühl & Koltun, NeurIPS 2011; defaults of Ahn & Kwak's published code).
    Runs on the CPU through ``pydensecrf``, which approximates the bilateral filter on a lattice.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        scores: ``(L, H, W)``; give only the labels that occur, the time is linear in ``L``.
        num_iterations: Mean-field iterations.
        gaussian_sxy: Width of the Gaussian kernel in pixels.
        gaussian_compat: Weight of the Gaussian kernel.
        bilateral_sxy: Width of the bilateral kernel in pixels.
        bilateral_srgb: Width of the bilateral kernel in grey levels (0 to 255).
        bilateral_compat: Weight of the bilateral kernel.

    Returns:
        ``(L, H, W)`` float32 probabilities on the device of ``scores``.

    Raises:
        ValueError: If the shapes do not fit, there is no label, or the image is not uint8.
        WSSSError: If ``pydensecrf`` is not installed.
    """
    return _mean_field(
        image,
        [scores],
        [num_iterations],
        gaussian={"sxy": gaussian_sxy, "compat": gaussian_compat},
        bilateral={"sxy": bilateral_sxy, "srgb": bilateral_srgb, "compat": bilateral_compat},
    )[0][0]


def _mean_field(
    image: Tensor | NDArray[np.uint8],
    stacks: Sequence[Tensor],
    iterations: Sequence[int],
    *,
    gaussian: dict[str, float],
    bilateral: dict[str, float],
) -> list[list[Tensor]]:
    """Probabilities for each stack of scores, after each number of iterations."""
    pixels = image.cpu().numpy() if isinstance(image, Tensor) else image
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {pixels.dtype} {pixels.shape}")
    shape = stacks[0].shape
    for scores in stacks:
        if scores.ndim != 3 or scores.shape[1:] != pixels.shape[:2] or scores.shape != shape:
            raise ValueError(
                f"scores (L, H, W) must have the image's size {pixels.shape[:2]}, "
                f"got {tuple(scores.shape)}"
            )
    labels, height, width = shape
    if labels == 0:
        raise ValueError("scores (L, H, W) must hold at least one label, got none")
    if labels == 1:
        # one label has probability 1 everywhere, and pydensecrf needs two
        return [[torch.ones_like(s, dtype=torch.float32) for _ in iterations] for s in stacks]
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise WSSSError(
            "the dense CRF needs pydensecrf; install it with `pip install pydensecrf2`"
        ) from error

    # the kernels hang on the image alone, and building them takes as long as some iterations
    crf = DenseCRF2D(width, height, labels)
    crf.addPairwiseGaussian(**gaussian)
    # pydensecrf refuses read-only arrays
    crf.addPairwiseBilateral(rgbim=np.array(pixels, order="C", copy=True), **bilateral)
    results = []
    for scores in stacks:
        values = scores.detach().float().cpu().clamp(1e-5, 1).log().neg()
        crf.setUnaryEnergy(np.ascontiguousarray(values.flatten(1).numpy()))
        state, *buffers = crf.startInference()
        after: dict[int, Tensor] = {}
        for step in range(max(iterations) + 1):
            if step:
                crf.stepInference(state, *buffers)
            if step in iterations:
                # a copy, since the state goes on changing
                now = np.array(state, dtype=np.float32).reshape(labels, height, width)
                after[step] = torch.from_numpy(now).to(scores.device)
        results.append([after[step] for step in iterations])
    return results


@dataclass(frozen=True)
class DenseCRF:
    """Parameters of :func:`dense_crf`, ready to call on ``(image, scores)``."""

    num_iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0

    def __call__(self, image: Tensor | NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Map image ``(H, W, 3)`` and scores ``(L, H, W)`` to probabilities ``(L, H, W)``."""
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
            image: ``(H, W, 3)`` uint8, RGB.
            stacks: Scores ``(L, H, W)``, all of one shape.
            iterations: After how many iterations to look, in any order; ``num_iterations`` does
                not count here.

        Returns:
            For each stack its probabilities ``(L, H, W)`` after each number of iterations.
        """
        return _mean_field(
            image,
            stacks,
            iterations,
            gaussian={"sxy": self.gaussian_sxy, "compat": self.gaussian_compat},
            bilateral={
                "sxy": self.bilateral_sxy,
                "srgb": self.bilateral_srgb,
                "compat": self.bilateral_compat,
            },
        )
