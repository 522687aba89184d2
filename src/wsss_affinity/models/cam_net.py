"""The classifier whose activation maps start the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.backbones import FeatureInfo, create_backbone
from wsss_affinity.layers.cam import CAMHead


class CAMNet(nn.Module):
    """Multi-label classifier with class activation maps (Ahn & Kwak, CVPR 2018, section 3.1).

    Args:
        backbone: A name or module for :func:`~wsss_affinity.backbones.create_backbone`.
        num_classes: Object classes, background not counted.
        dropout: Channel dropout before pooling, training only.
        **backbone_options: Passed to ``create_backbone``.

    Example:
        >>> net = CAMNet("tiny", num_classes=3)
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> net(images).shape, net.cam(images).shape
        (torch.Size([2, 3]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        dropout: float = 0.0,
        **backbone_options: Any,
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone, **backbone_options)
        info = cast(FeatureInfo, self.backbone.feature_info)
        self.head = CAMHead(info.channels[-1], num_classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to logits ``(B, C)``."""
        logits: Tensor = self.head(self.backbone(images)[-1])
        return logits

    def cam(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to maps ``(B, C, h, w)``, at least 0."""
        return self.head.cam(self.backbone(images)[-1])

    def multi_scale_cam(
        self,
        images: Tensor,
        *,
        size: tuple[int, int],
        scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
        flip: bool = True,
    ) -> Tensor:
        """Sum the activation maps over scales of the image and its mirror image.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            size: ``(h, w)`` of the maps to return; all are resized to it bilinearly.
            scales: Factors on height and width; the image is resized bicubically.
            flip: Whether the mirror image takes part.

        Returns:
            ``(B, C, h, w)``, at least 0, not normalised.
        """
        total: Tensor | None = None
        for scale in scales:
            target = [max(1, round(scale * side)) for side in images.shape[-2:]]
            scaled = images
            if target != list(images.shape[-2:]):
                scaled = F.interpolate(images, target, mode="bicubic", antialias=scale < 1)
            batch = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
            maps = F.interpolate(self.cam(batch), size, mode="bilinear", align_corners=False)
            if flip:
                plain, mirrored = maps.chunk(2)
                maps = plain + mirrored.flip(-1)
            total = maps if total is None else total + maps
        if total is None:
            raise ValueError("scales is empty; give at least one factor, e.g. (1.0,)")
        return total
