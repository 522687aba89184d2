"""ResNet38d against its description, by the published names."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_affinity.backbones import create_backbone
from wsss_affinity.checkpoint import LoadReport, load_published
from wsss_affinity.errors import WSSSError
from wsss_affinity.layers import pairwise_affinity
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.tasks.base import Optimization, parameter_groups

# block: channels in, between, out; stride; dilation of the first and second convolution
BASIC = {
    "b2": (64, 128, 128, 2, 1, 1),
    "b2_1": (128, 128, 128, 1, 1, 1),
    "b2_2": (128, 128, 128, 1, 1, 1),
    "b3": (128, 256, 256, 2, 1, 1),
    "b3_1": (256, 256, 256, 1, 1, 1),
    "b3_2": (256, 256, 256, 1, 1, 1),
    "b4": (256, 512, 512, 2, 1, 1),
    "b4_1": (512, 512, 512, 1, 1, 1),
    "b4_2": (512, 512, 512, 1, 1, 1),
    "b4_3": (512, 512, 512, 1, 1, 1),
    "b4_4": (512, 512, 512, 1, 1, 1),
    "b4_5": (512, 512, 512, 1, 1, 1),
    "b5": (512, 512, 1024, 1, 1, 2),
    "b5_1": (1024, 512, 1024, 1, 2, 2),
    "b5_2": (1024, 512, 1024, 1, 2, 2),
}
WITH_SHORTCUT = ("b2", "b3", "b4", "b5")
CONVS = {
    "conv1a": (64, 3, 3, 3),
    **{f"{n}.conv_branch2a": (mid, i, 3, 3) for n, (i, mid, _, *_) in BASIC.items()},
    **{f"{n}.conv_branch2b1": (o, mid, 3, 3) for n, (_, mid, o, *_) in BASIC.items()},
    **{f"{n}.conv_branch1": (BASIC[n][2], BASIC[n][0], 1, 1) for n in WITH_SHORTCUT},
    "b6.conv_branch1": (2048, 1024, 1, 1),
    "b6.conv_branch2a": (512, 1024, 1, 1),
    "b6.conv_branch2b1": (1024, 512, 3, 3),
    "b6.conv_branch2b2": (2048, 1024, 1, 1),
    "b7.conv_branch1": (4096, 2048, 1, 1),
    "b7.conv_branch2a": (1024, 2048, 1, 1),
    "b7.conv_branch2b1": (2048, 1024, 3, 3),
    "b7.conv_branch2b2": (4096, 2048, 1, 1),
}
NORMS = {
    **{f"{n}.bn_branch2a": channels[0] for n, channels in BASIC.items()},
    **{f"{n}.bn_branch2b1": channels[1] for n, channels in BASIC.items()},
    "b6.bn_branch2a": 1024,
    "b6.bn_branch2b1": 512,
    "b6.bn_branch2b2": 1024,
    "b7.bn_branch2a": 2048,
    "b7.bn_branch2b1": 1024,
    "b7.bn_branch2b2": 2048,
    "bn7": 4096,
}
CAM_HEAD = {"fc8": (20, 4096, 1, 1)}
AFFINITY_HEAD = {
    "f8_3": (64, 512, 1, 1),
    "f8_4": (128, 1024, 1, 1),
    "f8_5": (256, 4096, 1, 1),
    "f9": (448, 448, 1, 1),
}
SIZES = [(40, 56), (37, 45)]


def random_convs(shapes):
    state = {}
    for name, shape in shapes.items():
        bound = (3 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[f"{name}.weight"] = torch.empty(shape).uniform_(-bound, bound)
    return state


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(1)
    state = random_convs(CONVS)
    for name, channels in NORMS.items():
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.rand(channels) - 0.5
        state[f"{name}.running_mean"] = torch.rand(channels) - 0.5
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5
    return state


@pytest.fixture(scope="module")
def net():
    """Built once: it is 420 MB."""
    return create_backbone("resnet38d", freeze_stages=2).eval()


@pytest.fixture
def loaded(net, published):
    load_published(net, published)
    return net.eval()


def reference(state, images):
    """The maps at the entries of b3, b4, b5 and b6, and after bn7; without dropout."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{what}"][:, None, None]
            for what in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / (var + 1e-5).sqrt() * weight + bias)

    def conv(x, name, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        padding = dilation if weight.shape[-1] == 3 else 0
        return F.conv2d(x, weight, None, stride, padding, dilation)

    entries = {}
    x = conv(images, "conv1a")
    for name, (_, _, _, stride, first, second) in BASIC.items():
        entries[name] = entry = norm(x, f"{name}.bn_branch2a")
        if name in WITH_SHORTCUT:
            x = conv(entry, f"{name}.conv_branch1", stride)
        y = conv(entry, f"{name}.conv_branch2a", stride, first)
        x = x + conv(norm(y, f"{name}.bn_branch2b1"), f"{name}.conv_branch2b1", 1, second)
    for name in ("b6", "b7"):
        entries[name] = entry = norm(x, f"{name}.bn_branch2a")
        y = norm(conv(entry, f"{name}.conv_branch2a"), f"{name}.bn_branch2b1")
        y = norm(conv(y, f"{name}.conv_branch2b1", 1, 4), f"{name}.bn_branch2b2")
        x = conv(y, f"{name}.conv_branch2b2") + conv(entry, f"{name}.conv_branch1")
    return [*(entries[name] for name in ("b3", "b4", "b5", "b6")), norm(x, "bn7")]


def agree(ours, expected):
    # near 0, where thousands of products cancel, relative to the largest value
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_names_shapes_and_size(net, published):
    own = {
        n: tuple(v.shape)
        for n, v in net.state_dict().items()
        if not n.endswith("num_batches_tracked")
    }
    assert own == {n: tuple(v.shape) for n, v in published.items()}
    assert sum(p.numel() for p in net.parameters()) == 105_070_912
    assert len(CONVS) == 1 + 2 * 15 + 4 + 8


@pytest.mark.parametrize("size", [*SIZES, (8, 9), (1, 3)])
@torch.no_grad()
def test_shapes(net, size):
    maps = net(torch.randn(1, 3, *size))
    assert net.feature_info.strides == (2, 4, 8, 8, 8)
    for feature, channels, stride in zip(
        maps, (128, 256, 512, 1024, 4096), net.feature_info.strides, strict=True
    ):
        assert feature.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize(("size", "prefix"), [(SIZES[0], ""), (SIZES[1], "module.")])
@torch.no_grad()
def test_published_cam_network(net, published, size, prefix):
    state = published | random_convs(CAM_HEAD)
    cam_net = CAMNet(net, 20).eval()
    for p in cam_net.state_dict().values():
        p.zero_()
    report = load_published(cam_net, {prefix + n: v for n, v in state.items()})
    assert report == LoadReport((), ())
    images = torch.randn(1, 3, *size)
    levels = reference(state, images)
    for feature, expected in zip(net(images), levels, strict=True):
        agree(feature, expected)
    scores = F.conv2d(levels[-1], state["fc8.weight"])
    agree(cam_net(images), scores.mean((2, 3)))
    assert (scores < 0).any()
    agree(cam_net.cam(images), F.relu(scores))


@pytest.mark.parametrize(("size", "prefix"), [(SIZES[0], "module."), (SIZES[1], "")])
@torch.no_grad()
def test_published_affinity_network(net, published, size, prefix):
    state = published | random_convs(AFFINITY_HEAD)
    affinity_net = AffinityNet(net).eval()
    for p in affinity_net.state_dict().values():
        p.zero_()
    report = load_published(affinity_net, {prefix + n: v for n, v in state.items()})
    assert report == LoadReport((), ())
    images = torch.randn(1, 3, *size)
    levels = zip(reference(state, images)[-3:], ("f8_3", "f8_4", "f8_5"), strict=True)
    parts = [F.elu(F.conv2d(level, state[f"{name}.weight"])) for level, name in levels]
    expected = F.elu(F.conv2d(torch.cat(parts, 1), state["f9.weight"]))
    agree(affinity_net.features(images), expected)
    agree(affinity_net(images), pairwise_affinity(expected))


def test_batchnorm_is_frozen_with_and_without_the_option(loaded):
    norms = [m for m in loaded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(NORMS)
    for options in ({}, {"num_stages": 2}, {"batchnorm": False}, {"batchnorm": True}):
        loaded.freeze(**options)
        assert loaded.train().training
        assert loaded.b7.dropout.training
        assert not any(m.training or m.weight.requires_grad or m.bias.requires_grad for m in norms)
    before = [m.running_mean.clone() for m in norms]
    with torch.no_grad():
        loaded.train()(torch.randn(1, 3, 16, 16))
    assert all(torch.equal(m.running_mean, old) for m, old in zip(norms, before, strict=True))


def test_freezing_gradients_and_rates(loaded):
    frozen = ("conv1a.", "b2.", "b2_1.", "b2_2.")
    loaded.freeze(num_stages=2)
    model = CAMNet(loaded, 3).train()
    model(torch.randn(1, 3, 16, 24)).sum().backward()
    trained = set()
    for name, p in loaded.named_parameters():
        kept = name.startswith(frozen) or "bn" in name
        assert (p.grad is None) == kept, name
        if not kept:
            assert p.grad.abs().sum() > 0, name
            trained.add(f"backbone.{name}")
    model.zero_grad(set_to_none=True)
    assert len(trained) == len(CONVS) - 1 - 7
    for other, new in (
        (model, {"head.classifier.weight"}),
        (AffinityNet(loaded), {"fuse.weight", *(f"levels.{i}.weight" for i in range(3))}),
    ):
        names = {id(p): n for n, p in other.named_parameters()}
        groups = parameter_groups(other, Optimization(lr=0.01, weight_decay=5e-4))
        assert [round(g["lr"], 6) for g in groups] == [0.01, 0.1]
        assert [{names[id(p)] for p in g["params"]} for g in groups] == [trained, new]


@torch.no_grad()
def test_dropout_is_in_the_last_two_blocks_and_the_head(loaded):
    images = torch.randn(1, 3, 16, 16)
    plain, dropped = loaded.eval()(images), loaded.train()(images)
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], dropped[:4], strict=True))
    assert not torch.allclose(plain[4], dropped[4])
    rates = {n: m.p for n, m in CAMNet(loaded, 2).named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {"backbone.b6.dropout": 0.3, "backbone.b7.dropout": 0.5, "head.dropout": 0.5}


def test_options_are_checked():
    with pytest.raises(WSSSError, match="resnet38d has output_stride 8 only, got 16"):
        create_backbone("resnet38d", output_stride=16)
    with pytest.raises(WSSSError, match=r"no download known .* give their path as weights"):
        create_backbone("resnet38d", weights="imagenet")
