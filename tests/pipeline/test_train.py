import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.models import CAMNet
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.fit import WEIGHTS

VGG = ("backbone=vgg16_largefov", "backbone.weights=null", "pipeline.stages=[train_cam]")


def test_published_classifier_is_taken_as_it_is(tiny_config, tmp_path):
    net = CAMNet("vgg16_largefov", num_classes=4)
    state = {n.removeprefix("backbone."): v for n, v in net.state_dict().items()}
    state["fc8.weight"] = state.pop("head.classifier.weight")
    torch.save(state, tmp_path / "vgg16_cls.pth")
    options = (f"train_cam.weights={tmp_path}/vgg16_cls.pth", "train_cam.max_epochs=0")
    result = run_pipeline(tiny_config(*VGG, *options))
    found = torch.load(result.stages["train_cam"].path / WEIGHTS, weights_only=True)
    assert found.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(found[name], value)


def test_nothing_is_taken_for_trained(tiny_config):
    cfg = tiny_config("train_cam.max_epochs=0")
    with pytest.raises(
        WSSSError, match=r"train_cam.max_epochs must be a whole number of at least 1"
    ):
        run_pipeline(cfg)
