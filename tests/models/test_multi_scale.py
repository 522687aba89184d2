import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.models.multi_scale import multi_scale_sum


def left_half_counts_double(images):
    """Not symmetric, and with its own grid of half the size."""
    ramp = torch.linspace(2, 1, images.shape[-1])
    return F.avg_pool2d((images * ramp).mean(1, keepdim=True), 2, ceil_mode=True)


def test_equals_a_sum_by_hand():
    images, size = torch.rand(2, 3, 12, 20), (10, 16)
    expected = torch.zeros(2, 1, *size)
    for scale in (0.5, 1.25):
        target = (round(12 * scale), round(20 * scale))
        scaled = F.interpolate(images, target, mode="bicubic", antialias=True)
        for axes in ((), (3,)):
            maps = left_half_counts_double(scaled.flip(axes))
            expected += F.interpolate(maps, size, mode="bilinear").flip(axes)
    result = multi_scale_sum(
        left_half_counts_double, images, size=size, scales=(0.5, 1.25), flip=True
    )
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_a_constant_counts_once_a_scale_and_mirror_image(flip):
    result = multi_scale_sum(
        lambda x: x[:, :1], torch.ones(1, 3, 9, 7), size=(9, 7), scales=(1.0, 0.5, 2.0), flip=flip
    )
    torch.testing.assert_close(result, torch.full((1, 1, 9, 7), 6.0 if flip else 3.0))


def test_a_scale_never_leaves_nothing_of_the_image():
    result = multi_scale_sum(
        lambda x: x, torch.ones(1, 3, 2, 2), size=(2, 2), scales=(0.01,), flip=False
    )
    torch.testing.assert_close(result, torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_are_checked(scales):
    with pytest.raises(ValueError, match=r"positive factors, e.g. \(0.5, 1.0\), got \["):
        multi_scale_sum(lambda x: x, torch.ones(1, 3, 2, 2), size=(2, 2), scales=scales, flip=True)
