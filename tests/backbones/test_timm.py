import pytest
import timm
import torch
import torch.nn.functional as F

from wsss_affinity.backbones import create_backbone
from wsss_affinity.errors import WSSSError


@pytest.mark.parametrize(
    ("model", "channels", "strides"),
    [
        ("mobilenetv3_small_050", (16, 8, 16, 24, 288), (2, 4, 8, 16, 32)),
        ("convnext_atto", (40, 80, 160, 320), (4, 8, 16, 32)),
    ],
)
@torch.no_grad()
def test_channels_and_strides(model, channels, strides):
    net = create_backbone(f"timm:{model}").eval()
    assert (net.feature_info.channels, net.feature_info.strides) == (channels, strides)
    assert net.pretrained is False
    # convnext cuts the image into patches and would round odd sizes down
    for height, width in ((64, 96), (65, 47)):
        maps = net(torch.randn(2, 3, height, width))
        for feature, depth, stride in zip(maps, channels, strides, strict=True):
            assert feature.shape == (2, depth, -(-height // stride), -(-width // stride))


@torch.no_grad()
def test_equals_timm():
    net = create_backbone("timm:mobilenetv3_small_050").eval()
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(net(images), net.network(images))
    padded = net.network(F.pad(images[..., :50, :70], (0, 26, 0, 14)))
    for ours, theirs in zip(net(images[..., :50, :70]), padded, strict=True):
        torch.testing.assert_close(ours, theirs[..., : ours.shape[-2], : ours.shape[-1]])


@pytest.mark.parametrize("output_stride", [8, 16, 32, None])
@torch.no_grad()
def test_output_stride(output_stride):
    net = create_backbone("timm:mobilenetv3_small_050", output_stride=output_stride).eval()
    expected = tuple(min(s, output_stride or 32) for s in (2, 4, 8, 16, 32))
    assert net.feature_info.strides == expected
    assert [f.shape[-1] for f in net(torch.zeros(1, 3, 64, 64))] == [64 // s for s in expected]


@torch.no_grad()
def test_maps_of_as_many_rows_as_channels_are_turned():
    net = create_backbone("timm:mambaout_femto").eval()
    images = torch.randn(1, 3, 4 * 48, 64)
    ours, theirs = net(images)[0], net.network(images)[0]
    assert theirs.shape == (1, 48, 16, 48)
    assert torch.equal(ours, theirs.permute(0, 3, 1, 2))


@torch.no_grad()
def test_maps_are_channels_first_where_the_model_has_them_last():
    net = create_backbone("timm:swin_tiny_patch4_window7_224").eval()
    maps = net(torch.zeros(1, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (96, 56, 56),
        (192, 28, 28),
        (384, 14, 14),
        (768, 7, 7),
    ]


def test_mean_and_std_are_the_models_own():
    net = create_backbone("timm:tf_mobilenetv3_small_minimal_100")
    assert (net.mean, net.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    net = create_backbone("timm:mobilenetv3_small_050")
    assert (net.mean, net.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_freezing():
    net = create_backbone("timm:mobilenetv3_small_050", freeze_batchnorm=True, freeze_stages=3)
    norms = [m for m in net.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    for i, stage in enumerate(net.stages):
        if i < 3:
            assert not any(p.requires_grad for p in stage.parameters())
    assert any(p.requires_grad for p in net.parameters())


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "weights.pth"
    source = timm.create_model("mobilenetv3_small_050")
    torch.save(source.state_dict(), path)
    net = create_backbone("timm:mobilenetv3_small_050", weights=str(path))
    assert net.pretrained is True
    own = net.network.state_dict()
    shared = own.keys() & source.state_dict().keys()
    assert len(shared) > 100
    assert all(torch.equal(own[name], source.state_dict()[name]) for name in shared)


def test_what_timm_cannot_do_is_told():
    with pytest.raises(WSSSError, match=r"timm cannot make features of 'resnet18\.no_such_tag'"):
        create_backbone("timm:resnet18.no_such_tag")
    with pytest.raises(WSSSError, match=r"timm cannot make features of 'resnet18' .*img_size"):
        create_backbone("timm:resnet18", img_size=64)


@torch.no_grad()
def test_what_timm_cannot_dilate_is_resized():
    torch.manual_seed(2)
    own = create_backbone("timm:efficientvit_b0").eval()
    torch.manual_seed(2)
    fine = create_backbone("timm:efficientvit_b0", output_stride=8).eval()
    assert fine.feature_info.strides == (4, 8, 16, 8)
    images = torch.randn(1, 3, 64, 96)
    for a, b in zip(own(images)[:3], fine(images)[:3], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(fine(images)[3], F.interpolate(own(images)[3], (8, 12), mode="bilinear"))


@torch.no_grad()
def test_position_embeddings_are_resized_to_the_image():
    net = create_backbone("timm:vit_tiny_patch16_224", img_size=64).eval()
    assert net.image_size is None
    assert net.feature_info.strides == (16, 16, 16)
    assert net.network.model.pos_embed.shape[1] == 17  # 4 times 4 patches and the class token
    images = torch.randn(1, 3, 96, 48)
    maps = net(images)
    assert [tuple(m.shape) for m in maps] == [(1, 192, 6, 3)] * 3
    for ours, theirs in zip(maps, net.network(images), strict=True):
        assert torch.equal(ours, theirs)
    # the patches and each of the 12 blocks can be frozen
    assert len(net.stages) >= 13


@torch.no_grad()
def test_models_of_one_size_see_the_image_resized():
    net = create_backbone("timm:cait_xxs24_224", img_size=64).eval()
    assert net.image_size == (64, 64)
    images = torch.randn(1, 3, 90, 120)
    seen = F.interpolate(F.pad(images, (0, 8, 0, 6)), (64, 64), mode="bilinear", antialias=True)
    expected = net.network(seen)[-1]
    assert expected.shape == (1, 192, 4, 4)
    ours = net(images)[-1]
    assert ours.shape == (1, 192, 6, 8)
    torch.testing.assert_close(ours, F.interpolate(expected, (6, 8), mode="bilinear"))
