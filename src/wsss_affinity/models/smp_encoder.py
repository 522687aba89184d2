"""Our backbones as encoders of segmentation-models-pytorch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from wsss_affinity.backbones import Spec, create_backbone
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss_affinity.backbones.grid import to_grid


class BackboneEncoder(nn.Module, EncoderMixin):  # type: ignore[misc]
    """Returns the image and a backbone's feature maps, as decoders expect them.

    Images come normalised with ImageNet's mean and std, and are turned to the backbone's own.

    Args:
        spec: A backbone whose first maps have strides 2 and 4.
        weights: Of the backbone.
        depth: Number of feature maps, all of the backbone's.
        output_stride: Of the backbone.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, spec: Spec, weights: str | None, depth: int, output_stride: int) -> None:
        nn.Module.__init__(self)
        self.backbone = create_backbone(spec, **_options(spec, weights, output_stride))
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


class PyramidEncoder(BackboneEncoder):
    """The maps of any backbone, resized to the strides 2, 4, 8, … that decoders expect.

    Each level takes the map whose stride is nearest; of several with the same stride the deeper
    levels take the later ones. The level at stride 2 has no channels where no map is so fine, as
    in the transformers of segmentation-models-pytorch.
    """

    def __init__(self, spec: Spec, weights: str | None, depth: int, output_stride: int) -> None:
        super().__init__(spec, weights, depth, output_stride)
        info = self.backbone.feature_info
        self._strides = [min(2**level, output_stride) for level in range(1, depth + 1)]
        count = len(info.strides)

        def nearest(level: int) -> int:
            aligned = count - (depth - level)
            return min(
                range(count),
                key=lambda i: (
                    abs(math.log2(info.strides[i] / self._strides[level])),
                    abs(i - aligned),
                ),
            )

        self._picked: list[int | None] = [nearest(level) for level in range(depth)]
        if min(info.strides) > 2:
            self._picked[0] = None
        self._out_channels = [3, *(0 if i is None else info.channels[i] for i in self._picked)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to themselves and the levels, finest first."""
        _, *maps = super().forward(images)
        levels = [images]
        for picked, stride in zip(self._picked, self._strides, strict=True):
            size = -(-images.shape[-2] // stride), -(-images.shape[-1] // stride)
            level = images.new_zeros(len(images), 0, *size) if picked is None else maps[picked]
            levels.append(level if picked is None else to_grid(level, size))
        return levels


@contextmanager
def smp_options(spec: Spec, weights: str | None = None) -> Iterator[dict[str, Any]]:
    """Make a backbone known to segmentation-models-pytorch while a network is built of it.

    Args:
        spec: For :func:`~wsss_affinity.backbones.create_backbone`.
        weights: Likewise; a module has its own.

    Yields:
        The options to name it with.
    """
    with torch.device("meta"):  # nothing but its description is wanted
        backbone = create_backbone(spec, **_options(spec, None, 8))
    strides = backbone.feature_info.strides
    if isinstance(spec, nn.Module):
        label = f"{type(spec).__name__}@{id(spec):x}"
    else:
        label = json.dumps(dict(spec), sort_keys=True) if isinstance(spec, Mapping) else spec
    key = f"wsss_affinity.{label}"
    plain = strides[:3] == (2, 4, 8)
    encoder = BackboneEncoder if plain else PyramidEncoder
    smp.encoders.encoders[key] = {
        "encoder": partial(encoder, spec, weights),
        "pretrained_settings": {},
        "params": {},
    }
    shape = {"encoder_depth": len(strides), "encoder_output_stride": strides[-1]}
    try:
        yield {"encoder_name": key, **(shape if plain else {})}
    finally:
        smp.encoders.encoders.pop(key, None)


def _options(spec: Spec, weights: str | None, output_stride: int) -> dict[str, Any]:
    if isinstance(spec, nn.Module):
        return {"output_stride": output_stride}
    return {"output_stride": output_stride, "weights": weights}
