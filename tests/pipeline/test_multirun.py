"""The jobs of a sweep share what they can, one after another and side by side."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SHARED = ("train_cam", "make_cam", "affinity_labels", "train_affinity")


def run(tiny, folder, *overrides):
    """Run a sweep in an empty folder; what each job says of its stages, and the summary."""
    command = [sys.executable, "-m", "wsss_affinity", "-m", *tiny, *overrides]
    places = [f"output_dir={folder}", f"hydra.sweep.dir={folder}/sweep"]
    result = subprocess.run([*command, *places], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    summary = json.loads((folder / "sweep" / "summary.json").read_text())
    paths = [folder / "sweep" / job["name"] / "metrics.json" for job in summary["jobs"]]
    return result, [json.loads(path.read_text())["stages"] for path in paths], summary


def made(jobs):
    """How often each artefact was made."""
    return Counter(
        (name, Path(stage["artifact"]).name)
        for job in jobs
        for name, stage in job.items()
        if stage["made"]
    )


def check_shared(jobs, folder, walks):
    """Each stage before the walk was made once, by one job, and each walk by its own."""
    assert all(list(job) == [*SHARED, "random_walk"] for job in jobs)
    counts = made(jobs)
    assert set(counts.values()) == {1}
    assert Counter(name for name, _ in counts) == Counter([*SHARED, *["random_walk"] * walks])
    there = (folder / "artifacts").glob("*/*/manifest.json")
    assert {(p.parts[-3], p.parts[-2]) for p in there if p.parts[-3] != "check_data"} == set(counts)


def test_grid_trains_each_network_once(tiny, tmp_path):
    result, jobs, summary = run(
        tiny, tmp_path, "sweep=walk_grid", "walk.beta=4,8,16", "walk.num_steps=64,256"
    )
    check_shared(jobs, tmp_path, walks=6)
    expected = [
        {"walk.beta": b, "walk.num_steps": n} for b in ("4", "8", "16") for n in ("64", "256")
    ]
    assert [job["point"] for job in summary["jobs"]] == expected
    assert summary["objective"] == "pseudo_masks.miou"
    assert all(0 < job["objective"] < 1 for job in summary["jobs"])
    assert "summary.csv" in result.stdout

    # again: nothing is made, the same comes out
    again = run(tiny, tmp_path, "sweep=walk_grid", "walk.beta=4,8,16", "walk.num_steps=64,256")
    assert made(again[1]) == Counter()
    assert again[2] == summary


@pytest.mark.slow
def test_three_jobs_at_once_from_nothing(tiny, tmp_path):
    # with data.num_workers=1, so that a job has a worker process of its own
    options = ["walk.beta=4,8,16", "walk.num_steps=64", "hydra/launcher=joblib"]
    _, jobs, summary = run(tiny, tmp_path, "sweep=walk_grid", *options, "hydra.launcher.n_jobs=3")
    check_shared(jobs, tmp_path, walks=3)
    assert [job["state"] for job in summary["jobs"]] == ["done"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=submitit_local"],
        ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
    ],
)
def test_launchers_run_seeds(tiny, tmp_path, launcher):
    if "ray" in launcher[0]:
        pytest.importorskip("ray")  # hundreds of megabytes, so not among what tests need
    stages = "pipeline.stages=[train_cam]"
    _, jobs, summary = run(tiny, tmp_path, "sweep=seeds", "seed=0,1", stages, *launcher)
    assert [list(job) for job in jobs] == [["train_cam"]] * 2
    assert len(made(jobs)) == 2
    assert [job["point"] for job in summary["jobs"]] == [{"seed": "0"}, {"seed": "1"}]
    assert summary["over_seeds"] == [{"point": {}, "seeds": 2}]


def test_a_failed_job_does_not_end_the_sweep(tiny, tmp_path):
    stages = "pipeline.stages=[train_cam]"
    command = [sys.executable, "-m", "wsss_affinity", "-m", *tiny, stages, f"output_dir={tmp_path}"]
    options = ["train_cam.output_stride=7,8", f"hydra.sweep.dir={tmp_path}/sweep"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "job 0 failed: backbone with train_cam.output_stride" in result.stdout
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert [job["state"] for job in summary["jobs"]] == ["failed", "done"]
