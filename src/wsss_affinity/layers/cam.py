"""Class activation maps: the head that makes them, and the scores built from them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-5


class CAMHead(nn.Module):
    r"""Global average pooling and a linear classifier, written so that maps can be read off it.

    ``logits = conv(GAP(dropout(f)))`` and ``CAM_c = relu(conv(f))_c`` with one 1×1 convolution
    without bias (Zhou et al., CVPR 2016; Ahn & Kwak, CVPR 2018, section 3.1).

    Args:
        in_channels: Channels of the last feature map.
        num_classes: Object classes, background not counted.
        dropout: Channel dropout before pooling, training only.
        activation: ``"relu"``, or ``"sqrt"`` for maps ``sqrt(relu(·))``, which has no gradient
            where they are 0.
        xavier: Start from Xavier-uniform weights instead of torch's own.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dropout: float = 0.0,
        *,
        activation: Literal["relu", "sqrt"] = "relu",
        xavier: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, num_classes, kernel_size=1, bias=False)
        self.activation = activation
        if xavier:
            nn.init.xavier_uniform_(self.classifier.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, D, h, w)`` to logits ``(B, C)``."""
        pooled = F.adaptive_avg_pool2d(self.dropout(features), 1)
        logits: Tensor = self.classifier(pooled)
        return logits.flatten(1)

    def cam(self, features: Tensor) -> Tensor:
        """Map features ``(B, D, h, w)`` to activation maps ``(B, C, h, w)``, at least 0."""
        maps: Tensor = self.classifier(features).relu()
        return maps.sqrt() if self.activation == "sqrt" else maps


def normalize_cam(cam: Tensor) -> Tensor:
    """Divide each class's map by its maximum over the image (plus 1e-5).

    Args:
        cam: ``(..., C, h, w)``, at least 0.

    Returns:
        Same shape, in [0, 1).

    Example:
        >>> normalize_cam(torch.tensor([[[0.0, 2.0]]])).round(decimals=3)
        tensor([[[0., 1.]]])
    """
    return cam / (cam.amax(dim=(-2, -1), keepdim=True) + _EPS)


def add_background(cam: Tensor, alpha: float) -> Tensor:
    r"""Put the background score :math:`(1 - \max_c CAM_c)^\alpha` before the class maps.

    Ahn & Kwak, CVPR 2018, equation 1. A large ``alpha`` makes the background timid.

    Args:
        cam: ``(..., C, h, w)`` in [0, 1]; ``C`` may be 0, the background is 1 then.
        alpha: Exponent, positive.

    Returns:
        ``(..., C + 1, h, w)``, the background first.

    Example:
        >>> add_background(torch.tensor([[[0.5]]]), alpha=2).flatten().tolist()
        [0.25, 0.5]
    """
    if cam.shape[-3] == 0:
        return cam.new_ones((*cam.shape[:-3], 1, *cam.shape[-2:]))
    background = (1 - cam.amax(dim=-3, keepdim=True)).clamp_min(0) ** alpha
    return torch.cat([background, cam], dim=-3)


def height_prior(height: int, centre: float, spread: float) -> Tensor:
    r"""Weigh rows by how likely a class lies there, :math:`\exp(-(y - c)^2 / 2 s^2)`.

    For classes that are in every image, such as the sky in street scenes: no image-level label
    tells them apart, but it is known where they lie.

    Args:
        height: Rows of the map.
        centre: The likeliest height, 0 the top and 1 the bottom of the image.
        spread: Standard deviation, in heights of the image; positive.

    Returns:
        ``(height, 1)``, to multiply maps ``(..., height, width)`` with.

    Example:
        >>> height_prior(2, centre=0.25, spread=0.5).flatten().tolist()
        [1.0, 0.6065306663513184]
    """
    rows = (torch.arange(height) + 0.5) / height
    return torch.exp(-0.5 * ((rows - centre) / spread) ** 2)[:, None]
