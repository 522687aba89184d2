import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from wsss_affinity.backbones import register_backbone, registry
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss_affinity.backbones.tiny import TinyBackbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import SegmentationNet
from wsss_affinity.models.smp_encoder import PyramidEncoder


def make(**options):
    return SegmentationNet(3, **{"architecture": "FPN", "encoder": "resnet18", **options})


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "unet", "FPN"])
@torch.no_grad()
def test_any_size(architecture):
    net = make(architecture=architecture).eval()
    for size in ((64, 96), (50, 71), (1, 1)):
        assert net(torch.randn(2, 3, *size)).shape == (2, 3, *size)


@torch.no_grad()
def test_equals_the_architecture_on_the_padded_image():
    net = make().eval()
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(net(images), net.network(images))
    expected = net.network(F.pad(images[..., :50, :71], (0, 25, 0, 14)))[..., :50, :71]
    assert torch.equal(net(images[..., :50, :71]), expected)


def test_names_reach_the_library():
    net = SegmentationNet(3, encoder="resnet18")
    assert isinstance(net.network, smp.DeepLabV3Plus)
    assert net.backbone is net.network.encoder
    assert (net.mean, net.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert net.pretrained is False


@torch.no_grad()
def test_a_timm_encoder():
    net = make(encoder="timm:mobilenetv3_small_050").eval()
    assert net(torch.zeros(1, 3, 33, 40)).shape == (1, 3, 33, 40)


@torch.no_grad()
def test_a_vit_of_timm_is_resized_to_what_decoders_expect():
    net = make(encoder="timm:vit_tiny_patch16_224").eval()
    assert isinstance(net.backbone, PyramidEncoder)
    assert not net.pretrained
    assert net(torch.zeros(1, 3, 33, 40)).shape == (1, 3, 33, 40)


def test_a_name_of_a_program_is_its_own_network(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    register_backbone("mit_b0")(TinyBackbone)  # which the library knows too
    net = make(architecture="DeepLabV3Plus", encoder="mit_b0")
    assert isinstance(net.backbone.backbone, TinyBackbone)
    assert not hasattr(make(encoder="resnet18").backbone, "backbone")  # its own of ours


def test_frozen_batchnorm_of_the_encoder():
    net = make(freeze_batchnorm=True)
    encoder = [m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(encoder) == 20
    before = {n: b.clone() for n, b in net.backbone.named_buffers()}
    # also before the first train(): Lightning keeps the mode it finds
    for mode in (net, net.train(), net.eval().train()):
        assert mode.training
        assert mode.backbone.training
        assert not any(m.training or m.weight.requires_grad for m in encoder)
        mode(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(b, before[n]) for n, b in net.backbone.named_buffers())
    assert net.backbone.conv1.weight.requires_grad


def test_batchnorm_is_free_by_default():
    net = make()
    before = net.backbone.bn1.running_mean.clone()
    net(torch.randn(2, 3, 32, 32) + 3)
    assert not torch.equal(net.backbone.bn1.running_mean, before)
    assert all(p.requires_grad for p in net.parameters())


def test_encoder_weights_from_a_file(tmp_path):
    path = tmp_path / "encoder.pth"
    source = make().backbone.state_dict()
    torch.save(source, path)
    net = make(weights=str(path))
    assert net.pretrained is True
    assert all(torch.equal(v, source[k]) for k, v in net.backbone.state_dict().items())
    with pytest.raises(WSSSError, match="does not exist"):
        make(weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "Unett"}, "architecture 'Unett' is not known; did you mean 'Unet'"),
        ({"architecture": "zzz"}, "architecture 'zzz' is not known; valid names: .*DeepLabV3Plus"),
        ({"encoder": "resnet19"}, "encoder 'resnet19' is not one of .*; did you mean 'resnet1"),
        ({"encoder": "timm:resnet1888"}, "encoder 'timm:resnet1888' is not a model of timm; see"),
        (
            {"architecture": "DPT"},
            "architecture 'DPT' cannot use encoder 'resnet18': .*choose another of the two",
        ),
        (
            {"encoder": nn.Conv2d(3, 3, 1), "weights": "imagenet"},
            "weights='imagenet' have no effect on a segmentation encoder that is already a module",
        ),
    ],
)
def test_unknown_and_unfit_names(options, message):
    with pytest.raises(WSSSError, match=message):
        make(**options)


@torch.no_grad()
def test_probabilities_average_over_scales_and_mirror_images():
    net = make().eval()
    images = torch.randn(1, 3, 40, 48)
    once = net.probabilities(images, flip=False)
    torch.testing.assert_close(once, net(images).softmax(1), rtol=1e-4, atol=1e-5)
    both = net.probabilities(images)
    mirrored = net(images.flip(-1)).softmax(1).flip(-1)
    torch.testing.assert_close(both, (once + mirrored) / 2, rtol=1e-4, atol=1e-5)
    many = net.probabilities(images, scales=(0.5, 1.0))
    torch.testing.assert_close(many.sum(1), torch.ones(1, 40, 48))
    torch.testing.assert_close(
        net.probabilities(images.flip(-1), scales=(0.5, 1.0)), many.flip(-1), rtol=1e-3, atol=1e-4
    )
