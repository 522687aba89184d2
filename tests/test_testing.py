"""The contract tests find what they are for: each fault makes exactly the test of it fail."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from wsss_affinity.backbones import Backbone, FeatureInfo, HeadStyle
from wsss_affinity.errors import WSSSError
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
        first, *others = super().forward(images)
        return [first[..., :-1] if images.shape[-1] % 2 else first, *others]


class Random(Net):
    def forward(self, images):
        return [m + torch.rand(()) for m in super().forward(images)]


class MixesImages(Net):
    def forward(self, images):
        return [m + m.mean(0) for m in super().forward(images)]


class Detached(Net):
    def forward(self, images):
        return super().forward(images.detach())


class WritesOverImages(Net):
    def forward(self, images):
        if not torch.is_grad_enabled():  # autograd would complain
            images.clamp_(0, 1)
        return super().forward(images)


class WritesOverEarlierCalls(Net):
    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, images):
        maps = super().forward(images)
        if torch.is_grad_enabled():
            return maps
        return [self.kept.setdefault(m.shape, torch.empty_like(m)).copy_(m) for m in maps]


class WritesOverItsInput(Net):
    def __init__(self):
        super().__init__()
        self.layers[1] = nn.Sequential(nn.ReLU(inplace=True), self.layers[1])


class WritesOverItsInputUnseen(WritesOverItsInput):
    """Its stages are not what it calls, and it hands out views."""

    @property
    def stages(self):
        return [nn.Sequential(layer) for layer in self.layers]

    def forward(self, images):
        return [m[..., :] for m in super().forward(images)]


class Thaws(Net):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class Blind(Net):
    def forward(self, images):
        return super().forward(images - images.detach())


class KeepsOut(Net):
    """A random weight that its state dict lacks."""

    def __init__(self):
        super().__init__()
        self.secret = torch.rand(())

    def forward(self, images):
        return [m * self.secret for m in super().forward(images)]


class LoadsNothing(Net):
    """It saves weights and does not take them back."""

    def load_state_dict(self, state, strict=True):
        pass


class CannotBePickled(Net):
    def __getstate__(self):
        raise TypeError("no")

    def __deepcopy__(self, memo):
        twin = type(self)().train(self.training)
        twin.load_state_dict(self.state_dict())
        return twin


class Bytes(Net):
    mean = (123.0, 116.0, 103.0)


class RefusesMutely(Net):
    def __init__(self, output_stride=8):
        super().__init__()
        if output_stride != 8:
            raise WSSSError("not this one")


class OddHead(Net):
    heads = HeadStyle(cam_dropout=2.0)


class NotForAffinity(Net):
    def for_affinity(self):
        del self.layers[-1]


class FewRows(Net):
    """A table of positions that images padded for a decoder go beyond."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.rand(80, 1))

    def forward(self, images):
        return super().forward(images + self.table[: images.shape[-2]])


TESTS = [name for name in dir(BackboneContract) if name.startswith("test_")]
FAULTS = {
    RoundsDown: {"test_shapes"},
    # nothing that is compared comes out twice the same
    Random: {"test_evaluation_is_deterministic", "test_copies", "test_state_dict_goes_round"},
    MixesImages: {"test_evaluation_is_deterministic"},
    Detached: {"test_gradients_flow"},
    WritesOverImages: {"test_images_are_left_alone"},
    WritesOverEarlierCalls: {"test_images_are_left_alone"},
    WritesOverItsInput: {"test_images_are_left_alone"},
    WritesOverItsInputUnseen: {"test_images_are_left_alone"},
    Thaws: {"test_freezing"},
    Blind: {"test_maps_see_the_image"},
    KeepsOut: {"test_state_dict_goes_round"},
    LoadsNothing: {"test_state_dict_goes_round"},
    CannotBePickled: {"test_copies"},
    Bytes: {"test_description"},
    RefusesMutely: {"test_output_stride_is_kept_or_refused"},
    OddHead: {"test_in_cam_net"},
    NotForAffinity: {"test_in_affinity_net"},
    FewRows: {"test_as_segmentation_encoder"},
}


def failures(kind):
    spec = {"_target_": f"{__name__}.{kind.__name__}"}
    contract = type("Contract", (BackboneContract,), {"make": lambda self: spec})
    failed = set()
    for name in TESTS:
        torch.manual_seed(0)
        try:
            getattr(contract(), name)()
        except Exception:
            failed.add(name)
    return failed


def test_a_good_network_passes_all():
    assert len(TESTS) == 13
    assert failures(Net) == set()


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found(kind):
    assert failures(kind) == FAULTS[kind]


def test_each_test_has_a_fault_that_it_alone_finds():
    assert {name for tests in FAULTS.values() if len(tests) == 1 for name in tests} == set(TESTS)


def test_make_is_asked_for():
    with pytest.raises(NotImplementedError, match=r"make\(\)"):
        BackboneContract().built()


def test_pytest_is_not_imported():
    program = "import sys, wsss_affinity.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
