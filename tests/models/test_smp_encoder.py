import pytest
import segmentation_models_pytorch as smp
import torch

from wsss_affinity.backbones import create_backbone
from wsss_affinity.backbones.grid import to_grid
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import SegmentationNet
from wsss_affinity.models.smp_encoder import PyramidEncoder, smp_options


def test_tiny_is_named_with_its_depth_and_stride():
    before = set(smp.encoders.encoders)
    with smp_options("tiny") as options:
        assert options == {
            "encoder_name": "wsss_affinity.tiny",
            "encoder_depth": 4,
            "encoder_output_stride": 8,
        }
        assert options["encoder_name"] in smp.encoders.encoders
    assert set(smp.encoders.encoders) == before  # the library is left as it was


def test_two_modules_of_one_class_have_two_names():
    one, two = create_backbone("tiny"), create_backbone("tiny")
    with smp_options(one) as first, smp_options(two) as second:
        for module, options in ((one, first), (two, second)):
            build = smp.encoders.encoders[options["encoder_name"]]["encoder"]
            assert build(depth=4, output_stride=8).backbone is module


@pytest.mark.parametrize(
    ("spec", "depth", "stride", "channels"),
    [
        ("resnet18", 5, 16, [3, 0, 64, 128, 256, 512]),
        ("resnet18", 5, 32, [3, 0, 64, 128, 256, 512]),
        ("timm:vit_tiny_patch16_224", 4, 16, [3, 0, 192, 192, 192]),
        ("torchvision:vgg11", 5, 32, [3, 128, 256, 512, 512, 512]),
    ],
)
@torch.no_grad()
def test_levels_of_any_backbone(spec, depth, stride, channels):
    encoder = PyramidEncoder(spec, None, depth, stride).eval()
    assert encoder.out_channels == channels
    shapes = [tuple(m.shape) for m in encoder(torch.randn(1, 3, 64, 96))]
    strides = [1, *(min(2**i, stride) for i in range(1, depth + 1))]
    assert shapes == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


@torch.no_grad()
def test_levels_are_the_nearest_maps_in_order():
    encoder = PyramidEncoder("timm:vit_tiny_patch16_224", None, 4, 16).eval()
    images = torch.randn(1, 3, 64, 64)
    maps = encoder.backbone(images * encoder._scale + encoder._shift)
    *_, quarter, eighth, last = encoder(images)
    assert torch.equal(last, maps[2])
    assert torch.equal(eighth, to_grid(maps[1], (8, 8)))
    assert torch.equal(quarter, to_grid(maps[0], (16, 16)))


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "Unet", "FPN"])
def test_any_architecture_takes_any_backbone(architecture):
    spec = {"_target_": "wsss_affinity.backbones.tiny.TinyBackbone"}
    for encoder in ("torchvision:mobilenet_v3_small", create_backbone("resnet18")):
        net = SegmentationNet(3, architecture=architecture, encoder=encoder)
        assert net(torch.randn(2, 3, 50, 70)).shape == (2, 3, 50, 70)
        assert not net.pretrained
    if architecture == "DeepLabV3Plus":
        assert SegmentationNet(3, architecture, spec)(torch.randn(2, 3, 40, 40)).shape[1] == 3


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
