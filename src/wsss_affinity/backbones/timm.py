"""Adapter to timm's feature extractors."""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo, load_weights
from wsss_affinity.errors import WSSSError, did_you_mean


class TimmBackbone(Backbone):
    """A timm model made with ``features_only=True``.

    Images are padded with zeros, right and below, to a multiple of the largest stride, and the
    feature maps cropped: models that cut images into patches round sizes down, the contract up.

    Args:
        network: The feature extractor.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        info: Any = network.feature_info
        self.feature_info = FeatureInfo(tuple(info.channels()), tuple(info.reduction()))
        layout = getattr(network, "output_fmt", None)
        self._channels_last = getattr(layout, "value", layout) == "NHWC"
        config: dict[str, Any] = resolve_data_config({}, model=network)  # type: ignore[no-untyped-call]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])

    @property
    def stages(self) -> list[nn.Module]:
        """The layers of the extractor, in order."""
        return list(self.network.children())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, finest first."""
        height, width = images.shape[-2:]
        strides = self.feature_info.strides
        coarsest = max(strides)
        maps: list[Tensor] = self.network(
            F.pad(images, (0, -width % coarsest, 0, -height % coarsest))
        )
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [
            m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, strides, strict=True)
        ]


def timm_backbone(
    model: str, *, output_stride: int | None = None, weights: str | None = None
) -> TimmBackbone:
    """Make a backbone of any timm model that offers ``features_only``.

    Args:
        model: timm's name, e.g. ``"convnext_tiny"``.
        output_stride: 8, 16 or 32, for models that timm can dilate; None leaves the model's own.
        weights: ``"imagenet"`` for timm's pretrained weights, a path, or None.

    Raises:
        WSSSError: If timm does not know the model, or cannot make it so.
    """
    if not timm.is_model(model):
        hint = did_you_mean(model, timm.list_models())
        hint = hint if hint.startswith("did") else "see timm.list_models()"
        raise WSSSError(f"backbone 'timm:{model}' is not a model of timm; {hint}")
    options: dict[str, Any] = (
        {} if output_stride in (None, 32) else {"output_stride": output_stride}
    )
    try:
        network = timm.create_model(
            model, features_only=True, pretrained=weights == "imagenet", **options
        )
    except (NotImplementedError, RuntimeError, TypeError, AssertionError) as error:
        raise WSSSError(
            f"timm cannot make features of {model!r} with output_stride={output_stride} ({error}); "
            "set output_stride to null, or choose another model"
        ) from error
    except OSError as error:
        raise WSSSError(
            f"ImageNet weights of timm's {model} cannot be downloaded ({error}); give the path of "
            "a state dict as weights"
        ) from error
    if weights not in (None, "imagenet"):
        load_weights(network, weights)
    backbone = TimmBackbone(network)
    backbone.pretrained = weights is not None
    return backbone
