import json
import subprocess
from dataclasses import asdict

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.owner import Owner
from wsss_affinity.pipeline.runs import StageRun, read_runs, settings_that_differ


def test_runs_in_order_with_what_they_left(tmp_path, add_run):
    for name in ("sweeps/x/10", "sweeps/x/2", "one"):
        artifacts = {"train_cam/a": (False, 60.0), f"random_walk/{name[-1]}": (True, 2.5)}
        scores = [("CAM", 0.4), ("CAM, best", 0.5), ("pseudo-masks", 0.6), ("segmentation", None)]
        objective = ("pseudo_masks.evidence", 0.3)
        add_run(tmp_path / name, [], artifacts, scores=scores, objective=objective)
    add_run(tmp_path / "artifacts" / "evaluate")  # whatever an artefact holds, it is no run
    add_run(tmp_path / ".trash" / "run")
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["one", "sweeps/x/2", "sweeps/x/10"]
    run = runs[2]
    # what masks chose is left out
    expected = {"pseudo_masks.evidence": 0.3, "cam.miou": 0.4, "pseudo_masks.miou": 0.6}
    assert run.metrics == expected
    assert run.objective == "pseudo_masks.evidence"
    assert run.stages["train_cam"] == StageRun("a", False, 60.0)
    assert (run.seconds, run.seconds_made) == (62.5, 2.5)
    assert run.artifacts == ("train_cam/a", "random_walk/0")
    assert [run.name for run in read_runs(tmp_path / "one")] == ["one"]


@pytest.mark.parametrize("state", ["failed", "interrupted", "running"])
def test_without_a_result_what_lies_there_is_of_an_earlier_run(tmp_path, add_run, state):
    error = "walk: beta must be positive" if state == "failed" else None
    artifacts = {"train_cam/a": (True, 1.0)}
    add_run(tmp_path / "x", [], artifacts, scores=[("CAM", 0.4)], state=state, error=error)
    (run,) = read_runs(tmp_path)
    assert (run.state, run.stage, run.error) == (state, "make_cam", error)
    assert (run.metrics, run.stages, run.seconds, run.seconds_made) == ({}, {}, None, None)
    assert run.artifacts == ("train_cam/a",)  # still referred to


def test_killed_is_told_from_running(tmp_path, add_run):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    here = asdict(Owner.here())
    owners = {
        "a": here | {"pid": ended.pid},
        "b": here | {"start": here["start"] - 1},  # its number was given to a later process
        "c": here,
        "d": here | {"pid": ended.pid, "machine": "elsewhere"},
    }
    for name, owner in owners.items():
        add_run(tmp_path / name, state="running", owner=owner)
    states = [run.state for run in read_runs(tmp_path)]
    assert states == ["killed", "killed", "running", "running"]


def test_metrics_alone_are_a_run(tmp_path, add_run):
    add_run(tmp_path / "a", [], {"train_cam/a": (True, 1.0)})
    (tmp_path / "a" / "status.json").unlink()
    assert [(run.state, run.seconds) for run in read_runs(tmp_path)] == [("done", 1.0)]


def test_damaged_files_are_named(tmp_path, add_run):
    add_run(tmp_path / "a")
    (tmp_path / "a" / "metrics.json").write_text("{")
    with pytest.raises(WSSSError, match=r"a/metrics\.json cannot be read .* remove it"):
        read_runs(tmp_path)


def test_settings_that_were_not_given_are_read_from_the_configuration(tmp_path, add_run):
    def config(beta, scales=(1.0,), environment="x"):
        walk = {"beta": beta, "num_steps": "${.beta}"}
        return {"walk": walk, "cam": {"scales": list(scales)}, "e": f"${{oc.env:{environment}}}"}

    same = ["walk.beta=8.0", "name=a", "output_dir=x", "sweep=seeds", "hydra.run.dir=z"]
    add_run(tmp_path / "a", same, config=config(8.0), choices={"backbone": "tiny"})
    # as by default, and given otherwise: not told; a key that is no longer known is
    given = ["+cam.scales=[0.5,1.0]", "old.key=3", "e=1"]
    add_run(tmp_path / "b", given, config=config(8.0, (0.5, 1.0)), choices={"backbone": "tiny"})
    given = ["backbone=resnet50", "walk.num_steps=16"]
    choices = {"backbone": "resnet50", "sweep": "seeds"}
    add_run(tmp_path / "c", given, config=config(8.0), choices=choices)
    assert settings_that_differ(read_runs(tmp_path)) == [
        {"cam.scales": "[1.0]", "backbone": "tiny"},
        {"cam.scales": "[0.5, 1.0]", "old.key": "3", "e": "1", "backbone": "tiny"},
        {"cam.scales": "[1.0]", "backbone": "resnet50"},
    ]


def test_configuration_that_is_no_yaml(tmp_path, add_run):
    add_run(tmp_path / "a")
    (tmp_path / "a" / ".hydra" / "config.yaml").write_text("a: [")
    with pytest.raises(WSSSError, match=r"a/\.hydra cannot be read"):
        settings_that_differ(read_runs(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("metrics.json", [], "it is not what a run writes"),
        ("status.json", "done", "it is not what a run writes"),
        ("metrics.json", {"stages": {"a": {}}}, "there is no 'artifact'"),
        ("metrics.json", {"stages": []}, "'list' object has no attribute 'items'"),
        ("metrics.json", {"scores": [{"name": "CAM"}]}, "there is no 'miou'"),
        ("metrics.json", {"objective": {"name": "x", "value": "high"}}, "could not convert"),
        ("status.json", {"state": "running", "owner": {"pid": 3}}, "missing"),
    ],
)
def test_files_of_somebody_else_are_named(tmp_path, add_run, file, content, reason):
    add_run(tmp_path / "a")
    (tmp_path / "a" / file).write_text(json.dumps(content))
    with pytest.raises(WSSSError, match=rf"a/{file} cannot be read \(.*{reason}.*; mend or remove"):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"), [("config", "- a"), ("overrides", "- a: ["), ("overrides", "3")]
)
def test_settings_that_are_damaged_are_named(tmp_path, add_run, file, content):
    add_run(tmp_path / "a")
    (tmp_path / "a" / ".hydra" / f"{file}.yaml").write_text(content)
    with pytest.raises(WSSSError, match=r"a/\.hydra(/overrides\.yaml)? cannot be read"):
        settings_that_differ(read_runs(tmp_path))
