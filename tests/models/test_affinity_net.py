import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_affinity.backbones import Backbone, FeatureInfo, HeadStyle
from wsss_affinity.errors import WSSSError
from wsss_affinity.layers import Neighborhood, pairwise_affinity
from wsss_affinity.models import AffinityNet


class Pyramid(Backbone):
    """Average pooling and a 1x1 convolution a level: cheap, and local to the cell."""

    def __init__(self, strides=(2, 4, 8), channels=(5, 6, 7)):
        super().__init__()
        self.feature_info = FeatureInfo(channels, strides)
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 1) for c in channels)

    def forward(self, images):
        info = self.feature_info
        return [
            conv(F.avg_pool2d(images, s, ceil_mode=True))
            for conv, s in zip(self.convs, info.strides, strict=True)
        ]


@pytest.fixture
def net():
    return AffinityNet(Pyramid(), radius=3).eval()


def test_head_shapes():
    net = AffinityNet("tiny")
    assert [tuple(level.weight.shape) for level in net.levels] == [
        (64, 48, 1, 1),
        (128, 96, 1, 1),
        (256, 128, 1, 1),
    ]
    assert net.fuse.weight.shape == (448, 448, 1, 1)
    assert all(m.bias is None for m in (*net.levels, net.fuse))
    assert (net.radius, net.stride) == (5, 8)


def test_initialisation():
    net = AffinityNet(Pyramid(channels=(300, 400, 500)))
    for level, fan_in in zip(net.levels, (300, 400, 500), strict=True):
        # Kaiming normal
        assert level.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert abs(level.weight.mean().item()) < 0.002
    bound = 4 * math.sqrt(6 / (448 + 448))  # Xavier uniform, gain 4
    assert net.fuse.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert net.fuse.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


@torch.no_grad()
def test_features_of_mixed_strides(net):
    images = torch.randn(2, 3, 24, 40)
    maps = net.backbone(images)
    levels = []
    for feature, conv in zip(maps, net.levels, strict=True):
        level = torch.einsum("od,bdhw->bohw", conv.weight[:, :, 0, 0], feature)
        level = torch.where(level > 0, level, level.exp() - 1)
        levels.append(F.interpolate(level, (3, 5), mode="bilinear", align_corners=False))
    fused = torch.einsum("od,bdhw->bohw", net.fuse.weight[:, :, 0, 0], torch.cat(levels, 1))
    expected = torch.where(fused > 0, fused, fused.exp() - 1)
    features = net.features(images)
    assert features.shape == (2, 448, 3, 5)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(images), pairwise_affinity(features, 3))


def test_takes_the_last_three_levels():
    net = AffinityNet(Pyramid((1, 2, 4, 8, 8), (2, 3, 4, 5, 6)))
    assert [level.in_channels for level in net.levels] == [4, 5, 6]
    assert net.stride == 8
    with pytest.raises(WSSSError, match="needs three feature maps, the backbone returns 2"):
        AffinityNet(Pyramid((4, 8), (3, 4)))


class Grouped(Pyramid):
    heads = HeadStyle(affinity_groups=(8, 16, 32))
    asked = 0

    def for_affinity(self):
        self.asked += 1


@torch.no_grad()
def test_group_norm_where_the_backbone_asks_for_it(net):
    assert not any(name.startswith("norms") for name in net.state_dict())
    grouped = AffinityNet(Grouped()).eval()
    assert grouped.backbone.asked == 1
    assert [(m.num_groups, m.num_channels) for m in grouped.norms] == [
        (8, 64),
        (16, 128),
        (32, 256),
    ]
    grouped.load_state_dict(net.state_dict(), strict=False)
    images = torch.randn(1, 3, 24, 40)
    levels = []
    for feature, conv, groups in zip(
        grouped.backbone(images), grouped.levels, (8, 16, 32), strict=True
    ):
        level = F.elu(F.group_norm(conv(feature), groups))
        levels.append(F.interpolate(level, (3, 5), mode="bilinear", align_corners=False))
    expected = F.elu(grouped.fuse(torch.cat(levels, 1)))
    torch.testing.assert_close(grouped.features(images), expected)
    assert not torch.allclose(net.features(images), expected)


def test_a_module_of_another_base_class():
    class Other(nn.Module):
        feature_info = FeatureInfo((3, 3, 3), (2, 4, 16))
        mean = std = (0.5, 0.5, 0.5)

        def forward(self, images):
            return [F.avg_pool2d(images, stride) for stride in self.feature_info.strides]

    assert not list(AffinityNet(Other()).norms.parameters())
    images = torch.rand(1, 3, 32, 48)
    assert AffinityNet(Other())(images).shape == (1, 34, 2, 3)
    assert AffinityNet(Other(), output_stride=8)(images).shape == (1, 34, 4, 6)


