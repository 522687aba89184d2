import io
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image

from wsss_affinity import cli
from wsss_affinity.config import load_config
from wsss_affinity.interrupt import Interrupted
from wsss_affinity.pipeline.runner import RunResult, StageResult
from wsss_affinity.pipeline.runs import read_runs


def wsss(*arguments, cwd):
    command = [sys.executable, "-m", "wsss_affinity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_bad_key_is_one_sentence(tmp_path):
    result = wsss("walk.betta=3", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: there is no key 'walk.betta' in the configuration; did you mean 'walk.beta'"
    )
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_root_is_one_sentence(tmp_path):
    result = wsss("experiment=folder", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: data.root is not set; give it on the command line")
    assert "Traceback" not in result.stderr


def test_errors_of_the_data_set_are_one_sentence(tmp_path):
    result = wsss("experiment=folder", "data.root=nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: folder nowhere does not exist; set data.root")
    assert len(result.stderr.splitlines()) == 1
    (folder,) = (tmp_path / "outputs").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_status"], status["resumable"]) == ("failed", 2, False)
    assert result.stderr == f"error: {status['error']}\n"
    (log,) = folder.glob("*.log")
    assert "Traceback (most recent call last):" in log.read_text()


def test_run_reports_and_predict_uses_it(tmp_path):
    sizes = ["data.num_train=4", "data.num_val=2", "data.image_size=48", "data.num_workers=0"]
    fits = [
        f"train_{task}.{option}"
        for task in ("cam", "affinity", "segmentation")
        for option in ("max_epochs=1", "batch_size=2", "transform.crop_size=32")
    ]
    options = [*sizes, *fits, "evaluate.sheet_images=1"]
    result = wsss(*options, "pipeline.per_class=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "pseudo-masks" in result.stdout
    assert "checker" in result.stdout  # per class
    metrics = json.loads((tmp_path / "outputs" / "shapes" / "metrics.json").read_text())
    assert {s["name"] for s in metrics["scores"]} >= {"CAM", "pseudo-masks", "segmentation"}
    assert Image.open(tmp_path / "outputs" / "shapes" / "contact_sheet.png").width > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]
    status = json.loads((tmp_path / "outputs" / "shapes" / "status.json").read_text())
    assert (status["state"], status["stage"], status["exit_status"]) == ("done", "evaluate", 0)

    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "a.jpg")
    Image.fromarray(pixels[:5, :3]).save(photos / "more" / "b.png")
    result = wsss(
        "mode=predict", "predict.images=photos", "predict.masks=m", *options, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "m" / "a.png").size == (41, 30)
    assert Image.open(tmp_path / "m" / "more" / "b.png").size == (3, 5)
    assert Image.open(tmp_path / "m" / "a.png").mode == "P"
    dry = wsss(*options, "walk.beta=2", "pipeline.dry_run=true", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    # neither is a run: what the run left of itself stays
    folder = tmp_path / "outputs" / "shapes"
    assert json.loads((folder / "status.json").read_text()) == status
    overrides = [*options, "pipeline.per_class=true"]
    assert list(OmegaConf.load(folder / ".hydra" / "overrides.yaml")) == overrides
    other = json.loads((folder / ".jobs" / "status.json").read_text())
    assert (other["state"], other["stage"]) == ("done", None)
    assert [run.name for run in read_runs(tmp_path / "outputs")] == ["shapes"]


def test_template(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "x.png")
    options = ["mode=template", "experiment=folder", "data.root=photos"]
    assert wsss(*options, cwd=tmp_path).returncode == 0
    assert (tmp_path / "photos" / "labels.csv").read_text() == "image,labels\nx.png,\n"
    again = wsss(*options, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize("mode", ["preddict"])
def test_unknown_mode(tmp_path, mode):
    result = wsss(f"mode={mode}", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'predict'?" in result.stderr


def test_jobs_of_a_sweep_fail_by_themselves(tmp_path):
    """The middle one has a bad setting; a dry run is enough to find that out."""
    small = ["data.num_train=4", "data.num_val=2", "data.image_size=48", "data.num_workers=0"]
    options = [*small, "walk.beta=4,-1,2", "pipeline.dry_run=true"]
    result = wsss("-m", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stdout.count("[ERROR] - job 1 failed: walk: beta must be positive, got -1") == 1
    (sweep,) = (tmp_path / "outputs" / "sweeps" / "shapes").iterdir()
    states = [json.loads((sweep / f"{i}" / "status.json").read_text()) for i in range(3)]
    assert [status["state"] for status in states] == ["done", "failed", "done"]
    assert states[1]["error"] == "walk: beta must be positive, got -1"
    (log,) = (sweep / "1").glob("*.log")
    assert "ValueError: beta must be positive, got -1" in log.read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_reports(tmp_path, monkeypatch, capsys, rank):
    stage = StageResult("train_cam", tmp_path, True, {"metrics": {}, "wall_time_s": 1.0})
    result = RunResult({"train_cam": stage})
    monkeypatch.setattr("wsss_affinity.pipeline.runner.run_pipeline", lambda *_, **__: result)
    monkeypatch.setattr("wsss_affinity.pipeline.predict.predict", lambda *_: "here")
    monkeypatch.setattr("wsss_affinity.world.rank", lambda: rank)
    hydra = {"runtime": {"output_dir": str(tmp_path)}, "mode": RunMode.RUN}
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: OmegaConf.create(hydra))
    cli._run(load_config([]), SimpleNamespace(stage=None))
    assert (tmp_path / "metrics.json").exists() == (rank == 0)
    options = [f"output_dir={tmp_path}/out", "predict.images=x", "predict.network=y/z"]
    cli._predict(load_config(options), SimpleNamespace(stage=lambda _: None))
    printed = capsys.readouterr().out
    assert ("metrics " in printed, "masks  here\n" in printed) == (rank == 0, rank == 0)
    assert rank == 0 or not printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_ends_changes_nothing(monkeypatch, number):
    class Terminal(io.StringIO):
        def write(self, text):
            os.kill(os.getpid(), number)
            return super().write(text)

    def job():
        raise Interrupted

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["wsss-affinity"])
    monkeypatch.setattr(cli.hydra, "main", lambda **_: lambda _: job)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert end.value.code == 75
    assert terminal.getvalue() == "stopped; the same command goes on from here\n"
