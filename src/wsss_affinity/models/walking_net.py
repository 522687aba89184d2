"""What every network that predicts affinities can do with them."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.layers.neighborhood import Border
from wsss_affinity.layers.random_walk import Method, random_walk


class WalkingNet(nn.Module):
    """Base of networks whose ``forward`` maps images ``(B, 3, H, W)`` to affinities.

    Attributes:
        stride: Side of a cell of the grid of affinities, in pixels.
        radius: Radius of the neighbourhood, in cells.
    """

    stride: int
    radius: int

    def propagate(
        self,
        images: Tensor,
        scores: Tensor,
        *,
        beta: float = 8.0,
        num_steps: int = 256,
        method: Method = "auto",
        tol: float = 1e-5,
        border: Border = "full",
        padding: Literal["masked", "psa"] = "masked",
    ) -> Tensor:
        """Spread scores over an image by a random walk along its affinities.

        Images and scores are padded with zeros, right and below, to a multiple of the stride, and
        the scores are average-pooled to the feature grid (Ahn & Kwak, CVPR 2018, section 3.3).

        Args:
            images: ``(B, 3, H, W)``, normalised.
            scores: ``(B, C, H, W)``.
            beta: Sharpness of the affinities.
            num_steps: Length of the walk.
            method: See :func:`~wsss_affinity.layers.random_walk`.
            tol: Likewise.
            border: Likewise.
            padding: ``"masked"`` averages over the pixels of the image only; ``"psa"`` counts the
                zeros of the padding, as the published code does.

        Returns:
            ``(B, C, ceil(H / stride), ceil(W / stride))``.

        Raises:
            ValueError: If images and scores differ in size, or an option is out of range.
        """
        if images.shape[-2:] != scores.shape[-2:] or images.shape[0] != scores.shape[0]:
            raise ValueError(
                f"images and scores must share batch, height and width, got {tuple(images.shape)} "
                f"and {tuple(scores.shape)}"
            )
        height, width = images.shape[-2:]
        pad = (0, -width % self.stride, 0, -height % self.stride)
        if scores.shape[1] == 0:  # pooling refuses it
            grid = (height + pad[3]) // self.stride, (width + pad[1]) // self.stride
            return scores.new_zeros(len(scores), 0, *grid)
        affinity = self(F.pad(images, pad))
        pooled = F.avg_pool2d(F.pad(scores, pad), self.stride)
        if padding == "masked":
            inside = F.pad(scores.new_ones(1, 1, height, width), pad)
            pooled = pooled / F.avg_pool2d(inside, self.stride)
        elif padding != "psa":
            raise ValueError(f"padding must be 'masked' or 'psa', got {padding!r}")
        return random_walk(
            pooled,
            affinity,
            radius=self.radius,
            beta=beta,
            num_steps=num_steps,
            method=method,
            tol=tol,
            border=border,
        )
