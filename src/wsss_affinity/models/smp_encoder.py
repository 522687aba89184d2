"""Our backbones as encoders of segmentation-models-pytorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from wsss_affinity.backbones import create_backbone
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD


class BackboneEncoder(nn.Module, EncoderMixin):  # type: ignore[misc]
    """Returns the image and a backbone's feature maps, as decoders expect them.

    Images come normalised with ImageNet's mean and std, and are turned to the backbone's own.

    Args:
        name: A registered backbone whose first maps have strides 2 and 4.
        depth: Number of feature maps, all of the backbone's.
        output_stride: Of the backbone.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, name: str, depth: int, output_stride: int) -> None:
        nn.Module.__init__(self)
        self.backbone = create_backbone(name, output_stride=output_stride)
        self._depth = depth
        self._in_channels = 3
        self._output_stride = output_stride
        self._out_channels = [3, *self.backbone.feature_info.channels]
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        own_mean, own_std = torch.tensor(self.backbone.mean), torch.tensor(self.backbone.std)
        scale, shift = std / own_std, (mean - own_mean) / own_std
        self.register_buffer("_scale", scale[:, None, None], persistent=False)
        self.register_buffer("_shift", shift[:, None, None], persistent=False)

    def make_dilated(self, output_stride: int) -> None:
        """Nothing is left to do: the backbone was made with that stride."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to themselves and the feature maps, finest first."""
        return [images, *self.backbone(images * self._scale + self._shift)]


def smp_options(name: str) -> dict[str, Any] | None:
    """Make a registered backbone known to segmentation-models-pytorch, in its documented way.

    Returns:
        The options to name it with; None if its maps do not have the strides of an encoder.
    """
    with torch.device("meta"):  # nothing but its description is wanted
        backbone = create_backbone(name, output_stride=8)
    strides = backbone.feature_info.strides
    if strides[:3] != (2, 4, 8):
        return None
    key = f"wsss_affinity.{name}"
    smp.encoders.encoders[key] = {
        "encoder": partial(BackboneEncoder, name),
        "pretrained_settings": {},
        "params": {},
    }
    return {
        "encoder_name": key,
        "encoder_depth": len(strides),
        "encoder_output_stride": strides[-1],
    }
