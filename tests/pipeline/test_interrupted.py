"""A run that is asked to stop in map stages goes on as if nothing had been."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("stop_after.py")
STAGES = "pipeline.stages=[train_cam,make_cam,affinity_labels,train_affinity,random_walk]"


def run(tiny, folder, number="SIGTERM", stage="none", count=0):
    """Exit status, what came on stderr but for the bars, and status.json."""
    folder.mkdir(exist_ok=True)
    epochs = ("train_cam.max_epochs=1", "train_affinity.max_epochs=1")
    overrides = [*tiny, *epochs, STAGES, "data.num_workers=2", f"output_dir={folder}"]
    result = subprocess.run(
        [sys.executable, str(DRIVER), number, stage, str(count), *overrides],
        capture_output=True,
        text=True,
        cwd=folder,
        start_new_session=True,  # the signal goes to the whole group
    )
    said = [line for line in result.stderr.splitlines() if line and "img/s" not in line]
    return result.returncode, said, json.loads((folder / "shapes" / "status.json").read_text())


def made(folder):
    root = folder / "artifacts"
    paths = sorted(path for path in root.rglob("*") if path.suffix in (".npz", ".png", ".pt"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_stopped_in_map_stages_ends_as_undisturbed(tiny, tmp_path):
    assert run(tiny, tmp_path / "calm")[0] == 0
    folder = tmp_path / "stopped"
    for number, stage, files in (
        ("SIGTERM", "make_cam", "*.npz"),
        ("SIGINT", "affinity_labels", "labels/*.png"),
        ("SIGTERM", "random_walk", "scores/*.npz"),
    ):
        code, said, status = run(tiny, folder, number, stage, 2)
        assert code == 75
        assert said == ["stopped; the same command goes on from here"]
        assert (status["state"], status["stage"]) == ("interrupted", stage)
        assert (status["resumable"], status["exit_status"]) == (True, 75)
        (partial,) = (folder / "artifacts" / stage).glob("*.partial")
        assert len(list(partial.glob(files))) >= 2
        assert not list(partial.rglob(".*.tmp"))
    code, _, status = run(tiny, folder)
    assert (code, status["state"], status["exit_status"]) == (0, "done", 0)
    assert made(folder) == made(tmp_path / "calm")
    assert len(made(folder)) == 2 + 4 * 6  # weights, maps, labels, scores, masks
