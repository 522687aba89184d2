import pytest

from wsss_affinity import config
from wsss_affinity.config import check_overrides, load_config
from wsss_affinity.errors import WSSSError


def test_overrides_reach_the_configuration():
    extra = "+trainer.limit_train_batches=2"
    cfg = load_config(["experiment=folder", "walk.beta=4", "backbone=resnet18", extra])
    assert cfg.walk.beta == 4
    assert cfg.backbone.name == "resnet18"
    assert cfg.train_segmentation.encoder == "resnet18"
    assert cfg.trainer.limit_train_batches == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wlak.beta=4", r"no key 'wlak.beta'.*did you mean 'walk.beta'"),
        ("walk.betta=4", r"did you mean 'walk.beta'"),
        ("backbone=resnet81", r"did you mean 'resnet18'"),
        ("experiment=voc_animals", r"did you mean 'voc12_animals'"),
        ("data=vocc", r"did you mean 'voc'"),
        ("sweep=walkgrid", r"did you mean 'walk_grid'"),
        ("hydra/launcher=jobblib", r"did you mean 'joblib'"),
        ("hydra/sweeper=optuna", r"did you mean 'wsss_optuna'"),
        ("experiment=null", r"valid names: camvid, cityscapes, coco14, folder"),
        ("walk.beta=[1", r"cannot read the override"),
    ],
)
def test_misspelt_override_names_the_nearest(override, message):
    with pytest.raises(WSSSError, match=message):
        load_config([override])


def test_sweeps_and_flags_pass():
    check_overrides(["-m", "walk.beta=4,8,16", "backbone=tiny,resnet18", "hydra.verbose=true"])


def test_sweeps_launchers_and_ranges_pass():
    check_overrides(["-m", "sweep=walk_grid", "walk.beta=2,4", "hydra/launcher=joblib"])
    check_overrides(["sweep=search", "hydra/sweeper=basic", "walk.beta=tag(log,interval(1,32))"])
    check_overrides(["-m", "seed=range(5)", "hydra/launcher=submitit_local,basic"])


def test_launcher_that_is_not_installed_tells_its_extra(monkeypatch):
    monkeypatch.setattr(config, "_options", lambda override: ["basic"])
    with pytest.raises(
        WSSSError, match=r"hydra/launcher=ray: .*pip install 'wsss-affinity\[ray\]'"
    ):
        check_overrides(["-m", "hydra/launcher=ray"])


def test_sweep_over_an_unknown_choice():
    with pytest.raises(WSSSError, match="did you mean 'resnet18'"):
        check_overrides(["-m", "backbone=tiny,resnet19"])


def test_default_is_the_demo():
    cfg = load_config()
    assert cfg.name == "shapes"
    assert cfg.backbone.name == "tiny"
