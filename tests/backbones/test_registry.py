import pytest
import torch
from torch import nn

from wsss_affinity.backbones import (
    Backbone,
    FeatureInfo,
    create_backbone,
    list_backbones,
    register_backbone,
    registry,
)
from wsss_affinity.errors import WSSSError


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


class Contract(nn.Module):
    """Keeps the contract without the base class."""

    feature_info = FeatureInfo((3,), (1,))
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, width=3):
        super().__init__()
        self.width = width

    def forward(self, images):
        return [images]


def test_the_shipped_names():
    shipped = {"resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "mobilenet_v2", "tiny"}
    assert shipped <= set(list_backbones())
    assert list_backbones() == sorted(list_backbones())


def test_a_registered_class_is_built_with_its_options():
    assert register_backbone("mine")(Contract) is Contract
    assert "mine" in list_backbones()
    assert create_backbone("mine", width=7).width == 7


@pytest.mark.parametrize("name", ["resnet18", "my:net"])
def test_taken_names_and_colons_are_refused(name):
    with pytest.raises(ValueError, match=f"{name!r} is taken or holds a colon; choose another"):
        register_backbone(name)(Contract)
    assert not isinstance(create_backbone("resnet18"), Contract)


def test_a_module_is_taken_as_it_is():
    module = Contract()
    assert create_backbone(module) is module
    with pytest.raises(WSSSError, match="options output_stride, weights have no effect"):
        create_backbone(module, weights=None, output_stride=8)


def test_a_module_without_the_contract_is_told_what_it_lacks():
    with pytest.raises(WSSSError, match="Linear is no backbone yet: it lacks feature_info"):
        create_backbone(nn.Linear(1, 1))
    register_backbone("bad")(nn.Identity)
    with pytest.raises(WSSSError, match="Identity is no backbone yet"):
        create_backbone("bad")


def test_freezing():
    net = create_backbone("tiny", freeze_batchnorm=True, freeze_stages=2)
    assert not any(p.requires_grad for p in net.layers[:2].parameters())
    norms = [m for m in net.train().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert not any(m.training or m.weight.requires_grad for m in norms)
    assert net.layers[2][0][0].weight.requires_grad
    with pytest.raises(WSSSError, match=r"freeze_stages=5 is out of range: .* 4 stages"):
        create_backbone("tiny", freeze_stages=5)


def test_freezing_a_module_of_another_base_class():
    with pytest.raises(
        WSSSError, match=r"Contract cannot be frozen by option; subclass .*Backbone"
    ):
        create_backbone(Contract(), freeze_batchnorm=True)

    class Own(Backbone):
        feature_info = FeatureInfo((3,), (1,))

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

    assert not create_backbone(Own(), freeze_batchnorm=True).norm.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet8", r"'resnet8' is not known; did you mean 'resnet\d+' or"),
        ("VGG16x", "'VGG16x' is not known; valid names: mobilenet_v2, resnet101"),
        ("torchvision:resnet19", "'torchvision:resnet19' is not known; did you mean 'resnet1"),
        ("timm:resnet1888", "'timm:resnet1888' is not a model of timm; did you mean 'resnet"),
        ("timm:zzzzzzzzz", r"not a model of timm; see timm.list_models\(\)"),
        ("keras:resnet50", "unknown library 'keras'; use 'timm:<model>', 'torchvision:<model>'"),
        ("", "'' is not known; valid names"),
    ],
)
def test_unknown_names_get_suggestions(spec, message):
    with pytest.raises(WSSSError, match=message):
        create_backbone(spec)


@pytest.mark.parametrize("spec", ["tiny", "resnet18", "timm:mobilenetv3_small_050"])
def test_unknown_options_are_told_the_valid_ones(spec):
    with pytest.raises(
        WSSSError, match=r"'output_strid'.*its options are .*output_stride, weights"
    ):
        create_backbone(spec, output_strid=8)


def test_torchvision_prefix_and_plain_name_are_the_same():
    torch.manual_seed(0)
    plain = create_backbone("resnet18", output_stride=8).eval()
    torch.manual_seed(0)
    prefixed = create_backbone("torchvision:resnet18", output_stride=8).eval()
    images = torch.randn(1, 3, 32, 32)
    for a, b in zip(plain(images), prefixed(images), strict=True):
        assert torch.equal(a, b)
