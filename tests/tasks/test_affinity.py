import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.losses import affinity_loss
from wsss_affinity.models import AffinityNet
from wsss_affinity.tasks import AffinityTask
from wsss_affinity.tasks.affinity import downsample_labels


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_downsample_takes_the_centre_of_each_cell(stride):
    height, width = 3 * stride, 5 * stride
    labels = torch.zeros(1, height, width, dtype=torch.int64)
    expected = torch.arange(15).view(3, 5)
    for row in range(3):
        for column in range(5):
            y, x = row * stride + stride // 2, column * stride + stride // 2
            labels[0, y, x] = expected[row, column]
    assert torch.equal(downsample_labels(labels, stride)[0], expected)


def test_downsample_refuses_half_a_cell():
    with pytest.raises(WSSSError, match=r"multiple of its output stride 8, got 16×20; .*crop_size"):
        downsample_labels(torch.zeros(1, 16, 20, dtype=torch.int64), 8)


def test_loss_by_hand(monkeypatch):
    task = AffinityTask(AffinityNet("tiny", radius=2))
    # a 2 × 2 grid of features: background, background / class 1, unsure
    affinity = torch.full((1, 4, 2, 2), 0.25)
    monkeypatch.setattr(task, "forward", lambda images: affinity)
    mask = torch.zeros(1, 16, 16, dtype=torch.int64)
    mask[:, 8:, :8], mask[:, 8:, 8:] = 1, 255
    terms = task.loss({"image": torch.zeros(1, 3, 16, 16), "mask": mask})
    # one pair of background, two of different labels
    assert terms["bg"].item() == pytest.approx(1.38629, abs=1e-4)
    assert terms["fg"].item() == 0.0
    assert terms["neg"].item() == pytest.approx(0.28768, abs=1e-4)
    assert terms["loss"].item() == pytest.approx(1.38629 / 4 + 0.28768 / 2, abs=1e-4)


def test_loss_uses_the_networks_own_radius_and_stride():
    net = AffinityNet("tiny", radius=3).eval()
    images, mask = torch.rand(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    expected = affinity_loss(net(images), mask[:, 4::8, 4::8], radius=3)
    found = AffinityTask(net).loss({"image": images, "mask": mask})
    for name in ("loss", "bg", "fg", "neg"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-6)


def test_labels_of_the_grid_are_taken_as_they_are():
    net = AffinityNet("tiny", radius=2).eval()
    images, labels = torch.rand(1, 3, 32, 32), torch.randint(0, 3, (1, 4, 4))
    found = AffinityTask(net).loss({"image": images, "mask": labels})["loss"]
    assert found.item() == affinity_loss(net(images), labels, radius=2)["loss"].item()


def test_border_decides_which_pairs_are_trained_on():
    net = AffinityNet("tiny", radius=3).eval()
    images, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[:, :, 7] = 1  # the only pairs of different labels start or end at the right border
    batch = {"image": images, "mask": mask}
    full, psa = (AffinityTask(net, border=border).loss(batch) for border in ("full", "psa"))
    assert full["neg"].item() == affinity_loss(net(images), mask, radius=3)["neg"].item()
    expected = affinity_loss(net(images), mask, radius=3, border="psa")
    assert psa["neg"].item() == expected["neg"].item() != full["neg"].item()
