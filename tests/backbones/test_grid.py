import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.backbones.grid import padded_maps, to_grid


def test_to_grid():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert to_grid(x, (4, 4)) is x
    assert to_grid(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(to_grid(x, (8, 8)), F.interpolate(x, (8, 8), mode="bilinear"))


@pytest.mark.parametrize("size", [(32, 64), (33, 50), (1, 1)])
def test_sizes_are_rounded_up_whatever_the_network_does(size):
    seen = []

    def network(images):
        seen.append(images)
        # the second map is one short, as without padding
        return [F.avg_pool2d(images, 4), F.avg_pool2d(images, 8)[..., 1:, :]]

    images = torch.rand(1, 3, *size)
    maps = padded_maps(network, images, (4, 8)) if size != (1, 1) else None
    if maps is None:
        maps = padded_maps(lambda x: [F.avg_pool2d(x, 4)], images, (4,))
        assert maps[0].shape == (1, 3, 1, 1)
        return
    assert [m.shape[-2:] for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8)]
    assert seen[0].shape[-2:] == (-(-size[0] // 8) * 8, -(-size[1] // 8) * 8)
    assert torch.equal(seen[0][..., : size[0], : size[1]], images)
    assert seen[0].sum() == pytest.approx(images.sum().item(), rel=1e-5)


def test_networks_of_one_size():
    maps = padded_maps(lambda x: [F.avg_pool2d(x, 4)], torch.rand(1, 3, 30, 50), (4,), (16, 16))
    assert maps[0].shape == (1, 3, 8, 13)
