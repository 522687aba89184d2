"""A backbone from another package: installed as a plug-in, by its import path, and as an object."""

import json
import os
import subprocess
import sys
import textwrap
from importlib import invalidate_caches

import pytest
import torch

from wsss_affinity.backbones import create_backbone, list_backbones
from wsss_affinity.config import load_config
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.context import backbone_options
from wsss_affinity.pipeline.settings import check_settings
from wsss_affinity.pipeline.stages import STAGES

NETWORK = '''
    """A small network with three maps."""

    import torch.nn.functional as F
    from torch import nn

    from wsss_affinity.backbones import Backbone, FeatureInfo


    class Block(nn.Module):
        """Two convolutions, the first with a stride."""

        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm = nn.BatchNorm2d(outputs)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)

        def forward(self, x):
            return F.relu(self.second(F.relu(self.norm(self.first(x)))))


    class TheirNet(Backbone):
        """Maps at strides 4, 8 and 16."""

        mean = std = (0.5, 0.5, 0.5)

        def __init__(self, width=16):
            super().__init__()
            channels = (width, 2 * width, 4 * width)
            self.blocks = nn.ModuleList(
                Block(i, o, s) for i, o, s in zip((3, *channels), channels, (4, 2, 2))
            )
            self.feature_info = FeatureInfo(channels, (4, 8, 16))

        @property
        def stages(self):
            return list(self.blocks)

        def forward(self, images):
            maps = [images]
            for block in self.blocks:
                maps.append(block(maps[-1]))
            return maps[1:]
'''
PROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "their-package"
    version = "1.0"

    [project.entry-points."wsss_affinity.backbones"]
    theirs = "their_package:TheirNet"
    broken = "their_package.broken:Net"
    nothing = "their_package:FeatureInfo.__doc__"
    resnet18 = "their_package:TheirNet"
"""
TINY = (
    "data.num_train=6",
    "data.num_val=2",
    "data.image_size=48",
    "data.num_workers=1",
    "train_cam.max_epochs=1",
    "train_cam.batch_size=2",
    "train_cam.transform.crop_size=32",
    "cam.scales=[1.0]",
    "train_affinity.max_epochs=1",
    "train_affinity.batch_size=2",
    "train_affinity.transform.crop_size=32",
    "train_segmentation.max_epochs=1",
    "train_segmentation.batch_size=2",
    "train_segmentation.transform.crop_size=32",
    "evaluate.sheet_images=1",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed by pip, as a wheel is."""
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    package = project / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(NETWORK))
    (package / "broken.py").write_text("import no_such_package\n")
    (project / "pyproject.toml").write_text(textwrap.dedent(PROJECT))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--no-build-isolation", "--target", str(target), str(project)]
    subprocess.run(install, check=True, capture_output=True)
    return target


@pytest.fixture
def installed(site, monkeypatch):
    """The package in this process's path, and out of it again."""
    monkeypatch.syspath_prepend(str(site))
    invalidate_caches()
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "their_package"]:
        del sys.modules[name]


