"""Any classifier of torchvision that is a chain of layers, cut where its grid gets coarser."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn

from wsss_affinity.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    FeatureInfo,
    load_weights,
)
from wsss_affinity.backbones.grid import padded_maps
from wsss_affinity.backbones.torchvision import dilate
from wsss_affinity.errors import WSSSError, did_you_mean

_SIDE = 224
_IMAGENET = "IMAGENET1K_V1"
_HALVES = (0.5, 0.5, 0.5)


class ChainBackbone(Backbone):
    """A torchvision classifier whose layers, run one after the other, leave a map at each stride.

    Args:
        network: The classifier.
        cut: Its layers and what they leave.
        mean: Of the images that it is made for.
        std: Of the same.
    """

    def __init__(
        self,
        network: nn.Module,
        cut: _Cut,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network = network
        self._cut = cut
        self.feature_info = FeatureInfo(cut.channels, cut.strides)
        self.mean, self.std = mean, std

    @property
    def stages(self) -> list[nn.Module]:
        """The layers that leave each map."""
        layer = self.network.get_submodule
        return [nn.Sequential(*map(layer, names)) for names in self._cut.stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, finest first."""
        return padded_maps(self._maps, images, self.feature_info.strides)

    def _maps(self, images: Tensor) -> list[Tensor]:
        x, maps = images, []
        for names in self._cut.stages:
            for name in names:
                x = self.network.get_submodule(name)(x)
            maps.append(x.permute(0, 3, 1, 2) if self._cut.channels_last else x)
        return maps


@dataclass(frozen=True)
class _Cut:
    """Names of the layers of each stage, and the channels and stride of the map that it leaves."""

    stages: tuple[tuple[str, ...], ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    channels_last: bool


def torchvision_backbone(
    model: str, *, output_stride: int | None = None, weights: str | None = None
) -> ChainBackbone:
    """Make a backbone of a classifier of torchvision.

    Args:
        model: torchvision's name, e.g. ``"densenet121"``.
        output_stride: 8, 16 or 32: from there on strides are traded for dilation where they are
            those of convolutions; other networks keep their own, as all do with None.
        weights: ``"imagenet"``, a path, or None.

    Raises:
        WSSSError: If torchvision has no such classifier, no such weights of it, or it is no chain
            of layers.
    """
    known = tv.list_models(module=tv)
    if model not in known:
        hint = did_you_mean(model, known)
        hint = hint if hint.startswith("did") else "see torchvision.models.list_models()"
        raise WSSSError(f"backbone 'torchvision:{model}' is no classifier of torchvision; {hint}")
    published = tv.get_model_weights(model)
    if weights == "imagenet" and _IMAGENET not in published.__members__:
        others = " and ".join(entry.name for entry in published)
        raise WSSSError(
            f"torchvision has no weights {_IMAGENET} of {model}, only {others}; save the "
            "state dict of one and give its path as weights, or null"
        )
    try:
        network = _get(model, weights=_IMAGENET if weights == "imagenet" else None)
    except OSError as error:
        raise WSSSError(
            f"ImageNet weights of {model} cannot be downloaded ({error}); give the path of a state "
            "dict as weights"
        ) from error
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        twin = _get(model, weights=None).eval()
    try:
        cut = _cut(twin)
        _strides(twin, cut, 96)  # some take one size only
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise WSSSError(
            f"torchvision's {model} is no chain of layers that leave maps ({error}); take such a "
            "network from timm, e.g. timm:vit_small_patch16_224"
        ) from error
    if output_stride is not None and cut.strides[-1] > output_stride:
        _dilate(twin, cut, output_stride)
        wanted = tuple(min(s, output_stride) for s in cut.strides)
        try:
            dilated = _strides(twin, cut) == wanted
        except RuntimeError:  # a branch that was not dilated no longer fits the other
            dilated = False
        if dilated:
            _dilate(network, cut, output_stride)
            cut = replace(cut, strides=wanted)
    if weights not in (None, "imagenet"):
        load_weights(network, weights)
    # the classifier would be a parameter that is never used
    used = {name.split(".")[0] for names in cut.stages for name in names}
    for name, _ in list(network.named_children()):
        if name not in used:
            delattr(network, name)
    backbone = ChainBackbone(network, cut, *_statistics(network, published))
    backbone.pretrained = weights is not None
    return backbone


def _get(model: str, weights: str | None) -> nn.Module:
    try:
        network: nn.Module = tv.get_model(model, weights=weights)
    except NotImplementedError:  # some cannot be made on the meta device
        with torch.device("cpu"):
            network = tv.get_model(model, weights=weights)
    if isinstance(network, tv.DenseNet):  # its last activation is not among the layers
        network.features.add_module("relu5", nn.ReLU(inplace=True))
    return network


def _statistics(
    network: nn.Module, published: Iterable[Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of the images that the published weights are made for."""
    if hasattr(network, "transform_input"):  # by its own forward, which is not run
        return _HALVES, _HALVES
    preset = next(iter(published)).transforms()
    return tuple(preset.mean), tuple(preset.std)


def _layers(network: nn.Module) -> list[str]:
    """Names of the layers up to the pooling, containers taken apart."""
    names = []
    for name, child in network.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            break
        if name.lower().startswith(("aux", "classifier", "head", "fc", "norm", "permute")):
            continue
        # layer1, stage2, … are whole
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and not name[-1].isdigit():
            names += [f"{name}.{inner}" for inner, _ in child.named_children()]
        else:
            names.append(name)
    return names


def _blank(network: nn.Module, side: int) -> Tensor:
    return torch.zeros(1, 3, side, side, device=next(network.parameters()).device)


@torch.no_grad()
def _cut(network: nn.Module) -> _Cut:
    channels_last = isinstance(network, tv.SwinTransformer)
    stages: list[list[str]] = []
    channels: list[int] = []
    strides: list[int] = []
    x = _blank(network, _SIDE)
    for name in _layers(network):
        x = network.get_submodule(name)(x)
        if x.ndim != 4:
            raise ValueError(f"layer {name} returns shape {tuple(x.shape)}")
        depth, stride = _shape(x, channels_last, _SIDE)
        if not strides or stride > strides[-1]:
            stages.append([])
            channels.append(depth)
            strides.append(stride)
        stages[-1].append(name)
        channels[-1] = depth
    return _Cut(tuple(map(tuple, stages)), tuple(channels), tuple(strides), channels_last)


def _shape(x: Tensor, channels_last: bool, side: int) -> tuple[int, int]:
    """Channels and stride of a map; strides are powers of 2, less what was not padded."""
    channels, size = (x.shape[3], x.shape[1]) if channels_last else (x.shape[1], x.shape[2])
    return channels, int(2 ** round(math.log2(side / size)))


def _dilate(network: nn.Module, cut: _Cut, output_stride: int) -> None:
    for names, stride in zip(cut.stages, cut.strides, strict=True):
        if stride > output_stride:
            for name in names:
                dilate(network.get_submodule(name), stride // output_stride)


@torch.no_grad()
def _strides(network: nn.Module, cut: _Cut, side: int = _SIDE) -> tuple[int, ...]:
    maps = ChainBackbone(network, cut)._maps(_blank(network, side))
    return tuple(_shape(m, False, side)[1] for m in maps)
