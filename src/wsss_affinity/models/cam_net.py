"""The classifier whose activation maps start the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wsss_affinity.backbones import HeadStyle, Spec, create_backbone
from wsss_affinity.layers.cam import CAMHead
from wsss_affinity.models.multi_scale import multi_scale_sum


class CAMNet(nn.Module):
    """Multi-label classifier with class activation maps (Ahn & Kwak, CVPR 2018, section 3.1).

    Args:
        backbone: A name or module for :func:`~wsss_affinity.backbones.create_backbone`.
        num_classes: Object classes, background not counted.
        dropout: Channel dropout before pooling, training only; None for what belongs to the
            backbone.
        **backbone_options: Passed to ``create_backbone``.

    Example:
        >>> import torch
        >>> net = CAMNet("tiny", num_classes=3)
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> net(images).shape, net.cam(images).shape
        (torch.Size([2, 3]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(
        self,
        backbone: Spec,
        num_classes: int,
        dropout: float | None = None,
        **backbone_options: Any,
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone, **backbone_options)
        style = getattr(self.backbone, "heads", HeadStyle())
        self.head = CAMHead(
            self.backbone.feature_info.channels[-1],
            num_classes,
            style.cam_dropout if dropout is None else dropout,
            activation=style.cam_activation,
            xavier=style.cam_xavier,
        )

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
        return multi_scale_sum(self.cam, images, size=size, scales=scales, flip=flip)
