"""VGG16 LargeFOV against its description, by the published names."""

import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.backbones import create_backbone
from wsss_affinity.checkpoint import LoadReport, load_published
from wsss_affinity.errors import WSSSError
from wsss_affinity.layers import pairwise_affinity
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.tasks.base import Optimization, parameter_groups

CONVS = {
    "conv1_1": (64, 3, 3, 3),
    "conv1_2": (64, 64, 3, 3),
    "conv2_1": (128, 64, 3, 3),
    "conv2_2": (128, 128, 3, 3),
    "conv3_1": (256, 128, 3, 3),
    "conv3_2": (256, 256, 3, 3),
    "conv3_3": (256, 256, 3, 3),
    "conv4_1": (512, 256, 3, 3),
    "conv4_2": (512, 512, 3, 3),
    "conv4_3": (512, 512, 3, 3),
    "conv5_1": (512, 512, 3, 3),
    "conv5_2": (512, 512, 3, 3),
    "conv5_3": (512, 512, 3, 3),
    "fc6": (1024, 512, 3, 3),
    "fc7": (1024, 1024, 1, 1),
}
CAM_HEAD = {"fc8.weight": (20, 1024, 1, 1)}
AFFINITY_HEAD = {
    "f8_3.weight": (64, 512, 1, 1),
    "f8_4.weight": (128, 512, 1, 1),
    "f8_5.weight": (256, 1024, 1, 1),
    "gn8_3.weight": (64,),
    "gn8_3.bias": (64,),
    "gn8_4.weight": (128,),
    "gn8_4.bias": (128,),
    "gn8_5.weight": (256,),
    "gn8_5.bias": (256,),
    "f9.weight": (448, 448, 1, 1),
}
SIZES = [(40, 56), (37, 45)]


def random_state(shapes):
    """Values that keep the size of what goes through."""
    state = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.rand(shape) + (0.5 if name.endswith("weight") else -0.5)
    return state


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(1)
    shapes = {f"{name}.weight": shape for name, shape in CONVS.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in CONVS.items()}
    return random_state(shapes)


@pytest.fixture(scope="module")
def cam_state(published):
    return published | random_state(CAM_HEAD)


@pytest.fixture(scope="module")
def affinity_state(published):
    return published | random_state(AFFINITY_HEAD)


@pytest.fixture(scope="module")
def net():
    return create_backbone("vgg16_largefov").eval()


def reference(state, rgb, fc6_dilation):
    """The levels conv4_3, conv5_3 and fc7 of an RGB image in 0 … 255, without dropout."""

    def conv(x, name, padding=1, dilation=1):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.relu(F.conv2d(x, weight, bias, padding=padding, dilation=dilation))

    red, green, blue = rgb.unbind(1)
    x = torch.stack([blue - 104.008, green - 116.669, red - 122.675], 1)
    x = F.max_pool2d(conv(conv(x, "conv1_1"), "conv1_2"), 3, 2, 1)
    x = F.max_pool2d(conv(conv(x, "conv2_1"), "conv2_2"), 3, 2, 1)
    x = F.max_pool2d(conv(conv(conv(x, "conv3_1"), "conv3_2"), "conv3_3"), 3, 2, 1)
    conv4 = conv(conv(conv(x, "conv4_1"), "conv4_2"), "conv4_3")
    x = F.max_pool2d(conv4, 3, 1, 1)
    for name in ("conv5_1", "conv5_2", "conv5_3"):
        x = conv(x, name, 2, 2)
    return conv4, x, conv(conv(x, "fc6", fc6_dilation, fc6_dilation), "fc7", 0)


def picture(net, size):
    """An image in 0 … 255 and as the backbone wants it."""
    rgb = torch.rand(2, 3, *size) * 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.mean, net.std))
    return rgb, (rgb / 255 - mean) / std


def agree(ours, expected):
    # near 0, where thousands of products cancel, relative to the largest value
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_names_shapes_and_size(net, published):
    own = net.state_dict()
    assert {n: tuple(v.shape) for n, v in own.items()} == {
        n: tuple(v.shape) for n, v in published.items()
    }
    assert sum(p.numel() for p in net.parameters()) == 20_483_904


