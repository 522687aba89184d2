"""The network that predicts which neighbouring pixels belong together."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.backbones import Backbone, HeadStyle, create_backbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.layers.affinity import pairwise_affinity
from wsss_affinity.layers.neighborhood import Border, Neighborhood
from wsss_affinity.layers.random_walk import Method, random_walk

_LEVEL_CHANNELS = (64, 128, 256)


class AffinityNet(nn.Module):
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

    def __init__(self, backbone: str | nn.Module, radius: int = 5, **backbone_options: Any) -> None:
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
