import csv
import json
from dataclasses import asdict

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from wsss_affinity.pipeline.owner import Owner
from wsss_affinity.summary import Summary, SweepCallback, varying


def score(name, miou, saw_masks=False):
    return {"name": name, "miou": miou, "saw_masks": saw_masks}


def write_job(folder, overrides, value=None, scores=(), error=None):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    status = {"state": "failed" if error else "done", "error": error}
    (folder / "status.json").write_text(json.dumps(status))
    objective = None if value is None else {"name": "pseudo_masks.miou", "value": value}
    # also beside a failure: left by an earlier run in the same folder
    metrics = {"objective": objective, "scores": list(scores)}
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def grid(tmp_path):
    """Jobs 0 to 10 over β with one failure, in folders that do not sort as text."""
    for i in range(11):
        overrides = ["name=x", f"walk.beta={i}.123456789", "cam.scales=[0.5,1.0]"]
        scores = [score("CAM", 0.4), score("CAM, best", 0.45, True), score("pseudo-masks", i / 20)]
        error = "walk: beta must be positive" if i == 0 else None
        write_job(tmp_path / str(i), overrides, i / 20, scores, error)
    return tmp_path


def test_jobs_in_order_with_what_differs(grid):
    summary = Summary.of(grid)
    assert summary.objective == "pseudo_masks.miou"
    assert [job.name for job in summary.jobs] == [str(i) for i in range(11)]
    assert [job.point for job in summary.jobs][2] == {"walk.beta": "2.123456789"}
    assert [job.objective for job in summary.jobs] == [None, *(i / 20 for i in range(1, 11))]
    # the objective is not told twice, and what masks chose is left out
    assert [job.miou for job in summary.jobs] == [{}] + 10 * [{"cam.miou": 0.4}]
    assert summary.over_seeds() == []


def test_written_and_printed(grid, capsys):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(grid)}}})
    with pytest.raises(SystemExit) as end:
        SweepCallback().on_multirun_end(config)
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "best: job 10  walk.beta=10.123456789\n" in printed
    assert "job 0 failed: walk: beta must be positive\n" in printed
    assert "10.12" in printed
    rows = list(csv.reader((grid / "summary.csv").open()))
    assert rows[0] == ["job", "walk.beta", "pseudo_masks.miou", "cam.miou", "state", "error"]
    assert rows[1] == ["0", "0.123456789", "", "", "failed", "walk: beta must be positive"]
    assert rows[11] == ["10", "10.123456789", "0.5", "0.4", "done", ""]
    assert json.loads((grid / "summary.json").read_text())["jobs"][3]["objective"] == 0.15


def test_mean_and_deviation_over_seeds(tmp_path, capsys):
    jobs = [
        (b, s, v) for b, vs in ((4, (0.5, 0.6, 0.7)), (8, (0.2, 0.4))) for s, v in enumerate(vs)
    ]
    for i, (beta, seed, value) in enumerate(jobs):
        write_job(tmp_path / str(i), [f"walk.beta={beta}", f"seed={seed}"], value)
    write_job(tmp_path / "5", ["walk.beta=8", "seed=2"], error="disk full")
    summary = Summary.of(tmp_path)
    first, second = summary.over_seeds()
    assert first["point"] == {"walk.beta": "4"}
    assert (first["seeds"], second["seeds"]) == (3, 2)
    assert first["objective"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)}
    # n - 1: ((0.1² + 0.1²) / 1)^½
    assert second["objective"] == {"mean": pytest.approx(0.3), "std": pytest.approx(0.02**0.5)}
    summary.print()
    printed = capsys.readouterr().out
    assert "0.6000 ± 0.1000" in printed
    assert "best" not in printed


def test_nothing_failed_is_no_exit(tmp_path):
    write_job(tmp_path / "0", ["seed=0"], 0.5)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    SweepCallback().on_multirun_end(config)
    assert json.loads((tmp_path / "summary.json").read_text())["over_seeds"] == []


@pytest.mark.parametrize(("mode", "status"), [("MULTIRUN", "COMPLETED"), ("RUN", "FAILED")])
def test_only_a_sweep_goes_on_after_a_failure(mode, status):
    config = OmegaConf.create({"hydra": {"mode": RunMode[mode]}})
    job = JobReturn(status=JobStatus.FAILED)
    job.return_value = ValueError("x")
    SweepCallback().on_job_end(config, job)
    assert job.status == JobStatus[status]
    if mode == "MULTIRUN":
        assert job.return_value is None


def test_damaged_job_is_one_sentence(tmp_path, capsys):
    write_job(tmp_path / "0", ["seed=0"], 0.5)
    (tmp_path / "0" / "status.json").write_text("[]")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as end:
        SweepCallback().on_multirun_end(config)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/0/status.json cannot be read (")
    assert len(said.splitlines()) == 1


def test_killed_job_is_told(tmp_path, capsys):
    write_job(tmp_path / "3", ["seed=0"])
    owner = asdict(Owner.here()) | {"pid": 2**22 + 1}
    status = {"state": "running", "error": None, "owner": owner}
    (tmp_path / "3" / "status.json").write_text(json.dumps(status))
    Summary.of(tmp_path).print()
    assert "job 3 killed\n" in capsys.readouterr().out


def test_varying():
    assert varying([]) == []
    assert varying([{"a": "1"}]) == [{}]
    points = [{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1"}]
    assert varying(points) == [{"b": "2"}, {"b": "3"}, {}]