def command(site, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    return subprocess.run(
        [sys.executable, "-m", "wsss_affinity", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_network_has_forty_lines():
    assert len(textwrap.dedent(NETWORK).strip().splitlines()) <= 45


def test_an_installed_plugin_is_found_without_an_import(installed):
    assert {"theirs", "broken", "resnet18", "tiny"} <= set(list_backbones())
    assert "their_package" not in sys.modules
    net = create_backbone("theirs", width=8)
    assert net.feature_info.channels == (8, 16, 32)
    # a plug-in does not take the place of a name of ours
    assert type(create_backbone("resnet18")).__name__ == "TorchvisionBackbone"


def test_a_broken_plugin_is_one_sentence_and_hinders_no_other(installed):
    with pytest.raises(
        WSSSError,
        match=r"backbone 'broken' of the installed package 'their-package' cannot be imported "
        r"\(ModuleNotFoundError: No module named 'no_such_package'\); mend the package",
    ):
        create_backbone("broken")
    with pytest.raises(WSSSError, match=r"'their_package:FeatureInfo.__doc__' is no class or func"):
        create_backbone("nothing")
    assert type(create_backbone("theirs")).__name__ == "TheirNet"


def test_a_plugin_is_a_choice_of_the_configuration(installed):
    section = load_config(["backbone=theirs", "backbone.weights=a.pth"]).backbone
    assert dict(section) == {
        "name": "theirs",
        "weights": "a.pth",
        "freeze_batchnorm": False,
        "freeze_stages": 0,
    }
    assert load_config(["backbone=resnet18"]).backbone.freeze_stages == 1  # ours, not theirs
    with pytest.raises(WSSSError, match="did you mean 'theirs'"):
        load_config(["backbone=thirs"])


def test_an_import_path_in_the_configuration(installed):
    target = ["backbone=target", "backbone._target_=their_package.TheirNet", "+backbone.width=8"]
    cfg = load_config([*target, "backbone.freeze_stages=1"])
    spec = {"_target_": "their_package.TheirNet", "width": 8}
    assert backbone_options(cfg) == {
        "backbone": spec,
        "weights": None,
        "freeze_batchnorm": False,
        "freeze_stages": 1,
    }
    assert cfg.train_segmentation.encoder == spec
    check_settings(cfg, list(STAGES))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["backbone=target", "backbone._target_=their_package.Net"],
            r"backbone with train_cam.output_stride: backbone _target_=their_package.Net cannot be",
        ),
        (
            ["backbone=target", "backbone._target_=their_package.TheirNet", "+backbone.widht=8"],
            "_target_=their_package.TheirNet: .*'widht'; its arguments are width",
        ),
        (["+backbone._target_=their_package.TheirNet"], "has a name beside _target_; begin it"),
        (["backbone=broken"], "'broken' of the installed package 'their-package' cannot be impor"),
    ],
)
def test_what_cannot_be_made_is_told_before_training(installed, overrides, message):
    with pytest.raises(WSSSError, match=message):
        check_settings(load_config(overrides), list(STAGES))


def test_an_import_path_that_is_not_given_is_asked_for():
    with pytest.raises(WSSSError, match=r"backbone._target_ is not set; give it on the command"):
        run_pipeline(load_config(["backbone=target"]))


def test_without_the_package_the_name_is_not_known():
    assert "theirs" not in list_backbones()


@pytest.mark.slow
def test_the_command_line_tells_of_a_broken_plugin_before_training(site, tmp_path):
    result = command(site, "backbone=broken", *TINY, f"output_dir={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.count("error: ") == 1
    assert "cannot be imported (ModuleNotFoundError" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("artifacts/train_cam/*"))


@pytest.mark.slow
def test_all_stages_by_name_by_import_path_and_as_an_object(site, installed, tmp_path):
    result = command(site, "backbone=theirs", *TINY, f"output_dir={tmp_path}/out", "name=named")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "named" / "metrics.json").read_text())
    assert len(metrics["stages"]) == 7

    from their_package import TheirNet

    torch.manual_seed(0)  # the seed of the configuration
    net = TheirNet()
    before = [p.clone() for p in net.parameters()]
    cfg = load_config([*TINY, f"output_dir={tmp_path}/out"])
    as_object = run_pipeline(cfg, backbone=net)
    assert cfg.backbone.name == "tiny"
    assert all(map(torch.equal, before, net.parameters()))
    target = ["backbone=target", "backbone._target_=their_package.TheirNet", "+backbone.width=16"]
    by_path = run_pipeline(load_config([*TINY, f"output_dir={tmp_path}/out", *target]))
    for other in (as_object, by_path):
        assert other.scores == metrics["scores"]
        for name, stage in other.stages.items():
            assert stage.made
            named = metrics["stages"][name]["artifact"]
            assert str(stage.path) != named
            for weights in stage.path.glob("weights.*"):
                assert same_weights(weights, named), name
    # the arguments are part of what names an artefact, and the same ones are reused
    again = run_pipeline(load_config([*TINY, f"output_dir={tmp_path}/out", *target]))
    assert not any(stage.made for stage in again.stages.values())
    wider = [*TINY, f"output_dir={tmp_path}/out", *target[:2], "+backbone.width=24"]
    wide = run_pipeline(load_config([*wider, "pipeline.only=[train_cam]"]))
    assert wide.stages["train_cam"].made


def same_weights(path, folder):
    one, two = (torch.load(p, weights_only=True) for p in (path, f"{folder}/{path.name}"))
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())
