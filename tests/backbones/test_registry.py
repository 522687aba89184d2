import copy
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_affinity.backbones import (
    Backbone,
    FeatureInfo,
    create_backbone,
    list_backbones,
    register_backbone,
    register_object,
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
    assert create_backbone(module, output_stride=1) is module
    with pytest.raises(WSSSError, match="options weights, width have no effect"):
        create_backbone(module, weights=None, width=8, output_stride=8)


def test_a_module_without_the_contract_is_told_what_it_lacks():
    with pytest.raises(
        WSSSError, match="Linear is no backbone yet: it lacks feature_info, mean, std"
    ):
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
    class Foreign(Contract):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images):
            return [self.norm(images)]

    net = create_backbone(Foreign(), freeze_batchnorm=True)
    assert isinstance(net, Backbone)
    assert not net.train().network.norm.training
    with pytest.raises(WSSSError, match=r"freeze_stages=2 is out of range: .* 1 stages"):
        create_backbone(Foreign(), freeze_stages=2)


# --- options that a builder does not take ---------------------------------------------------------


class Strided(Backbone):
    mean = std = (0.5, 0.5, 0.5)
    feature_info = FeatureInfo((4,), (4,))

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, images):
        return [self.conv(images)]


@torch.no_grad()
def test_a_network_of_another_stride_is_resized_to_the_one_asked_for():
    register_backbone("strided")(Strided)
    assert isinstance(create_backbone("strided", output_stride=4), Strided)
    fine = create_backbone("strided", output_stride=2)
    assert (fine.feature_info.channels, fine.feature_info.strides) == ((4,), (2,))
    images = torch.randn(1, 3, 16, 24)
    expected = F.interpolate(fine.network(images)[0], (8, 12), mode="bilinear")
    assert torch.equal(fine(images)[0], expected)
    assert "last map resized from stride 4 to 2" in repr(fine)
    coarse = create_backbone(Strided(), output_stride=8)
    assert torch.allclose(coarse(images)[0], F.avg_pool2d(coarse.network(images)[0], 2))
    with pytest.raises(WSSSError, match=r"output_stride must be a whole number .* got 'fine'"):
        create_backbone(Strided(), output_stride="fine")


@pytest.mark.parametrize("spec", ["tiny", "torchvision:squeezenet1_1", "timm:resnet10t", Strided()])
@pytest.mark.parametrize("stride", [0, -8, "8", True, 8.0])
def test_an_output_stride_is_a_whole_number(spec, stride):
    with pytest.raises(WSSSError, match=f"output_stride must be a whole .* got {stride!r}"):
        create_backbone(spec, output_stride=stride)


@pytest.mark.parametrize("spec", [None, 3, Strided])
def test_other_kinds_of_specs_are_refused(spec):
    with pytest.raises(WSSSError, match="a backbone is a name, a mapping with _target_ or a torch"):
        create_backbone(spec)


@pytest.mark.parametrize(
    "spec", ["tiny", "torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"]
)
def test_weights_of_another_kind_are_refused(spec):
    with pytest.raises(WSSSError, match="weights are a name such as imagenet, a path, or null"):
        create_backbone(spec, weights=3)


def test_weights_are_loaded_for_builders_that_take_none(tmp_path):
    register_backbone("strided")(Strided)
    source = Strided()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = create_backbone("strided", weights=str(tmp_path / "w.pth"))
    assert net.pretrained
    assert torch.equal(net.conv.weight, source.conv.weight)
    assert not create_backbone("strided", weights=None).pretrained
    with pytest.raises(WSSSError, match="'strided' takes no `weights`, so there are no ImageNet"):
        create_backbone("strided", weights="imagenet")


def test_networks_from_elsewhere_leave_the_random_numbers_alone():
    register_backbone("strided")(Strided)
    torch.manual_seed(3)
    expected_weight = Strided().conv.weight
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    net = create_backbone("strided")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(net.conv.weight, expected_weight)


