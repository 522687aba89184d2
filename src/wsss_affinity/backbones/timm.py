"""Adapter to timm's feature extractors."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from wsss_affinity.backbones.adapt import aside
from wsss_affinity.backbones.base import Backbone, FeatureInfo, load_weights
from wsss_affinity.backbones.grid import padded_maps
from wsss_affinity.errors import WSSSError, did_you_mean

_REFUSALS = (NotImplementedError, RuntimeError, TypeError, AssertionError, ValueError)


class TimmBackbone(Backbone):
    """A timm model made with ``features_only=True``.

    Images are padded with zeros, right and below, to a multiple of the strides, and the feature
    maps cropped: models that cut images into patches round sizes down, the contract up. Models that
    take one size only see the padded image resized to it, and their maps are resized back.

    Args:
        network: The feature extractor.
        image_size: The only size that it takes, or None.
    """

    def __init__(self, network: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        info: Any = network.feature_info
        self.feature_info = FeatureInfo(tuple(info.channels()), tuple(info.reduction()))
        layout = getattr(network, "output_fmt", None)
        self._channels_last = getattr(layout, "value", layout) == "NHWC"
        config: dict[str, Any] = resolve_data_config({}, model=network)  # type: ignore[no-untyped-call]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])

    @property
    def stages(self) -> list[nn.Module]:
        """The layers of the extractor, in order; of a transformer, the patches and each block."""
        inner = getattr(self.network, "model", self.network)  # of what wraps a whole model
        parts: list[nn.Module] = []
        for child in inner.children():
            several = (
                isinstance(child, (nn.Sequential, nn.ModuleList)) and inner is not self.network
            )
            parts += child.children() if several else [child]
        return parts

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, finest first."""
        return padded_maps(self._maps, images, self.feature_info.strides, self.image_size)

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last else maps


def timm_backbone(
    model: str,
    *,
    output_stride: int | None = None,
    weights: str | None = None,
    img_size: int | None = None,
) -> TimmBackbone:
    """Make a backbone of any timm model that offers ``features_only``.

    Transformers resize their position embeddings to each image where timm can do so
    (``dynamic_img_size``).

    Args:
        model: timm's name, e.g. ``"convnext_tiny"``.
        output_stride: 8, 16 or 32, for models that timm can dilate; others keep their own stride,
            and so do all with None.
        weights: ``"imagenet"`` for timm's pretrained weights, a path, or None.
        img_size: Side of the square images that the position embeddings of a transformer are made
            for; None is the model's own.

    Raises:
        WSSSError: If timm does not know the model, or cannot make it so.
    """
    if not timm.is_model(model):
        hint = did_you_mean(model, timm.list_models())
        hint = hint if hint.startswith("did") else "see timm.list_models()"
        raise WSSSError(f"backbone 'timm:{model}' is not a model of timm; {hint}")
    options = {} if img_size is None else {"img_size": img_size}
    try:
        network = _make(model, output_stride, weights == "imagenet", options)
    except OSError as error:
        raise WSSSError(
            f"ImageNet weights of timm's {model} cannot be downloaded ({error}); give the path of "
            "a state dict as weights"
        ) from error
    except _REFUSALS as error:
        raise WSSSError(
            f"timm cannot make features of {model!r} ({error}); choose another model, see "
            "timm.list_models()"
        ) from error
    if weights not in (None, "imagenet"):
        load_weights(network, weights)
    backbone = TimmBackbone(network, only_size(network, img_size))
    backbone.pretrained = weights is not None
    return backbone


def _make(
    model: str, output_stride: int | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """The extractor, with the first of the options that it takes."""
    attempts: list[dict[str, Any]] = [{"dynamic_img_size": True}, {}]
    if output_stride not in (None, 32):
        attempts.insert(0, {"output_stride": output_stride})
    error: Exception = WSSSError(model)
    for attempt in attempts:
        state = torch.get_rng_state()
        try:
            net: nn.Module = timm.create_model(
                model, features_only=True, pretrained=pretrained, **options, **attempt
            )
        except _REFUSALS as refusal:
            torch.set_rng_state(state)
            error = refusal
        else:
            return net
    raise error


def only_size(network: nn.Module, img_size: int | None = None) -> tuple[int, int] | None:
    """The size that a network is bound to; None if it takes others."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    if not config.get("fixed_input_size"):
        return None
    info: Any = network.feature_info
    multiple = math.lcm(*info.reduction())
    device = next(network.parameters()).device
    try:
        # some are said to be fixed, but are not
        with aside(network), torch.no_grad():
            network(torch.zeros(1, 3, 3 * multiple, 5 * multiple, device=device))
    except _REFUSALS:
        size = tuple(config["input_size"][1:]) if img_size is None else (img_size, img_size)
        return size[0], size[1]
    return None
