import math

import pytest
import torch

from wsss_affinity.models import CAMNet
from wsss_affinity.tasks import CAMTask


def test_loss_by_hand(monkeypatch):
    task = CAMTask(CAMNet("tiny", 2))
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    monkeypatch.setattr(task, "forward", lambda images: logits)
    batch = {"image": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}

    def softplus(x):
        return math.log1p(math.exp(x))

    expected = (softplus(-2) + softplus(-1) + softplus(0) + softplus(-3)) / 4
    assert task.loss(batch)["loss"].item() == pytest.approx(expected, rel=1e-6)
