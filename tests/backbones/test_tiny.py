import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.backbones import create_backbone
from wsss_affinity.errors import WSSSError


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (1, 7)])
def test_shapes(size):
    net = create_backbone("tiny").eval()
    assert net.feature_info.channels == (24, 48, 96, 128)
    assert net.feature_info.strides == (2, 4, 8, 8)
    maps = net(torch.randn(2, 3, *size))
    for feature, channels, stride in zip(maps, (24, 48, 96, 128), (2, 4, 8, 8), strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_equals_plain_convolutions():
    net = create_backbone("tiny").eval()
    x = torch.randn(1, 3, 24, 24)
    maps = net(x)
    for layer, expected, stride, dilation in zip(
        net.layers, maps, (2, 2, 2, 1), (1, 1, 1, 2), strict=True
    ):
        for block, step in zip(layer, (stride, 1), strict=True):
            x = F.conv2d(x, block[0].weight, None, step, dilation, dilation)
            x = (x / (1 + 1e-5) ** 0.5).relu()  # a fresh BatchNorm
        torch.testing.assert_close(expected, x)


def test_is_small_and_trains_from_nothing():
    net = create_backbone("tiny")
    assert sum(p.numel() for p in net.parameters()) == 420_584
    assert net.pretrained is False
    assert len(net.stages) == 4


def test_own_state_dict_loads(tmp_path):
    source = create_backbone("tiny")
    torch.save(source.state_dict(), tmp_path / "tiny.pth")
    net = create_backbone("tiny", weights=str(tmp_path / "tiny.pth"))
    assert net.pretrained is True
    for name, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


def test_options_are_checked():
    with pytest.raises(WSSSError, match="output_stride 8 only, got 16"):
        create_backbone("tiny", output_stride=16)
    with pytest.raises(WSSSError, match="no ImageNet weights; use weights=null"):
        create_backbone("tiny", weights="imagenet")
