"""The contract tests find what they are for: each fault makes exactly the test of it fail."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from wsss_affinity.backbones import Backbone, FeatureInfo
from wsss_affinity.testing import BackboneContract


class Net(Backbone):
    def __init__(self):
        super().__init__()
        self.feature_info = FeatureInfo((4, 5, 6), (2, 4, 8))
        self.layers = nn.ModuleList(nn.Conv2d(i, i + 1, 3, 2, 1) for i in (3, 4, 5))
        self.layers[0] = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4))

    @property
    def stages(self):
        return list(self.layers)

    def forward(self, images):
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[1:]


class RoundsDown(Net):
    def forward(self, images):
        return [m[..., :-1] if images.shape[-1] % 2 else m for m in super().forward(images)]


class Random(Net):
    def forward(self, images):
        return [m + torch.rand(()) for m in super().forward(images)]


class Detached(Net):
    def forward(self, images):
        return super().forward(images.detach())


class WritesOver(Net):
    def forward(self, images):
        maps = super().forward(images)
        images *= 0
        return maps


class Thaws(Net):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class Blind(Net):
    def forward(self, images):
        return super().forward(images * 0)


class KeepsOut(Net):
    """A weight that its state dict lacks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.secret = [nn.Parameter(torch.ones(()))]

    def __getstate__(self):
        raise TypeError("no")

    def __deepcopy__(self, memo):
        return self


class Bytes(Net):
    mean = (123.0, 116.0, 103.0)


class Unsorted(Net):
    std = [0.2, 0.2, 0.2]  # noqa: RUF012


TESTS = [name for name in dir(BackboneContract) if name.startswith("test_")]


def failures(kind):
    contract = type("Contract", (BackboneContract,), {"make": lambda self: kind()})
    failed = set()
    for name in TESTS:
        torch.manual_seed(0)
        try:
            getattr(contract(), name)()
        except (AssertionError, RuntimeError, TypeError):
            failed.add(name)
    return failed


def test_a_good_network_passes_all():
    assert len(TESTS) == 13
    assert failures(Net) == set()


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (RoundsDown, "test_shapes"),
        (Random, "test_evaluation_is_deterministic"),
        (Detached, "test_gradients_flow"),
        (WritesOver, "test_images_are_left_alone"),
        (Thaws, "test_freezing"),
        (Blind, "test_maps_see_the_image"),
        (KeepsOut, "test_copies"),
        (Bytes, "test_description"),
        (Unsorted, "test_description"),
    ],
)
def test_a_fault_is_found(kind, test):
    assert test in failures(kind)


def test_make_is_asked_for():
    with pytest.raises(NotImplementedError, match=r"make\(\)"):
        BackboneContract().built()


def test_pytest_is_not_imported():
    program = "import sys, wsss_affinity.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
