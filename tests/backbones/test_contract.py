"""The contract, kept by a dozen families of networks at random weights."""

import pytest

from wsss_affinity.testing import BackboneContract


class Quick(BackboneContract):
    sizes = ((64, 96), (33, 45))
    output_strides = (8,)

    @classmethod
    def teardown_class(cls):
        """Networks are let go with their class."""
        del cls._built


class TestTiny(Quick):
    output_strides = (8, 16)

    def make(self):
        return "tiny"


class TestResNet18(Quick):
    output_strides = (8, 16)

    def make(self):
        return "resnet18"


class TestMobileNetV2(Quick):
    def make(self):
        return "mobilenet_v2"


class TestMobileNetV3(Quick):
    def make(self):
        return "torchvision:mobilenet_v3_small"


@pytest.mark.slow
class TestSqueezeNet(Quick):
    def make(self):
        return "torchvision:squeezenet1_1"


class TestEfficientNet(Quick):
    def make(self):
        return "torchvision:efficientnet_b0"


class TestConvNeXt(Quick):
    def make(self):
        return "timm:convnext_atto"


class TestSwin(Quick):
    def make(self):
        return "timm:swin_s3_tiny_224"


class TestVisionTransformer(Quick):
    def make(self):
        return "timm:vit_tiny_patch16_224"


class TestRegNet(Quick):
    def make(self):
        return "torchvision:regnet_x_400mf"


@pytest.mark.slow
class TestDenseNet(Quick):
    def make(self):
        return "torchvision:densenet121"


@pytest.mark.slow
class TestShuffleNet(Quick):
    def make(self):
        return "torchvision:shufflenet_v2_x0_5"


class TestOfOneSize(Quick):
    """Its images are resized."""

    def make(self):
        return "timm:xcit_nano_12_p16_224"


@pytest.mark.slow
class TestDINOv2(Quick):
    """Patches of 14 pixels, position embeddings for 37×37 of them."""

    tolerance = 1e-4

    def make(self):
        return "timm:vit_small_patch14_dinov2"


@pytest.mark.slow
class TestBEiT(Quick):
    """Takes images of one size only."""

    tolerance = 1e-4

    def make(self):
        return "timm:beit_base_patch16_224"


@pytest.mark.slow
class TestResNet50(Quick):
    def make(self):
        return "resnet50"


@pytest.mark.slow
class TestVGG16(Quick):
    def make(self):
        return "vgg16"


@pytest.mark.slow
class TestVGG16LargeFOV(Quick):
    def make(self):
        return "vgg16_largefov"


@pytest.mark.slow
class TestSwinOfTorchvision(Quick):
    def make(self):
        return "torchvision:swin_t"


@pytest.mark.slow
class TestResNet38d(Quick):
    def make(self):
        return "resnet38d"
