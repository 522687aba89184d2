import pytest
import torch
from torch import nn

from wsss_affinity.backbones import Backbone, FeatureInfo, create_backbone
from wsss_affinity.backbones.adapt import AdaptedBackbone, adapt
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss_affinity.backbones.timm import TimmBackbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import CAMNet


class Foreign(nn.Module):
    """Two maps at strides 2 and 4, returned as ``form`` makes of them."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, form, **attributes):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3, 2, 1)
        self.form = form
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        fine = self.norm(self.first(images))
        return self.form(fine, self.second(fine))


INFO = FeatureInfo((4, 5), (2, 4))


def test_what_keeps_the_contract_passes_as_it_is():
    for form in (lambda a, b: [a, b], lambda a, b: (a, b)):
        module = Foreign(form, feature_info=INFO)
        assert adapt(module) is module


@pytest.mark.parametrize(
    ("form", "info"),
    [
        (lambda a, b: {"fine": a, "coarse": b}, INFO),
        (lambda a, b: {"coarse": b, "fine": a}, INFO),
        (lambda a, b: (b, a), INFO),
        (lambda a, b: [a, b], INFO),
        (lambda a, b: b, FeatureInfo((5,), (4,))),
        (lambda a, b: {"out": b}, FeatureInfo((5,), (4,))),
    ],
)
@torch.no_grad()
def test_dicts_tuples_and_single_maps_are_adapted(form, info):
    module = Foreign(form).eval()
    net = adapt(module).eval()
    assert isinstance(net, AdaptedBackbone)
    assert net.feature_info == info
    assert (net.mean, net.std) == (IMAGENET_MEAN, IMAGENET_STD)
    images = torch.randn(1, 3, 16, 24)
    fine = module.norm(module.first(images))
    expected = [fine, module.second(fine)][-len(info.channels) :]
    for one, two in zip(net(images), expected, strict=True):
        assert torch.equal(one, two)
    assert CAMNet(module, num_classes=3)(images).shape == (1, 3)


def test_measuring_leaves_no_trace():
    module = Foreign(lambda a, b: {"a": a, "b": b})
    module.norm.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    adapt(module)
    assert torch.equal(torch.rand(2), expected)
    assert module.training
    assert not module.norm.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_children_are_the_stages_that_can_be_frozen():
    net = create_backbone(Foreign(lambda a, b: b), freeze_stages=2)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        "network.second.weight",
        "network.second.bias",
    }
    assert not net.train().network.norm.training


@torch.no_grad()
def test_sizes_are_rounded_up_for_networks_that_round_down():
    class Patches(nn.Module):
        mean = std = (0.5, 0.5, 0.5)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 8, 8)

        def forward(self, images):
            return self.conv(images)

    net = adapt(Patches())
    assert net.feature_info == FeatureInfo((6,), (8,))
    assert net(torch.randn(1, 3, 33, 40))[0].shape == (1, 6, 5, 5)


def test_statistics_in_other_forms_are_taken():
    net = adapt(Foreign(lambda a, b: [a, b], feature_info=INFO, mean=[0.1, 0.2, 0.3]))
    assert net.mean == (0.1, 0.2, 0.3)


def test_an_extractor_of_timm_as_an_object():
    import timm

    net = create_backbone(timm.create_model("mobilenetv3_small_050", features_only=True))
    assert isinstance(net, TimmBackbone)
    assert net.feature_info.strides == (2, 4, 8, 16, 32)


def test_an_extractor_of_timm_that_takes_one_size_as_an_object():
    import timm

    network = timm.create_model("levit_128s", features_only=True)
    network.pretrained = True
    first = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    net = create_backbone(network)
    assert net.image_size == (224, 224)
    assert net.pretrained is True
    assert network.training
    assert not first.training
    assert [m.shape[2:] for m in net(torch.zeros(1, 3, 64, 96))] == [(4, 6), (2, 3), (1, 2)]


def test_a_module_on_the_meta_device_that_looks_at_numbers_is_measured_on_the_cpu():
    net = adapt(Foreign(lambda a, b: [a * float(a.mean()), b]).to("meta"))
    assert net.feature_info == INFO
    assert all(p.is_meta for p in net.parameters())
    with pytest.raises(WSSSError, match=r"makes it fail \(RuntimeError: "):
        adapt(Foreign(lambda a, b: float(a.mean()) * a @ b).to("meta"))


def test_a_module_without_parameters_is_measured_on_the_cpu():
    class Grey(nn.Module):
        mean = std = (0.5, 0.5, 0.5)

        def forward(self, images):
            return images / (1 + float(images.mean()))

    with torch.device("meta"):
        assert adapt(Grey()).feature_info == FeatureInfo((3,), (1,))


@pytest.mark.parametrize("size", [(4, 8), (5, 8), (6, 9), (8, 11)])
def test_sizes_may_be_rounded(size):
    module = Foreign(lambda a, b: nn.functional.adaptive_avg_pool2d(b, size))
    assert adapt(module).feature_info.channels == (5,)


class Bad(Backbone):
    feature_info = INFO

    def forward(self, images):
        return {"a": torch.zeros(1, 4, 4, 6), "b": torch.zeros(1, 5, 2, 3)}


class Lists(Backbone):
    feature_info = FeatureInfo((3,), (1,))
    mean = [0.5, 0.5, 0.5]  # noqa: RUF012

    def forward(self, images):
        return [images]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Conv2d(3, 4, 1),
            "Conv2d is no backbone yet: it lacks feature_info, mean, std; subclass",
        ),
        (
            Foreign(lambda a, b: b.mT),
            r"of an image of shape \(1, 3, 224, 320\) it makes a map of shape \(1, 5, 80, 56\); "
            r"return maps \(B, C, h, w\) of one stride in both directions, rows before columns",
        ),
        (
            Foreign(lambda a, b: [a.mT, b], feature_info=INFO),
            r"of an image of shape \(1, 3, 8, 12\) it makes a map of shape \(1, 4, 6, 4\)",
        ),
        (Lists(), "Lists.mean is list; make it a tuple of three numbers"),
        (Backbone(), "Backbone is no backbone yet: it lacks feature_info;"),
        (Bad(), "Bad.forward returns dict; let it return the list of feature maps"),
        (
            Foreign(lambda a, b: b.mean((2, 3))),
            r"it returns shape \(1, 5\) where feature maps \(B, C, h, w\) are expected; return",
        ),
        (
            Foreign(lambda a, b: b.flatten(2).mT),
            r"it returns shape \(1, 4480, 5\) where .* tokens reshaped to them",
        ),
        (Foreign(lambda a, b: [a, None]), "it returns NoneType where feature maps"),
        (Foreign(lambda a, b: []), "it returns no feature map"),
        (
            Foreign(lambda a, b: [a, b], feature_info=FeatureInfo((4, 6), (2, 4))),
            r"feature_info says .*\(4, 6\).* but it returns .*\(4, 5\)",
        ),
        (Foreign(lambda a, b: a, feature_info=[4]), "feature_info must be a FeatureInfo, got"),
        (
            Foreign(lambda a, b: a @ b),
            r"an image of shape \(1, 3, 224, 320\) makes it fail \(RuntimeError: ",
        ),
        (Foreign(lambda a, b: a, std=(1.0, 0.0, 1.0)), "std must be three numbers"),
        (Foreign(lambda a, b: a, mean=("a", "b", "c")), "mean must be three numbers .* 'b'"),
        (Foreign(lambda a, b: a, std=(1.0, float("nan"), 1.0)), "std must be three numbers"),
        (Foreign(lambda a, b: a, mean=0.5), "mean must be three numbers .* got 0.5"),
    ],
)
def test_what_cannot_be_used_is_told_what_to_add(module, message):
    with pytest.raises(WSSSError, match=message) as error:
        adapt(module)
    assert "\n" not in str(error.value).split("makes it fail")[0]
