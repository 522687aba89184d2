"""VGG16 LargeFOV, the smaller of the paper's two networks; plain ``vgg16`` is torchvision's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo, HeadStyle
from wsss_affinity.backbones.registry import register_backbone
from wsss_affinity.checkpoint import load_published
from wsss_affinity.errors import WSSSError

#: Channels and convolutions of the groups conv1_*, …, conv5_*
_GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


@register_backbone("vgg16_largefov")
class VGG16LargeFOV(Backbone):
    """VGG16 as DeepLab made it a dense network (Chen et al., ICLR 2015); 20 million parameters.

    As in the code of Ahn & Kwak, CVPR 2018, whose parameter names it has: three poolings with
    stride, the fourth without, ``conv5`` dilated by 2, ``fc6`` a 3×3 and ``fc7`` a 1×1 convolution
    to 1024 channels. AffinityNet dilates ``fc6`` by 4. The published training keeps the first two
    stages. Maps, each after ReLU: conv2_2, conv3_3, conv4_3, conv5_3 and fc7.

    The network itself sees BGR in 0 … 255 less a mean colour: ``mean`` and ``std`` do the latter,
    ``forward`` turns the channels round.

    Args:
        output_stride: Only 8.
        weights: Path of weights for :func:`~wsss_affinity.checkpoint.load_published`; what is not
            of the backbone is left out. None starts at random.

    Raises:
        WSSSError: If ``output_stride`` is not 8, or the weights do not load.
    """

    feature_info = FeatureInfo((128, 256, 512, 512, 1024), (2, 4, 8, 8, 8))
    mean = (122.675 / 255, 116.669 / 255, 104.008 / 255)
    std = (1 / 255, 1 / 255, 1 / 255)
    heads = HeadStyle(
        cam_dropout=0.5, cam_activation="sqrt", cam_xavier=True, affinity_groups=(8, 16, 32)
    )

    def __init__(self, output_stride: int = 8, weights: str | None = None) -> None:
        super().__init__()
        if output_stride != 8:
            raise WSSSError(f"vgg16_largefov has output_stride 8 only, got {output_stride}")
        if weights == "imagenet":
            raise WSSSError(
                "ImageNet weights of vgg16_largefov have no download known to this library; give "
                "the path of a state dict with the published names as weights"
            )
        inputs = 3
        for group, (channels, count) in enumerate(_GROUPS, start=1):
            rate = 2 if group == 5 else 1
            for i in range(1, count + 1):
                conv = nn.Conv2d(inputs, channels, 3, padding=rate, dilation=rate)
                self.add_module(f"conv{group}_{i}", conv)
                inputs = channels
        self.fc6 = nn.Conv2d(inputs, 1024, 3, padding=1)
        self.drop6 = nn.Dropout2d(0.5)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        if weights is not None:
            load_published(self, weights)

    @property
    def stages(self) -> list[nn.Module]:
        """The groups conv1_* … conv5_*, then fc6 and fc7."""
        groups = [nn.Sequential(*self._group(i)) for i in range(1, 6)]
        return [*groups, nn.Sequential(self.fc6, self.drop6, self.fc7)]

    def for_affinity(self) -> None:
        """Dilate fc6 by 4."""
        self.fc6.padding = self.fc6.dilation = (4, 4)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps at strides 2, 4, 8, 8 and 8."""
        features = []
        x = images.flip(1)
        for group in range(1, 6):
            for conv in self._group(group):
                x = conv(x).relu_()
            features.append(x)
            if group < 5:
                # padded, so that sizes are rounded up
                x = F.max_pool2d(x, 3, stride=2 if group < 4 else 1, padding=1)
        x = self.drop6(self.fc6(x).relu_())
        features.append(self.fc7(x).relu_())
        return features[1:]

    def _group(self, group: int) -> list[nn.Module]:
        count = _GROUPS[group - 1][1]
        return [self.get_submodule(f"conv{group}_{i}") for i in range(1, count + 1)]