def test_stride_is_8_unless_told_otherwise():
    assert AffinityNet("resnet18").stride == 8
    assert AffinityNet("resnet18", output_stride=16).stride == 16
    with pytest.raises(ValueError, match="radius must be a whole number of at least 2, got 1"):
        AffinityNet("tiny", radius=1)


def test_gradients_reach_every_parameter():
    net = AffinityNet("tiny")
    net(torch.randn(2, 3, 40, 48)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def reference_walk(net, images, scores, padding, border, beta, num_steps):
    """Pad, pool and walk with loops and a dense matrix, float64."""
    batch, channels, height, width = scores.shape
    rows, columns = -(-height // 8), -(-width // 8)
    padded = torch.zeros(batch, 3, rows * 8, columns * 8)
    padded[..., :height, :width] = images
    with torch.no_grad():
        affinity = net(padded).double().numpy()
    pooled = np.zeros((batch, channels, rows, columns))
    values = scores.double().numpy()
    for y in range(rows):
        for x in range(columns):
            cell = values[..., 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            count = cell.shape[-1] * cell.shape[-2] if padding == "masked" else 64
            pooled[..., y, x] = cell.sum((-2, -1)) / count
    valid = Neighborhood(net.radius).valid(rows, columns, border).numpy()
    out = np.zeros_like(pooled)
    for b in range(batch):
        matrix = np.eye(rows * columns)
        for k, (dy, dx) in enumerate(Neighborhood(net.radius).pairs):
            for y, x in zip(*valid[k].nonzero(), strict=True):
                i, j = y * columns + x, (y + dy) * columns + x + dx
                matrix[i, j] = matrix[j, i] = affinity[b, k, y, x] ** beta
        power = np.linalg.matrix_power(matrix / matrix.sum(0), num_steps)
        out[b] = (pooled[b].reshape(channels, -1) @ power).reshape(channels, rows, columns)
    return torch.from_numpy(out)


@pytest.mark.parametrize("padding", ["masked", "psa"])
@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize("size", [(64, 72), (61, 66), (7, 9)])
@torch.no_grad()
def test_propagate_equals_loops(net, size, border, padding):
    images, scores = 0.1 * torch.randn(2, 3, *size), torch.rand(2, 4, *size)
    options = {"padding": padding, "border": border, "beta": 2.0, "num_steps": 32}
    result = net.propagate(images, scores, **options)
    expected = reference_walk(net, images, scores, **options)
    assert result.shape == (2, 4, -(-size[0] // 8), -(-size[1] // 8))
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_padding_changes_constants_only_where_it_counts(net):
    images, scores = torch.randn(1, 3, 61, 66), torch.full((1, 2, 61, 66), 0.7)
    masked = net.propagate(images, scores, padding="masked")
    torch.testing.assert_close(masked, torch.full((1, 2, 8, 9), 0.7), rtol=0, atol=1e-4)
    # zeros of the padding: 5 of 8 rows and 2 of 8 columns hold scores in the last cells
    psa = net.propagate(images, scores, padding="psa", num_steps=0)
    expected = torch.full((8, 9), 0.7)
    expected[-1] *= 5 / 8
    expected[:, -1] *= 2 / 8
    torch.testing.assert_close(psa[0, 0], expected)
    # without padding the two are one
    whole = torch.randn(1, 3, 64, 72), torch.rand(1, 2, 64, 72)
    assert torch.equal(net.propagate(*whole, padding="psa"), net.propagate(*whole))


@torch.no_grad()
def test_defaults_are_those_of_the_paper(net):
    images, scores = 0.1 * torch.randn(1, 3, 40, 40), torch.rand(1, 2, 40, 40)
    told = net.propagate(
        images, scores, beta=8.0, num_steps=256, method="auto", tol=1e-5, border="full"
    )
    assert torch.equal(net.propagate(images, scores), told)
    dense = net.propagate(images, scores, method="dense")
    torch.testing.assert_close(told, dense, rtol=0, atol=1e-4)
    assert not torch.equal(told, dense)


def test_propagate_is_checked(net):
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"share batch, height and width, got \(1, 3, 16, 16\) and"
    ):
        net.propagate(images, torch.zeros(1, 2, 16, 17))
    with pytest.raises(ValueError, match="share batch"):
        net.propagate(images, torch.zeros(2, 2, 16, 16))
    with pytest.raises(ValueError, match="padding must be 'masked' or 'psa', got 'zero'"):
        net.propagate(images, torch.zeros(1, 2, 16, 16), padding="zero")
    with pytest.raises(ValueError, match="method must be one of"):
        net.propagate(images, torch.zeros(1, 2, 16, 16), method="sparse")