class LooksAtNumbers(nn.Module):
    """Neither construction nor forward can do without values."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.rates = [x.item() for x in torch.linspace(0, 0.5, 3)]
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, images):
        return self.conv(images / (1 + float(images.abs().mean())))


def test_networks_from_elsewhere_need_not_know_the_meta_device():
    register_backbone("looks")(LooksAtNumbers)
    nested = {"_target_": f"{__name__}.Outer", "inner": {"_target_": f"{__name__}.LooksAtNumbers"}}
    with torch.device("meta"):
        net = create_backbone("looks")
        outer = create_backbone(nested)
        assert create_backbone("tiny").layers[0][0][0].weight.is_meta
    assert net.feature_info == FeatureInfo((4,), (4,))
    assert net.network.rates == [0, 0.25, 0.5]
    assert outer.network.inner.rates == [0, 0.25, 0.5]


class Outer(LooksAtNumbers):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


# --- import paths ---------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "from wsss_affinity.backbones import FeatureInfo\n"
        "class Net(nn.Module):\n"
        "    mean = std = (0.5, 0.5, 0.5)\n"
        "    def __init__(self, width, layer=None):\n"
        "        super().__init__()\n"
        "        if width < 1: raise ValueError('width must be positive')\n"
        "        self.conv = nn.Conv2d(3, width, 1)\n"
        "        self.layer = layer\n"
        "        self.feature_info = FeatureInfo((width,), (1,))\n"
        "    def forward(self, x):\n"
        "        return [self.conv(x)]\n"
        "module = nn.ReLU()\n"
        "def nothing(): return 3\n"
    )
    (tmp_path / "broken_networks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_import_path_with_its_arguments(package):
    layer = {"_target_": "torch.nn.MaxPool2d", "kernel_size": 2}
    net = create_backbone({"_target_": "own_networks.Net", "width": 7, "layer": layer})
    assert net.feature_info.channels == (7,)
    assert net.layer.kernel_size == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"width": 3}, "needs _target_, the import path of a class or function"),
        ({"_target_": "Net"}, "_target_=Net: an import path has a module and a name"),
        (
            {"_target_": "no_networks.Net"},
            r"_target_=no_networks.Net cannot be imported \(ModuleNotFoundError: .*PYTHONPATH",
        ),
        ({"_target_": "own_networks.Nett"}, r"cannot be imported \(AttributeError: "),
        ({"_target_": "broken_networks.Net"}, r"cannot be imported \(ZeroDivisionError: division"),
        ({"_target_": "own_networks.module"}, "is no class or function but ReLU"),
        ({"_target_": "own_networks.nothing"}, "gives int; a torch.nn.Module was expected"),
        ({"_target_": "own_networks.Net"}, "missing a required argument: 'width'; its options are"),
        (
            {"_target_": "own_networks.Net", "widht": 3},
            "'widht'; its arguments are width, layer",
        ),
        ({"_target_": "builtins.dict"}, "_target_=builtins.dict does not tell its arguments"),
        (
            {
                "_target_": "own_networks.Net",
                "width": 3,
                "layer": {"_target_": "own_networks.Net", "width": 0},
            },
            r"cannot be built \(ValueError: width must be positive\)",
        ),
        (
            {"_target_": "own_networks.Net", "width": 0},
            r"cannot be built \(ValueError: width must be positive\)",
        ),
    ],
)
def test_bad_import_paths(package, spec, message):
    with pytest.raises(WSSSError, match=message):
        create_backbone(spec)


# --- objects by name ------------------------------------------------------------------------------


def test_an_object_gets_a_name_that_stands_for_its_weights():
    net = Strided()
    name = register_object(net)
    assert name == register_object(net)
    assert name.endswith("Strided@" + name.split("@")[1])
    one, two = create_backbone(name), create_backbone(name)
    assert one is not net
    assert one is not two
    with torch.no_grad():
        net.conv.weight.zero_()
    assert one.conv.weight.abs().sum() > 0
    assert torch.equal(create_backbone(name).conv.weight, one.conv.weight)
    assert register_object(net) != name


def scaled(factor):
    class Scaled(Strided):
        __qualname__ = "Scaled"

        def forward(self, images):
            return [factor * self.conv(images)]

    return Scaled()


class Times(Strided):
    __qualname__ = "Net"

    def forward(self, images):
        return [self.conv(images) * 2]


class Plus(Strided):
    __qualname__ = "Net"

    def forward(self, images):
        return [self.conv(images) + 2]


Times.__name__ = Plus.__name__ = "Net"


def changed(**attributes):
    net = Strided()
    for key, value in attributes.items():
        setattr(net, key, value)
    return net


def frozen():
    net = Strided()
    net.conv.weight.requires_grad_(False)
    return net


def buffered(value):
    net = Strided()
    net.register_buffer("table", torch.tensor(value), persistent=False)
    return net


def hooked(factor):
    net = Strided()
    net.conv.register_forward_hook(lambda module, inputs, output: output * factor)
    return net


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Strided, lambda: changed(mean=(0.4, 0.5, 0.5))),
        (Strided, lambda: changed(std=(0.4, 0.5, 0.5))),
        (Strided, lambda: changed(pretrained=True)),
        (Strided, frozen),
        (Times, Plus),
        (lambda: scaled(2), lambda: scaled(3)),
        (lambda: changed(rate=1), lambda: changed(rate=2)),
        (lambda: changed(act=lambda x: x), lambda: changed(act=lambda x: -x)),
        (lambda: changed(act=torch.relu), lambda: changed(act=torch.tanh)),
        (lambda: buffered(1.0), lambda: buffered(2.0)),
        (lambda: hooked(1), lambda: hooked(2)),
    ],
)
def test_objects_of_equal_weights_that_differ_otherwise_have_names_of_their_own(one, two):
    first, second = one(), two()
    second.load_state_dict(first.state_dict())
    same = copy.deepcopy(first)
    with torch.no_grad():
        for _ in range(20):  # Python makes code over that runs often
            same.eval()(torch.zeros(1, 3, 8, 8))
    assert register_object(first) == register_object(same)
    assert register_object(first) != register_object(second)


def test_a_name_keeps_its_object():
    net = Strided()
    name = register_object(net)
    first = registry._BUILDERS[name]
    assert register_object(copy.deepcopy(net)) == name
    assert registry._BUILDERS[name] is first


def test_what_refers_to_itself_has_a_name():
    class Plain:
        pass

    plain, net = Plain(), Strided()
    plain.self, plain.size = plain, 3
    net.plain = plain
    name = register_object(net)
    plain.size = 4
    assert register_object(net) != name


def test_the_name_is_the_same_in_every_process(tmp_path, monkeypatch):
    (tmp_path / "their_net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from wsss_affinity.backbones import Backbone, FeatureInfo\n"
        "LAYERS = ('b', 'a')\n"
        "class Part: pass\n"
        "class Net(Backbone):\n"
        "    feature_info = FeatureInfo((3,), (1,))\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 3, 1)\n"
        "        nn.init.ones_(self.conv.weight), nn.init.zeros_(self.conv.bias)\n"
        "        self.names = {'one', 'two', 'three', 'four'}\n"
        "        self.part, self.act, self.object = Part(), lambda x: x, object()\n"
        "    def forward(self, x):\n"
        "        assert x.dtype in {torch.float32, torch.float16}\n"
        "        return [self.conv(x)] if LAYERS[0] in {'a', 'b', 'c'} else []\n"
        "if __name__ == '__main__':\n"
        "    import their_net\n"
        "    from wsss_affinity.backbones import register_object\n"
        "    print(register_object(their_net.Net()))\n"
    )
    elsewhere = subprocess.run(
        [sys.executable, "their_net.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": "."},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert register_object(import_module("their_net").Net()) == elsewhere


@pytest.mark.parametrize(
    "net", [lambda: nn.Sequential(nn.LazyConv2d(3, 1)), lambda: Strided().to("meta")]
)
def test_objects_without_values_are_refused(net):
    with pytest.raises(WSSSError, match=r"has parameters without values .*; make it on the CPU"):
        register_object(net())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet8", r"'resnet8' is not known; did you mean 'resnet\d+' or"),
        ("VGG16x", "'VGG16x' is not known; valid names: mobilenet_v2, resnet101"),
        (
            "torchvision:resnet19",
            "'torchvision:resnet19' is no classifier of torchvision; did you mean 'resnet1",
        ),
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