@pytest.mark.parametrize("size", [*SIZES, (64, 8), (9, 1)])
@torch.no_grad()
def test_shapes(net, size):
    maps = net(torch.randn(1, 3, *size))
    assert net.feature_info.strides == (2, 4, 8, 8, 8)
    for feature, channels, stride in zip(
        maps, (128, 256, 512, 512, 1024), net.feature_info.strides, strict=True
    ):
        assert feature.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_published_cam_network(cam_state, size, prefix):
    cam_net = CAMNet("vgg16_largefov", 20).eval()
    report = load_published(cam_net, {prefix + n: v for n, v in cam_state.items()})
    assert report == LoadReport((), ())
    rgb, images = picture(cam_net.backbone, size)
    levels = reference(cam_state, rgb, fc6_dilation=1)
    for feature, expected in zip(cam_net.backbone(images)[-3:], levels, strict=True):
        agree(feature, expected)
    scores = F.conv2d(levels[-1], cam_state["fc8.weight"])
    agree(cam_net(images), scores.mean((2, 3)))
    assert (scores < 0).any()
    # squared, as the root near 0 magnifies the rounding
    agree(cam_net.cam(images) ** 2, F.relu(scores))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_published_affinity_network(affinity_state, size, prefix):
    affinity_net = AffinityNet("vgg16_largefov").eval()
    report = load_published(affinity_net, {prefix + n: v for n, v in affinity_state.items()})
    assert report == LoadReport((), ())
    rgb, images = picture(affinity_net.backbone, size)
    parts = []
    for level, i, groups in zip(
        reference(affinity_state, rgb, fc6_dilation=4), (3, 4, 5), (8, 16, 32), strict=True
    ):
        x = F.conv2d(level, affinity_state[f"f8_{i}.weight"])
        split = x.unflatten(1, (groups, -1))
        mean = split.mean((2, 3, 4), keepdim=True)
        variance = split.var((2, 3, 4), keepdim=True, correction=0)
        x = ((split - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        weight, bias = affinity_state[f"gn8_{i}.weight"], affinity_state[f"gn8_{i}.bias"]
        parts.append(F.elu(x * weight[:, None, None] + bias[:, None, None]))
    expected = F.elu(F.conv2d(torch.cat(parts, 1), affinity_state["f9.weight"]))
    agree(affinity_net.features(images), expected)
    agree(affinity_net(images), pairwise_affinity(expected))


@torch.no_grad()
def test_the_two_networks_differ_in_fc6(published):
    net = create_backbone("vgg16_largefov").eval()
    load_published(net, published)
    _, images = picture(net, (40, 56))
    narrow = net(images)
    net.for_affinity()
    wide = net(images)
    for i in range(4):
        assert torch.equal(narrow[i], wide[i])
    assert not torch.allclose(narrow[4], wide[4])


@torch.no_grad()
def test_channels_last(published):
    net = create_backbone("vgg16_largefov").eval()
    load_published(net, published)
    _, images = picture(net, (37, 45))
    expected = net(images)
    net.to(memory_format=torch.channels_last)
    for one, two in zip(
        net(images.contiguous(memory_format=torch.channels_last)), expected, strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * two.abs().max().item())


def test_freezing_and_rates(published):
    for model, new in (
        (CAMNet("vgg16_largefov", 3, freeze_stages=2), {"head.classifier.weight"}),
        (
            AffinityNet("vgg16_largefov", freeze_stages=2),
            {"fuse.weight"}
            | {f"levels.{i}.weight" for i in range(3)}
            | {f"norms.{i}.{what}" for i in range(3) for what in ("weight", "bias")},
        ),
    ):
        load_published(model, published)
        names = {id(p): n for n, p in model.named_parameters()}
        found = {
            (round(g["lr"], 6), g["weight_decay"]): {names[id(p)] for p in g["params"]}
            for g in parameter_groups(model, Optimization(lr=0.1, weight_decay=5e-4))
        }
        trained = {n for n in CONVS if not n.startswith(("conv1_", "conv2_"))}
        expected = {
            (0.1, 5e-4): {f"backbone.{n}.weight" for n in trained},
            (0.2, 0.0): {f"backbone.{n}.bias" for n in trained},
            (1.0, 5e-4): {n for n in new if n.endswith("weight")},
            (2.0, 0.0): {n for n in new if n.endswith("bias")},
        }
        assert found == {key: names for key, names in expected.items() if names}


def test_gradients_and_dropout():
    net = create_backbone("vgg16_largefov", freeze_stages=2).train()
    load_published(net, random_state({n: tuple(v.shape) for n, v in net.state_dict().items()}))
    images = torch.randn(1, 3, 32, 32) * 50
    last = net(images)[-1]
    last.sum().backward()
    for name, p in net.named_parameters():
        frozen = name.startswith(("conv1_", "conv2_"))
        assert (p.grad is None) == frozen
        assert frozen or p.grad.abs().sum() > 0
    assert not torch.equal(net(images)[-1], last)  # other channels are dropped
    assert torch.equal(net(images)[-2], net(images)[-2])


def test_weights_option(tmp_path, cam_state):
    path = tmp_path / "vgg16_cls.pth"
    torch.save({"module." + n: v for n, v in cam_state.items()}, path)
    net = create_backbone("vgg16_largefov", weights=str(path))
    assert net.pretrained
    assert all(torch.equal(v, cam_state[n]) for n, v in net.state_dict().items())
    assert not create_backbone("vgg16_largefov").pretrained


def test_options_are_checked():
    with pytest.raises(WSSSError, match="vgg16_largefov has output_stride 8 only, got 16"):
        create_backbone("vgg16_largefov", output_stride=16)
    with pytest.raises(WSSSError, match=r"no download known .*; give the path of a state dict"):
        create_backbone("vgg16_largefov", weights="imagenet")
    with pytest.raises(WSSSError, match="has 6 stages"):
        create_backbone("vgg16_largefov", freeze_stages=7)
