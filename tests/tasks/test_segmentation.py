import math

import pytest
import torch

from wsss_affinity.models import SegmentationNet
from wsss_affinity.tasks import SegmentationTask


@pytest.fixture(scope="module")
def net():
    return SegmentationNet(2, architecture="Unet", encoder="resnet18")


def batch_of(mask):
    return {"image": torch.zeros(1, 3, *mask.shape[-2:]), "mask": mask}


def test_loss_by_hand(net, monkeypatch):
    task = SegmentationTask(net)
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1] = torch.tensor([[1.0, 2.0, 50.0]])
    monkeypatch.setattr(task, "forward", lambda images: logits)
    loss = task.loss(batch_of(torch.tensor([[[1, 0, 255]]])))["loss"]
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_crop_without_a_labelled_pixel_costs_nothing(net):
    task = SegmentationTask(net)
    loss = task.loss(batch_of(torch.full((1, 64, 64), 255)))["loss"]
    assert loss.item() == 0.0
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.count_nonzero(g) == 0 for g in gradients)


def test_without_background_the_first_output_is_label_one(net, monkeypatch):
    task = SegmentationTask(net, background=False)
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1] = torch.tensor([[1.0, 2.0, 50.0]])
    monkeypatch.setattr(task, "forward", lambda images: logits)
    loss = task.loss(batch_of(torch.tensor([[[2, 1, 255]]])))["loss"]
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
