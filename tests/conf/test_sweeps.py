"""Every shipped sweep composes with every experiment, proposes what exists, and runs."""

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsss_affinity.config import CONFIG_NAME, check_overrides, config_dir, load_config

SWEEPS = sorted(p.stem for p in (config_dir() / "sweep").glob("*.yaml"))
EXPERIMENTS = sorted(p.stem for p in (config_dir() / "experiment").glob("*.yaml"))
POINTS = {"walk_grid": 6, "crf_grid": 12, "backbone_grid": 5, "seeds": 5}


def sweeper(name):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(CONFIG_NAME, [f"sweep={name}"], return_hydra_config=True)
    assert str(cfg.hydra.mode) == "RunMode.MULTIRUN"  # without -m
    return OmegaConf.to_container(cfg.hydra.sweeper)


@pytest.mark.parametrize("name", SWEEPS)
def test_parameters_exist(name):
    params = sweeper(name)["params"]
    assert params
    check_overrides([f"{key}={value}" for key, value in params.items()])
    if name in POINTS:
        points = 1
        for value in params.values():
            points *= len(value.split(","))
        assert points == POINTS[name]
    else:
        assert sweeper(name)["_target_"].endswith("OptunaSweeper")


@pytest.mark.parametrize("name", SWEEPS)
def test_stages(name):
    cfg = load_config([f"sweep={name}"])
    last = "evaluate" if name in ("backbone_grid", "seeds") else "random_walk"
    assert cfg.pipeline.stages[-1] == last


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_composes_with_every_experiment(experiment):
    cfg = load_config([f"experiment={experiment}", "sweep=walk_grid"])
    assert cfg.pipeline.stages[-1] == "random_walk"
    backbone = load_config([f"experiment={experiment}", "sweep=backbone_grid", "backbone=resnet34"])
    assert backbone.backbone.name == "resnet34"


def test_search_runs_on_tiny_data(tmp_path, shrink):
    data = ["data.num_train=4", "data.num_val=2", "data.image_size=48", *shrink]
    places = [f"output_dir={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    options = ["sweep=search", "hydra.sweeper.n_trials=2", "walk.beta=interval(4.0,9.0)"]
    command = [sys.executable, "-m", "wsss_affinity", *options, *data, *places]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert [job["state"] for job in summary["jobs"]] == ["done"] * 2
    assert all(4 <= float(job["point"]["walk.beta"]) <= 9 for job in summary["jobs"])
    assert len(list((tmp_path / "artifacts" / "train_cam").glob("*/manifest.json"))) == 1
    assert len(list((tmp_path / "artifacts" / "random_walk").glob("*/manifest.json"))) == 2
