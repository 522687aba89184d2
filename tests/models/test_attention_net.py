import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.layers import attention_affinity
from wsss_affinity.models import AttentionNet

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return AttentionNet(NAME, weights=None, radius=3)


def test_attention_is_that_of_queries_and_keys(net):
    images = torch.randn(2, 3, 32, 48)
    attention = net.attention(images)
    assert attention.shape == (2, 6, 6)
    vit, total = net.network, 0
    with torch.no_grad():
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        for block in vit.blocks:
            part, tokens = block.attn, block.norm1(x)
            query, key, _ = part.qkv(tokens).unflatten(-1, (3, part.num_heads, -1)).unbind(2)
            weights = torch.einsum("bihd,bjhd->bhij", query, key) * part.scale
            total = total + weights.softmax(-1)[:, :, 1:, 1:].mean(1)
            x = block(x)
    torch.testing.assert_close(attention, total / 12)
    expected = attention_affinity(attention, (2, 3), 3)
    torch.testing.assert_close(net(images), expected)
    assert 0 < expected.amax() <= 1


def test_walk_has_the_grid_of_patches(net):
    scores = torch.rand(1, 2, 40, 50)
    walked = net.propagate(torch.randn(1, 3, 40, 50), scores, beta=1, num_steps=8)
    assert walked.shape == (1, 2, 3, 4)
    assert scores.min() < walked.min()
    assert walked.max() < scores.max()
    with pytest.raises(ValueError, match="multiples of 16, got 40×50"):
        net(torch.zeros(1, 3, 40, 50))


def test_registers_and_class_token_are_left_out():
    net = AttentionNet("vit_small_patch14_reg4_dinov2", weights=None)
    assert net.network.num_prefix_tokens == 5
    assert net.stride == 14
    assert net(torch.zeros(1, 3, 28, 42)).shape == (1, 34, 2, 3)


def test_nothing_is_left_to_train(net):
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training
    assert not any(m._forward_hooks for m in net.modules())


def test_weights_of_a_file(tmp_path):
    one = AttentionNet(NAME, weights=None)
    torch.save(one.network.state_dict(), tmp_path / "vit.pth")
    two = AttentionNet(NAME, weights=str(tmp_path / "vit.pth"))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(one(images), two(images))
    assert not torch.equal(one(images), AttentionNet(NAME, weights=None)(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", r"'vit_tiny_patch16_225' is not a model of timm; did you mean"),
        ("resnet18", "resnet18 has no attention between all patches"),
        ("swin_tiny_patch4_window7_224", r"choose a plain ViT, e.g. vit_small_patch16_224$"),
        ("vit_tiny_r_s16_p8_224", "s16_p8_224 makes its patches with a convolutional network; ch"),
        ("vitamin_small_224", r"network; choose a plain ViT, e.g. vit_small_patch16_224$"),
        ("vit_tiny_patch16_224.nobodys", r"timm cannot make 'vit_tiny_patch16_224.nobodys'"),
    ],
)
def test_networks_without_such_attention(name, message):
    with pytest.raises(WSSSError, match=message):
        AttentionNet(name, weights=None)
