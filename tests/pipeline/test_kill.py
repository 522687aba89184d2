"""A run that is killed in every stage ends with the artefacts of an undisturbed one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("die_after.py")
STAGES = (
    ("train_cam", 1),
    ("make_cam", 3),
    ("affinity_labels", 3),
    ("train_affinity", 1),
    ("random_walk", 4),  # files of scores; masks follow them in another process
    ("train_segmentation", 1),
    ("evaluate", 1),
)


def run(tiny, folder, stage="none", count=0):
    log = folder / "renames.log"
    folder.mkdir(exist_ok=True)
    overrides = [*tiny, f"output_dir={folder}"]
    command = [sys.executable, str(DRIVER), str(log), stage, str(count), *overrides]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return result, log


@pytest.mark.slow
def test_killed_in_every_stage_ends_as_undisturbed(tiny, artefacts, tmp_path):
    calm, calm_log = run(tiny, tmp_path / "calm")
    assert calm.returncode == 0, calm.stderr

    folder = tmp_path / "killed"
    for stage, count in STAGES:
        killed, log = run(tiny, folder, stage, count)
        assert killed.returncode == -9, killed.stderr
        stage_folder = folder / "artifacts" / stage
        assert [p.suffix for p in stage_folder.iterdir() if p.is_dir()] == [".partial"]
    finished, log = run(tiny, folder)
    assert finished.returncode == 0, finished.stderr

    expected = artefacts(tmp_path / "calm")
    assert artefacts(folder) == expected
    # six maps, their checksums, the manifest
    assert len([n for n in expected if n.startswith("make_cam/")]) == 8

    # nothing finished was done again: each file was renamed into place as often as without kills
    assert Counter(log.read_text().split()) == Counter(calm_log.read_text().split())

    manifests = [
        json.loads(path.read_text())
        for stage, _ in STAGES
        for path in (folder / "artifacts" / stage).rglob("manifest.json")
    ]
    resumed = [(manifest["resumed"], manifest["attempts"]) for manifest in manifests]
    assert resumed == [(True, 2)] * len(STAGES)


#: shards of two images
SHARDED = (
    "import runpy, sys\n"
    "from wsss_affinity.pipeline import storage\n"
    "storage.SHARD_RECORDS = 2\n"
    "del sys.argv[0]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def run_sharded(tiny, folder, stage, count, *options):
    folder.mkdir(exist_ok=True)
    log = folder / "renames.log"
    options = [*tiny, f"output_dir={folder}", "artifacts.format=shards", *options]
    command = [sys.executable, "-c", SHARDED, str(DRIVER), str(log), stage, str(count), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder), log


def test_a_kill_loses_the_shard_in_hand_and_nothing_else(tiny, stored, tmp_path):
    only = "pipeline.stages=[train_cam,make_cam]"
    # at the index of the second shard, before its tar has its name
    killed, log = run_sharded(tiny, tmp_path / "out", "make_cam", 3, only)
    assert killed.returncode == -9, killed.stderr
    (first,) = (tmp_path / "out").rglob("*.tar")
    before = first.name, first.stat().st_ino, first.read_bytes()
    finished, _ = run_sharded(tiny, tmp_path / "out", "none", 0, only)
    assert finished.returncode == 0, finished.stderr
    shards = sorted((tmp_path / "out").rglob("*.tar"))
    assert [path.name for path in shards] == [f"0-00000{i}.tar" for i in range(3)]
    assert (shards[0].name, shards[0].stat().st_ino, shards[0].read_bytes()) == before
    names = [name for name in log.read_text().split() if name.startswith("make_cam/shards")]
    parts = [f"make_cam/shards/0-00000{i}.{kind}" for i in range(3) for kind in ("npy", "tar")]
    assert names == [*parts[:3], *parts[2:]]
    found = stored(shards[0].parents[1])
    assert list(found) == [f"train_0000{i}.npz" for i in range(6)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_every_stage_in_shards_ends_as_undisturbed_in_files(tiny, stored, tmp_path):
    calm, _ = run(tiny, tmp_path / "calm")
    assert calm.returncode == 0, calm.stderr
    for stage, _ in STAGES:
        count = 1 if stage.startswith("train") else 3
        killed, _ = run_sharded(tiny, tmp_path / "killed", stage, count)
        assert killed.returncode == -9, (stage, killed.stderr)
    finished, _ = run_sharded(tiny, tmp_path / "killed", "none", 0)
    assert finished.returncode == 0, finished.stderr
    found, expected = (stored(tmp_path / name / "artifacts") for name in ("killed", "calm"))
    assert found == expected
    assert len([name for name in found if "/masks/" in name]) == 6
