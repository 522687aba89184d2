import copy
from functools import cache

import pytest
import torch
import torchvision.models as tv
from torch import nn

from wsss_affinity.backbones import create_backbone
from wsss_affinity.errors import WSSSError

CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "vgg16": (128, 256, 512, 512),
    "mobilenet_v2": (24, 32, 96, 1280),
}
NAMES = [pytest.param(n, marks=pytest.mark.slow if n == "resnet101" else ()) for n in CHANNELS]


@cache
def shared(name, output_stride):
    """One network a name and stride for the tests that do not change it."""
    return varied(create_backbone(name, output_stride=output_stride)).eval()


def varied(net):
    """The same statistics for the same names, none of them trivial, so that a mix-up shows."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


def strides_of(name, output_stride):
    if name == "vgg16":
        return (2, 4, 8, output_stride)
    return tuple(min(s, output_stride) for s in (4, 8, 16, 32))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_channels_and_strides(name, output_stride):
    net = shared(name, output_stride)
    strides = strides_of(name, output_stride)
    assert (net.feature_info.channels, net.feature_info.strides) == (CHANNELS[name], strides)
    for height, width in ((64, 96), (65, 47), (33, 32)):
        maps = net(torch.randn(1, 3, height, width))
        for feature, channels, stride in zip(maps, CHANNELS[name], strides, strict=True):
            assert feature.shape == (1, channels, -(-height // stride), -(-width // stride))


def torchvision_maps(name, net, images):
    """The maps by torchvision's own forward, caught at the ends of the stages."""
    model = tv.get_model(name, weights=None)
    model.load_state_dict(net.network.state_dict(), strict=False)  # the head is missing
    model.eval()
    if name.startswith("resnet"):
        ends = [model.layer1, model.layer2, model.layer3, model.layer4]
    else:
        places = {"vgg16": (8, 15, 22, 30), "mobilenet_v2": (3, 6, 13, 18)}[name]
        ends = [model.features[i] for i in places]
    caught = []
    for end in ends:
        end.register_forward_hook(lambda module, inputs, output: caught.append(output.clone()))
    model(images)
    return caught


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_undilated_equals_torchvision(name):
    net = shared(name, 32)
    images = torch.randn(1, 3, 64, 96)
    expected = torchvision_maps(name, net, images)
    assert expected[-1].std() > 0
    torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", [n for n in CHANNELS if n not in ("vgg16", "resnet101")])
@torch.no_grad()
def test_dilated_features_hold_the_undilated_ones(name, output_stride, size):
    """Every second (fourth) pixel of the finer grid looks at exactly what it looked at before."""
    coarse, fine = shared(name, 32), copy.deepcopy(shared(name, output_stride))
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, *size)
    maps = zip(coarse(images), fine(images), strict=True)
    for (before, after), stride in zip(maps, (4, 8, 16, 32), strict=True):
        step = max(1, stride // output_stride)
        scale = before.abs().max().item()
        torch.testing.assert_close(after[..., ::step, ::step], before, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_dilated_vgg16_pools_in_place_and_dilates_conv5():
    """Stride 8 as in DeepLab: pool4 3x3 with stride 1, conv5 dilated 2, no pool5."""
    fine = shared("vgg16", 8)
    images = torch.randn(1, 3, 40, 48)
    x = fine(images)[2]
    x = nn.functional.max_pool2d(x, 3, 1, 1)
    for i in (24, 26, 28):
        conv = fine.network.features[i]
        x = nn.functional.conv2d(x, conv.weight, conv.bias, padding=2, dilation=2).relu()
    torch.testing.assert_close(fine(images)[3], x)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenet_v2"])
@torch.no_grad()
def test_maps_are_not_overwritten_by_later_stages(name):
    net = shared(name, 8)
    x = torch.randn(1, 3, 40, 40)
    maps = net(x)
    for stage, feature in zip(net.stages[1:], maps, strict=True):
        x = stage(x if feature is not maps[0] else net.stages[0](x)).clone()
        torch.testing.assert_close(feature, x)


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 5), ("vgg16", 5), ("mobilenet_v2", 5)])
def test_stages_cover_the_network_once(name, stages):
    net = create_backbone(name)
    assert len(net.stages) == stages
    staged = [id(p) for stage in net.stages for p in stage.parameters()]
    assert sorted(staged) == sorted(id(p) for p in net.parameters())
    names = [n for n, _ in net.named_parameters()]
    assert all(n.startswith("network.") for n in names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenet_v2"])
def test_frozen_stages(name):
    net = create_backbone(name, freeze_stages=2)
    for i, stage in enumerate(net.train().stages):
        assert all(p.requires_grad == (i >= 2) for p in stage.parameters())
        norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.training == (i >= 2) for m in norms)


