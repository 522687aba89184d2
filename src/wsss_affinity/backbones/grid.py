"""Bringing feature maps to the grid that the contract promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo


def to_grid(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map ``(B, C, h, w)``: bilinearly to a finer grid, by area averages to a coarser."""
    height, width = feature_map.shape[-2:]
    if (height, width) == size:
        return feature_map
    if height >= size[0] and width >= size[1]:
        return F.interpolate(feature_map, size, mode="area")
    return F.interpolate(feature_map, size, mode="bilinear", align_corners=False)


def padded_maps(
    network: Callable[[Tensor], Sequence[Tensor]],
    images: Tensor,
    strides: Sequence[int],
    image_size: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Run a network that rounds sizes as it likes, and return maps whose sizes are rounded up.

    Images are padded with zeros, right and below, to a multiple of all strides; the maps, resized
    where they still differ, are cropped.

    Args:
        network: Maps images to feature maps ``(B, C, h, w)``.
        images: ``(B, 3, H, W)``.
        strides: Of the maps.
        image_size: The only size that the network takes; the padded images are resized to it.

    Returns:
        Maps ``(B, C, ceil(H / stride), ceil(W / stride))``.
    """
    height, width = images.shape[-2:]
    multiple = math.lcm(*strides)
    padded = F.pad(images, (0, -width % multiple, 0, -height % multiple))
    full_height, full_width = padded.shape[-2:]
    seen = padded
    if image_size is not None and padded.shape[-2:] != image_size:
        seen = F.interpolate(padded, image_size, mode="bilinear", antialias=True)
    maps = []
    for feature_map, stride in zip(network(seen), strides, strict=True):
        resized = to_grid(feature_map, (full_height // stride, full_width // stride))
        maps.append(resized[..., : -(-height // stride), : -(-width // stride)])
    return maps


class ResampledBackbone(Backbone):
    """A backbone whose last map is resized to the grid of a chosen output stride.

    For networks that cannot trade strides for dilation. The other maps stay as they are;
    AffinityNet brings them to the grid of the last one.

    Args:
        network: The backbone.
        output_stride: Stride of the last map: finer grids are interpolated bilinearly, coarser
            ones averaged.
    """

    def __init__(self, network: Backbone, output_stride: int) -> None:
        super().__init__()
        self.network = network
        info = network.feature_info
        self.feature_info = FeatureInfo(info.channels, (*info.strides[:-1], output_stride))
        self.mean, self.std = network.mean, network.std
        self.heads, self.pretrained = network.heads, network.pretrained

    @property
    def stages(self) -> list[nn.Module]:
        """Those of the backbone."""
        return self.network.stages

    def for_affinity(self) -> None:
        """Change the backbone."""
        self.network.for_affinity()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, the last at the chosen stride."""
        *maps, last = self.network(images)
        stride = self.feature_info.strides[-1]
        height, width = images.shape[-2:]
        return [*maps, to_grid(last, (-(-height // stride), -(-width // stride)))]

    def extra_repr(self) -> str:
        """The strides before and after."""
        before = self.network.feature_info.strides[-1]
        return f"last map resized from stride {before} to {self.feature_info.strides[-1]}"
