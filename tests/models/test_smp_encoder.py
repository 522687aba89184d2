import pytest
import segmentation_models_pytorch as smp
import torch

from wsss_affinity.backbones import create_backbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import SegmentationNet
from wsss_affinity.models.smp_encoder import smp_options


def test_tiny_is_named_with_its_depth_and_stride():
    options = smp_options("tiny")
    assert options == {
        "encoder_name": "wsss_affinity.tiny",
        "encoder_depth": 4,
        "encoder_output_stride": 8,
    }
    assert options["encoder_name"] in smp.encoders.encoders


def test_backbone_without_a_map_at_stride_two_is_no_encoder():
    assert smp_options("resnet18") is None


def test_features_are_those_of_the_backbone(tmp_path):
    torch.manual_seed(1)
    backbone = create_backbone("tiny").eval()
    torch.save(backbone.state_dict(), tmp_path / "tiny.pth")
    net = SegmentationNet(3, encoder="tiny", weights=tmp_path / "tiny.pth").eval()
    images = torch.randn(1, 3, 64, 64)
    image, *features = net.backbone(images)
    assert torch.equal(image, images)
    for one, two in zip(features, backbone(images), strict=True):
        assert torch.equal(one, two)
    assert net(torch.randn(2, 3, 50, 70)).shape == (2, 3, 50, 70)


def test_architecture_of_another_shape_is_one_sentence():
    with pytest.raises(WSSSError, match=r"tiny|choose another"):
        SegmentationNet(3, architecture="Unet", encoder="tiny")
