"""ResNet38d, the wide residual network that the paper's best results come from."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo, HeadStyle
from wsss_affinity.backbones.registry import register_backbone
from wsss_affinity.checkpoint import load_published
from wsss_affinity.errors import WSSSError


class _Basic(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU; returns its output and its entry.

    The entry, the input after BatchNorm and ReLU, also feeds the shortcut where that is a
    convolution.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        *,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(
            inputs, width, 3, stride, first_dilation, first_dilation, bias=False
        )
        self.bn_branch2b1 = nn.BatchNorm2d(width)
        self.conv_branch2b1 = nn.Conv2d(width, outputs, 3, 1, dilation, dilation, bias=False)
        self.conv_branch1: nn.Module | None = None
        if (inputs, stride) != (outputs, 1):
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        entry = self.bn_branch2a(x).relu_()
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(entry)
        branch = self.bn_branch2b1(self.conv_branch2a(entry)).relu_()
        return self.conv_branch2b1(branch) + shortcut, entry


class _Bottleneck(nn.Module):
    """1×1, dilated 3×3 and 1×1 convolution in the same manner, with channel dropout between."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        narrow, wide = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(narrow)
        self.conv_branch2b1 = nn.Conv2d(narrow, wide, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(wide)
        self.conv_branch2b2 = nn.Conv2d(wide, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        entry = self.bn_branch2a(x).relu_()
        branch = self.dropout(self.bn_branch2b1(self.conv_branch2a(entry)).relu_())
        branch = self.dropout(self.bn_branch2b2(self.conv_branch2b1(branch)).relu_())
        return self.conv_branch2b2(branch) + self.conv_branch1(entry), entry


def _basics(
    name: str,
    count: int,
    inputs: int,
    width: int,
    outputs: int,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> dict[str, nn.Module]:
    """The blocks ``name``, ``name_1``, …; the first has the stride and changes the channels."""
    blocks: dict[str, nn.Module] = {
        name: _Basic(inputs, width, outputs, stride=stride, dilation=dilation)
    }
    for i in range(1, count):
        blocks[f"{name}_{i}"] = _Basic(
            outputs, width, outputs, first_dilation=dilation, dilation=dilation
        )
    return blocks


@register_backbone("resnet38d")
class ResNet38d(Backbone):
    """Model A1 of Wu et al. ("Wider or deeper", 2016), dilated; 105 million parameters.

    As in the code of Ahn & Kwak, CVPR 2018, whose parameter names it has: pre-activation, no
    biases, stride 8. Every BatchNorm stays as loaded, whatever ``freeze_batchnorm`` says; the
    published training also keeps the first two stages. Maps, each after BatchNorm and ReLU: 128
    channels at stride 2, 256 at 4, then 512, 1024 and 4096 at 8 ("conv4", "conv5", "conv6").

    Args:
        output_stride: Only 8.
        weights: Path of weights for :func:`~wsss_affinity.checkpoint.load_published`; what is not
            of the backbone is left out. None starts at random, with BatchNorms that do nothing.

    Raises:
        WSSSError: If ``output_stride`` is not 8, or the weights do not load.
    """

    heads = HeadStyle(cam_dropout=0.5, cam_xavier=True)

    def __init__(self, output_stride: int = 8, weights: str | None = None) -> None:
        super().__init__()
        if output_stride != 8:
            raise WSSSError(f"resnet38d has output_stride 8 only, got {output_stride}")
        if weights == "imagenet":
            raise WSSSError(
                "ImageNet weights of resnet38d have no download known to this library; give their "
                "path as weights (ilsvrc-cls_rna-a1_cls1000_ep-0001.params of Wu et al., or a .pth)"
            )
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        groups: list[dict[str, nn.Module]] = [
            _basics("b2", 3, 64, 128, 128, stride=2),
            _basics("b3", 3, 128, 256, 256, stride=2),
            _basics("b4", 6, 256, 512, 512, stride=2),
            _basics("b5", 3, 512, 512, 1024, dilation=2),
            {"b6": _Bottleneck(1024, 2048, dilation=4, dropout=0.3)},
            {"b7": _Bottleneck(2048, 4096, dilation=4, dropout=0.5)},
        ]
        for group in groups:
            for name, block in group.items():
                self.add_module(name, block)
        self.bn7 = nn.BatchNorm2d(4096)
        self._groups = [list(group) for group in groups]
        self.feature_info = FeatureInfo((128, 256, 512, 1024, 4096), (2, 4, 8, 8, 8))
        self.freeze()
        if weights is not None:
            load_published(self, weights)

    @property
    def stages(self) -> list[nn.Module]:
        """conv1a, then the groups b2 … b7, the last with bn7."""
        groups = [[self.get_submodule(name) for name in names] for names in self._groups]
        groups[-1].append(self.bn7)
        return [self.conv1a, *(nn.Sequential(*group) for group in groups)]

    def freeze(self, *, batchnorm: bool = True, num_stages: int = 0) -> None:
        """Keep the first stages, and every BatchNorm, as they are."""
        super().freeze(batchnorm=True, num_stages=num_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps at strides 2, 4, 8, 8 and 8."""
        features = []
        x = self.conv1a(images)
        for name in chain.from_iterable(self._groups):
            x, entry = self.get_submodule(name)(x)
            if name in ("b3", "b4", "b5", "b6"):
                features.append(entry)
        features.append(self.bn7(x).relu_())
        return features
