"""A run that is killed in every stage ends with the artefacts of an undisturbed one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

DRIVER = Path(__file__).with_name("die_after.py")
STAGES = (
    ("train_cam", 1),
    ("make_cam", 3),
    ("affinity_labels", 3),
    ("train_affinity", 1),
    ("random_walk", 8),  # six files of scores, then masks
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


def artefacts(folder):
    """Content of every file of every artefact by name; manifests without what holds times."""
    content = {}
    root = folder / "artifacts"
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            name = path.relative_to(root).as_posix()
            content[name] = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(content[name])
                del manifest["wall_time_s"], manifest["resumed"]
                content[name] = json.dumps(manifest)
    return content


def test_killed_in_every_stage_ends_as_undisturbed(tiny, tmp_path):
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
    assert len([n for n in expected if n.startswith("make_cam/")]) == 7  # six maps, one manifest

    # nothing finished was done again: each file was renamed into place as often as without kills
    assert Counter(log.read_text().split()) == Counter(calm_log.read_text().split())

    resumed = [
        json.loads(path.read_text())["resumed"]
        for stage, _ in STAGES
        for path in (folder / "artifacts" / stage).rglob("manifest.json")
    ]
    assert resumed == [True] * len(STAGES)
