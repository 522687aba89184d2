"""A backbone of 0.4 million parameters that trains from nothing in a minute, for the demo."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo, load_weights
from wsss_affinity.backbones.registry import register_backbone
from wsss_affinity.errors import WSSSError


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


@register_backbone("tiny")
class TinyBackbone(Backbone):
    """Four stages of plain convolutions at strides 2, 4, 8 and 8.

    Args:
        output_stride: Only 8.
        weights: Path of a state dict, or None.

    Raises:
        WSSSError: If ``output_stride`` is not 8, or ``weights`` is ``"imagenet"``.
    """

    def __init__(self, output_stride: int = 8, weights: str | None = None) -> None:
        super().__init__()
        if output_stride != 8:
            raise WSSSError(f"the tiny backbone has output_stride 8 only, got {output_stride}")
        self.layers = nn.ModuleList(
            [
                nn.Sequential(_conv(3, 24, stride=2), _conv(24, 24)),
                nn.Sequential(_conv(24, 48, stride=2), _conv(48, 48)),
                nn.Sequential(_conv(48, 96, stride=2), _conv(96, 96)),
                nn.Sequential(_conv(96, 128, dilation=2), _conv(128, 128, dilation=2)),
            ]
        )
        self.feature_info = FeatureInfo((24, 48, 96, 128), (2, 4, 8, 8))
        if weights == "imagenet":
            raise WSSSError("the tiny backbone has no ImageNet weights; use weights=null")
        if weights is not None:
            load_weights(self, weights)
        self.pretrained = weights is not None

    @property
    def stages(self) -> list[nn.Module]:
        """One stage a feature map."""
        return list(self.layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps at strides 2, 4, 8 and 8."""
        features = []
        x = images
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features