def test_frozen_batchnorm_stays_as_it_is_while_training():
    net = varied(create_backbone("resnet18", freeze_batchnorm=True))
    before = {n: b.clone() for n, b in net.named_buffers()}
    net.train()(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    expected = {n for n, _ in net.named_parameters() if ".bn" in n or "downsample.1" in n}
    assert frozen == expected


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenet_v2"])
@torch.no_grad()
def test_a_deep_copy_shares_nothing(name):
    net = create_backbone(name, freeze_stages=1).eval()
    twin = copy.deepcopy(net)
    images = torch.randn(1, 3, 32, 32)
    expected = net(images)[-1].clone()
    torch.testing.assert_close(twin(images)[-1], expected)
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in twin.parameters()}
    for parameter in net.parameters():
        parameter.zero_()
    torch.testing.assert_close(twin(images)[-1], expected)
    assert not torch.equal(net(images)[-1], expected)
    # its stages are its own, too
    twin.freeze(num_stages=5)
    assert not any(p.requires_grad for p in twin.parameters())
    assert any(p.requires_grad for p in net.parameters())


def test_replaced_modules_are_run():
    """As Lightning replaces BatchNorm for several devices."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(create_backbone("resnet18"))
    net.network.bn1 = nn.BatchNorm2d(64)
    calls = []
    net.network.bn1.register_forward_hook(lambda *_: calls.append(1))
    assert any(m is net.network.bn1 for m in net.stages[0])
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert calls == [1]


@pytest.mark.parametrize("prefix", ["", "module.", "network."])
def test_state_dicts_of_torchvision_load(tmp_path, prefix):
    model, path = varied(tv.resnet18(weights=None)), tmp_path / "resnet18.pth"
    torch.save({prefix + k: v for k, v in model.state_dict().items()}, path)
    net = create_backbone("resnet18", output_stride=8, weights=str(path))
    assert net.pretrained is True
    own = net.network.state_dict()
    assert set(model.state_dict()) - set(own) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(own[name], model.state_dict()[name]) for name in own)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(tv.mobilenet_v2(weights=None).state_dict(), tmp_path / "m.pth")
    with pytest.raises(WSSSError, match=r"fits 0 of .* is it another architecture's"):
        create_backbone("resnet18", weights=str(tmp_path / "m.pth"))
    torch.save(tv.resnet50(weights=None).state_dict(), tmp_path / "r.pth")
    with pytest.raises(WSSSError, match=r"has shape .* the backbone expects .* another arch"):
        create_backbone("resnet18", weights=str(tmp_path / "r.pth"))
    with pytest.raises(WSSSError, match="does not exist"):
        create_backbone("resnet18", weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("output_stride", [4, 12, 64, None])
def test_output_stride_is_checked(output_stride):
    with pytest.raises(WSSSError, match=f"8, 16 or 32 for resnet18, got {output_stride}"):
        create_backbone("resnet18", output_stride=output_stride)


def test_untrained_says_so():
    assert create_backbone("resnet18").pretrained is False
