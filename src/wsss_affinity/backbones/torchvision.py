"""torchvision's ResNets, VGG16 and MobileNetV2, dilated to a chosen output stride."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torchvision.models as tv
from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo, load_weights
from wsss_affinity.backbones.registry import register_backbone
from wsss_affinity.errors import WSSSError


class TorchvisionBackbone(Backbone):
    """A torchvision classifier cut into stages, each but the first leaving one feature map.

    Parameter names are those of torchvision, so that its state dicts load.

    Args:
        network: The classifier, its head removed.
        stages: Names of the layers of each stage: a stem, then one stage a feature map.
        channels: Channels that each stage leaves, the stem not counted.
        strides: Strides that each stage would have undilated, the stem not counted.
        output_stride: 8, 16 or 32: from there on strides are traded for dilation.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: list[list[str]],
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        output_stride: int,
    ) -> None:
        super().__init__()
        # the stages are parts of `network`; only that is registered, or names would come twice
        self.network = network
        self._stages = stages
        for stage, stride in zip(self.stages[1:], strides, strict=True):
            if stride > output_stride:
                dilate(stage, stride // output_stride)
        self.feature_info = FeatureInfo(channels, tuple(min(s, output_stride) for s in strides))

    @property
    def stages(self) -> list[nn.Module]:
        """Stem first, then one stage a feature map."""
        layer = self.network.get_submodule
        return [nn.Sequential(*map(layer, names)) for names in self._stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, finest first."""
        features = []
        x = images
        for names in self._stages:
            for name in names:
                x = self.network.get_submodule(name)(x)
            features.append(x)
        return features[1:]


def dilate(stage: nn.Module, dilation: int) -> None:
    """Undo the strides of a stage and widen its kernels to see as far as before."""
    for module in stage.modules():
        if isinstance(module, nn.MaxPool2d):
            module.kernel_size, module.stride, module.padding = 3, 1, 1
        elif isinstance(module, nn.Conv2d):
            strided = module.stride != (1, 1)
            module.stride = (1, 1)
            if module.kernel_size != (1, 1):
                # a convolution that had the stride itself still looks at the finer grid
                rate = max(1, dilation // 2) if strided else dilation
                module.dilation = (rate, rate)
                module.padding = (rate * (module.kernel_size[0] // 2),) * 2


Cut = tuple[list[list[str]], tuple[int, ...], tuple[int, ...]]


def _resnet(network: tv.ResNet, output_stride: int) -> Cut:
    del network.fc, network.avgpool
    stages = [["conv1", "bn1", "relu", "maxpool"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    expansion = network.inplanes // 512
    channels = tuple(expansion * c for c in (64, 128, 256, 512))
    return stages, channels, (4, 8, 16, 32)


def _slices(*cuts: int) -> list[list[str]]:
    return [[f"features.{i}" for i in range(a, b)] for a, b in pairwise(cuts)]


def _vgg16(network: tv.VGG, output_stride: int) -> Cut:
    del network.classifier, network.avgpool
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # as the strided convolutions of the others round
    # the last pooling brings nothing but a coarser grid
    end, last_stride = (31, 32) if output_stride == 32 else (30, 16)
    return _slices(0, 4, 9, 16, 23, end), (128, 256, 512, 512), (2, 4, 8, last_stride)


def _mobilenet_v2(network: tv.MobileNetV2, output_stride: int) -> Cut:
    del network.classifier
    return _slices(0, 2, 4, 7, 14, 19), (24, 32, 96, 1280), (4, 8, 16, 32)


def _build(
    name: str,
    cut: Callable[[Any, int], Cut],
    *,
    output_stride: int = 16,
    weights: str | None = None,
) -> TorchvisionBackbone:
    if output_stride not in (8, 16, 32):
        raise WSSSError(f"output_stride must be 8, 16 or 32 for {name}, got {output_stride}")
    try:
        network = tv.get_model(name, weights="IMAGENET1K_V1" if weights == "imagenet" else None)
    except OSError as error:
        raise WSSSError(
            f"ImageNet weights of {name} cannot be downloaded ({error}); give the path of a state "
            "dict as weights"
        ) from error
    stages, channels, strides = cut(network, output_stride)
    backbone = TorchvisionBackbone(network, stages, channels, strides, output_stride)
    if weights not in (None, "imagenet"):
        load_weights(network, weights)
    backbone.pretrained = weights is not None
    return backbone


for _name, _cut in {
    "resnet18": _resnet,
    "resnet34": _resnet,
    "resnet50": _resnet,
    "resnet101": _resnet,
    "vgg16": _vgg16,
    "mobilenet_v2": _mobilenet_v2,
}.items():
    register_backbone(_name)(partial(_build, _name, _cut))
