import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv

from wsss_affinity.backbones import create_backbone, torchvision_chain
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss_affinity.errors import WSSSError

FINE = (2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("model", "channels", "strides", "at_8"),
    [
        ("mobilenet_v3_small", (16, 16, 24, 48, 576), FINE, (2, 4, 8, 8, 8)),
        ("regnet_x_400mf", (32, 32, 64, 160, 400), FINE, (2, 4, 8, 8, 8)),
        ("shufflenet_v2_x0_5", (24, 24, 48, 96, 1024), FINE, (2, 4, 8, 8, 8)),
        ("mnasnet0_5", (8, 16, 24, 48, 1280), FINE, (2, 4, 8, 8, 8)),
        ("densenet121", (64, 256, 512, 1024, 1024), FINE, (2, 4, 8, 16, 8)),
        ("squeezenet1_1", (64, 128, 256, 512), (2, 4, 8, 16), (2, 4, 8, 8)),
        ("swin_t", (96, 192, 384, 768), (4, 8, 16, 32), (4, 8, 16, 8)),
    ],
)
@torch.no_grad()
def test_channels_and_strides(model, channels, strides, at_8):
    net = create_backbone(f"torchvision:{model}").eval()
    assert (net.feature_info.channels, net.feature_info.strides) == (channels, strides)
    assert create_backbone(f"torchvision:{model}", output_stride=8).feature_info.strides == at_8
    images = torch.randn(1, 3, 65, 47)
    for feature, depth, stride in zip(net(images), channels, strides, strict=True):
        assert feature.shape == (1, depth, -(-65 // stride), -(-47 // stride))


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "densenet121", "regnet_x_400mf"])
@torch.no_grad()
def test_the_last_map_is_what_torchvision_pools(model, monkeypatch):
    torch.manual_seed(1)
    theirs = tv.get_model(model, weights=None).eval()
    net = create_backbone(f"torchvision:{model}").eval()
    net.network.load_state_dict(theirs.state_dict(), strict=False)
    caught = []
    pool = F.adaptive_avg_pool2d
    images = torch.randn(1, 3, 64, 96)
    with monkeypatch.context() as patch:
        patch.setattr(F, "adaptive_avg_pool2d", lambda x, s: caught.append(x.clone()) or pool(x, s))
        theirs(images)
    torch.testing.assert_close(net(images)[-1], caught[-1])


@torch.no_grad()
def test_the_last_map_of_densenet_is_activated():
    torch.manual_seed(1)
    fine, *_, last = create_backbone("torchvision:densenet121").eval()(torch.randn(1, 3, 64, 96))
    assert last.min() == 0
    assert last.max() > 0
    assert fine.shape == (1, 64, 32, 48)


@pytest.mark.parametrize("weights", [None, "imagenet"])
@pytest.mark.parametrize(
    ("model", "mean", "std"),
    [
        ("efficientnet_v2_l", (0.5,) * 3, (0.5,) * 3),
        ("efficientnet_v2_s", IMAGENET_MEAN, IMAGENET_STD),
        ("googlenet", (0.5,) * 3, (0.5,) * 3),
        ("inception_v3", (0.5,) * 3, (0.5,) * 3),
        ("densenet121", IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_statistics_are_those_of_the_published_weights(model, mean, std, weights, monkeypatch):
    untrained = torchvision_chain._get
    monkeypatch.setattr(torchvision_chain, "_get", lambda model, weights: untrained(model, None))
    with torch.device("meta"):
        net = create_backbone(f"torchvision:{model}", weights=weights)
    assert (net.mean, net.std) == (mean, std)
    assert net.pretrained is (weights is not None)


@pytest.mark.parametrize("model", ["regnet_y_128gf", "vit_h_14"])
def test_weights_that_there_are_not_are_told_those_that_there_are(model):
    with pytest.raises(
        WSSSError,
        match=f"no weights IMAGENET1K_V1 of {model}, only IMAGENET1K_SWAG_E2E_V1 and "
        "IMAGENET1K_SWAG_LINEAR_V1; save the state dict of one and give its path",
    ):
        create_backbone(f"torchvision:{model}", weights="imagenet")


@torch.no_grad()
def test_swin_is_turned_to_channels_first():
    torch.manual_seed(1)
    theirs = tv.swin_t(weights=None).eval()
    net = create_backbone("torchvision:swin_t").eval()
    net.network.load_state_dict(theirs.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(net(images)[-1], theirs.features(images).permute(0, 3, 1, 2))


def test_dilated_strides_hold_the_undilated_map():
    """Without squeeze and excitation every fourth pixel sees what it saw before."""
    torch.manual_seed(1)
    coarse = create_backbone("torchvision:regnet_x_400mf").eval()
    fine = create_backbone("torchvision:regnet_x_400mf", output_stride=8).eval()
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before, after = coarse(images)[-1], fine(images)[-1]
    scale = before.abs().max().item()
    torch.testing.assert_close(after[..., ::4, ::4], before, rtol=0, atol=1e-5 * scale)


def test_weights_of_a_file(tmp_path):
    theirs = tv.squeezenet1_1(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "s.pth")
    net = create_backbone("torchvision:squeezenet1_1", weights=str(tmp_path / "s.pth"))
    assert net.pretrained
    own = net.network.state_dict()
    assert len(own) > 40
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in own.items())
    staged = [id(p) for stage in net.stages for p in stage.parameters()]
    assert sorted(staged) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_b_16", "vit_b_16 is no chain of layers that leave maps .*; take such a network from"),
        ("maxvit_t", "maxvit_t is no chain of layers that leave maps"),
        ("fcn_resnet50", "'torchvision:fcn_resnet50' is no classifier of torchvision"),
    ],
)
def test_what_is_no_chain_is_refused(model, message):
    with pytest.raises(WSSSError, match=message):
        create_backbone(f"torchvision:{model}")
