import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_affinity.backbones import Backbone, FeatureInfo, HeadStyle
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import CAMNet


class Plain(Backbone):
    """One strided convolution, odd enough that mirror images differ."""

    feature_info = FeatureInfo((6,), (4,))

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images):
        return [self.conv(images)]


@pytest.fixture
def net():
    return CAMNet(Plain(), num_classes=5).eval()


@torch.no_grad()
def test_logits_are_the_mean_of_the_maps_before_relu(net):
    images = torch.randn(2, 3, 32, 48)
    features = net.backbone(images)[-1]
    weight = net.head.classifier.weight[:, :, 0, 0]
    maps = torch.einsum("cd,bdhw->bchw", weight, features)
    assert net(images).shape == (2, 5)
    torch.testing.assert_close(net(images), maps.mean((2, 3)))
    torch.testing.assert_close(net.cam(images), maps.clamp_min(0))
    assert (maps < 0).any()


def test_takes_a_name_with_options():
    net = CAMNet("resnet18", 4, dropout=0.5, output_stride=8, freeze_batchnorm=True)
    assert net.backbone.feature_info.strides[-1] == 8
    assert net.head.classifier.weight.shape == (4, 512, 1, 1)
    assert net.head.dropout.p == 0.5
    assert not net.train().backbone.network.bn1.training
    with pytest.raises(WSSSError, match="did you mean 'resnet"):
        CAMNet("resnet1", 4)


class Styled(Plain):
    heads = HeadStyle(cam_dropout=0.3, cam_activation="sqrt", cam_xavier=True)


@torch.no_grad()
def test_the_head_follows_the_backbone(net):
    assert (net.head.dropout.p, net.head.activation) == (0.0, "relu")
    styled = CAMNet(Styled(), num_classes=5).eval()
    assert styled.head.dropout.p == 0.3
    assert CAMNet(Styled(), num_classes=5, dropout=0.0).head.dropout.p == 0.0
    # beyond the bound of torch's own initialisation, 1 / sqrt(6)
    weights = torch.stack([CAMNet(Styled(), 5).head.classifier.weight for _ in range(20)])
    assert 0.65 < weights.abs().max() <= (6 / 11) ** 0.5
    images = torch.randn(1, 3, 16, 16)
    maps = torch.einsum(
        "cd,bdhw->bchw", styled.head.classifier.weight[:, :, 0, 0], styled.backbone(images)[-1]
    )
    torch.testing.assert_close(styled.cam(images), maps.clamp_min(0).sqrt())


def test_a_module_of_another_base_class_has_the_plain_head():
    module = nn.Conv2d(3, 6, 4, stride=4)
    module.feature_info, module.mean, module.std = Plain.feature_info, Plain.mean, Plain.std
    head = CAMNet(module, num_classes=5).head
    assert (head.dropout.p, head.activation) == (0.0, "relu")


def test_learns_to_tell_two_colours():
    net = CAMNet(Plain(), num_classes=2)
    images = torch.zeros(2, 3, 16, 16)
    images[0, 0] = images[1, 2] = 1
    labels = torch.eye(2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        loss = F.multilabel_soft_margin_loss(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    # one image with both: each half lights its own map
    both = torch.cat([images[:1, :, :, :8], images[1:, :, :, 8:]], -1)
    cam = net.cam(both)[0].detach()
    assert cam[0, :, :2].min() > cam[0, :, 2:].max()
    assert cam[1, :, 2:].min() > cam[1, :, :2].max()


@torch.no_grad()
def test_one_scale_without_mirror_is_the_resized_map(net):
    images = torch.randn(2, 3, 32, 48)
    expected = F.interpolate(net.cam(images), (30, 50), mode="bilinear", align_corners=False)
    result = net.multi_scale_cam(images, size=(30, 50), scales=(1.0,), flip=False)
    torch.testing.assert_close(result, expected)


@torch.no_grad()
def test_scales_and_mirror_images_add_up(net):
    images, size = torch.randn(2, 3, 36, 52), (36, 52)
    expected = torch.zeros(2, 5, *size)
    for scale in (1.0, 0.5, 1.5, 2.0):
        target = (round(36 * scale), round(52 * scale))
        scaled = F.interpolate(images, target, mode="bicubic", antialias=True)
        for mirrored in (False, True):
            maps = net.cam(scaled.flip(-1) if mirrored else scaled)
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
            expected += maps.flip(-1) if mirrored else maps
    torch.testing.assert_close(
        net.multi_scale_cam(images, size=size), expected, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_mirrored_image_gives_the_mirrored_maps(net):
    images = torch.randn(1, 3, 37, 51)
    plain = net.multi_scale_cam(images, size=(37, 51))
    mirrored = net.multi_scale_cam(images.flip(-1), size=(37, 51))
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=1e-4, atol=1e-5)
    once = net.multi_scale_cam(images, size=(37, 51), flip=False)
    assert not torch.allclose(net.multi_scale_cam(images.flip(-1), size=(37, 51), flip=False), once)
    assert bool((plain >= 0).all())


@torch.no_grad()
def test_batch_equals_loop_over_images(net):
    images = torch.randn(3, 3, 20, 24)
    looped = [net.multi_scale_cam(i[None], size=(20, 24)) for i in images]
    torch.testing.assert_close(net.multi_scale_cam(images, size=(20, 24)), torch.cat(looped))


def test_no_scale_is_an_error(net):
    with pytest.raises(
        ValueError, match=r"scales must be positive factors, e.g. \(0.5, 1.0\), got"
    ):
        net.multi_scale_cam(torch.zeros(1, 3, 8, 8), size=(8, 8), scales=())
