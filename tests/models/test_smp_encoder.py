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


@torch.no_grad()
def test_images_are_turned_to_the_normalisation_of_the_backbone():
    net = SegmentationNet(3, encoder="vgg16_largefov").eval()
    pixels = torch.rand(1, 3, 64, 64)
    backbone = net.backbone.backbone
    ours, own = (
        (pixels - torch.tensor(n.mean)[:, None, None]) / torch.tensor(n.std)[:, None, None]
        for n in (net, backbone)
    )
    image, *features = net.backbone(ours)
    assert torch.equal(image, ours)
    for one, two in zip(features, backbone(own), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * two.abs().max().item())
    assert not any("_scale" in name or "_shift" in name for name in net.state_dict())


@pytest.mark.parametrize("encoder", ["vgg16_largefov", "resnet38d"])
@torch.no_grad()
def test_networks_of_the_paper(encoder):
    net = SegmentationNet(3, encoder=encoder).eval()
    assert net(torch.randn(1, 3, 37, 45)).shape == (1, 3, 37, 45)


def test_published_weights_of_an_encoder(tmp_path):
    state = create_backbone("vgg16_largefov").state_dict()
    torch.save({f"module.{n}": v for n, v in state.items()}, tmp_path / "vgg16_cls.pth")
    net = SegmentationNet(3, encoder="vgg16_largefov", weights=tmp_path / "vgg16_cls.pth")
    assert net.pretrained
    assert torch.equal(net.backbone.backbone.fc7.weight, state["fc7.weight"])


def test_architecture_of_another_shape_is_one_sentence():
    with pytest.raises(WSSSError, match=r"tiny|choose another"):
        SegmentationNet(3, architecture="Unet", encoder="tiny")
