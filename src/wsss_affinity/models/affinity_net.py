"""The network that predicts which neighbouring pixels belong together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.backbones import Backbone, HeadStyle, Spec, create_backbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.layers.affinity import pairwise_affinity
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.models.walking_net import WalkingNet

_LEVEL_CHANNELS = (64, 128, 256)


class AffinityNet(WalkingNet):
    """Features whose distance tells whether two pixels show the same thing.

    The last three levels of the backbone go through 1×1 convolutions to 64, 128 and 256 channels
    and ELU, are resized to the grid of the last one and concatenated; another 1×1 convolution and
    ELU give the feature (Ahn & Kwak, CVPR 2018, section 3.2 and figure 3). Some backbones ask for a
    GroupNorm before the ELU of each level. The method runs it at output stride 8.

    Args:
        backbone: A name or module for :func:`~wsss_affinity.backbones.create_backbone`.
        radius: Radius of the neighbourhood in pixels of the feature grid.
        **backbone_options: Passed to ``create_backbone``, with ``output_stride=8`` where the
            backbone is given by name and the option is left out.

    Raises:
        WSSSError: If the backbone has fewer than three levels.

    Example:
        >>> AffinityNet("tiny")(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 34, 8, 8])
    """

    def __init__(self, backbone: Spec, radius: int = 5, **backbone_options: Any) -> None:
        super().__init__()
        if isinstance(backbone, str):
            backbone_options.setdefault("output_stride", 8)
        self.backbone = create_backbone(backbone, **backbone_options)
        if isinstance(self.backbone, Backbone):
            self.backbone.for_affinity()
        self.radius = Neighborhood(radius).radius
        info = self.backbone.feature_info
        if len(info.channels) < len(_LEVEL_CHANNELS):
            raise WSSSError(
                f"AffinityNet needs three feature maps, the backbone returns {len(info.channels)}"
            )
        self.stride = info.strides[-1]
        inputs = info.channels[-len(_LEVEL_CHANNELS) :]
        levels = [
            nn.Conv2d(i, o, 1, bias=False) for i, o in zip(inputs, _LEVEL_CHANNELS, strict=True)
        ]
        for level in levels:
            nn.init.kaiming_normal_(level.weight)
        self.levels = nn.ModuleList(levels)
        groups = getattr(self.backbone, "heads", HeadStyle()).affinity_groups
        self.norms = nn.ModuleList(
            nn.GroupNorm(groups[i], c) if groups else nn.Identity()
            for i, c in enumerate(_LEVEL_CHANNELS)
        )
        width = sum(_LEVEL_CHANNELS)
        self.fuse = nn.Conv2d(width, width, 1, bias=False)
        nn.init.xavier_uniform_(self.fuse.weight, gain=4)

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to features ``(B, 448, h, w)``."""
        maps = self.backbone(images)[-len(self.levels) :]
        grid = maps[-1].shape[-2:]
        levels = []
        for conv, norm, feature_map in zip(self.levels, self.norms, maps, strict=True):
            level = F.elu(norm(conv(feature_map)))
            if level.shape[-2:] != grid:
                level = F.interpolate(level, grid, mode="bilinear", align_corners=False)
            levels.append(level)
        return F.elu(self.fuse(torch.cat(levels, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to affinities ``(B, K, h, w)``."""
        return pairwise_affinity(self.features(images), self.radius)
