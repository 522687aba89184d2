"""Several processes train as one does."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.data.images import save_mask
from wsss_affinity.interrupt import RESUMABLE
from wsss_affinity.pipeline.launch import _run
from wsss_affinity.pipeline.storage import FORMATS

DRIVER = Path(__file__).with_name("ddp_losses.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of the losses and weights of one process and of two."""
    folder = tmp_path_factory.mktemp("ddp")
    rng = np.random.default_rng(0)
    for index in range(16):
        mask = rng.integers(0, 4, (10, 10), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        # images differ in the number of labelled pixels; some have none
        mask[: 10 * (index % 5)] = 255
        image = 50 * (mask % 5)[..., None] + rng.integers(0, 40, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index:02d}.png")
        save_mask(folder / f"{index:02d}.mask.png", mask)
    spec = importlib.util.spec_from_file_location("ddp_losses", DRIVER)
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    driver.train(folder, 1)
    assert _run(2, [sys.executable, str(DRIVER), str(folder), "2"]) == 0
    return folder


TASKS = ("cam", "affinity", "segmentation")
#: in double precision nothing but the order of a sum differs
PRECISIONS = (("32-true", 1e-5), ("64-true", 1e-12))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_losses_of_two_processes_are_those_of_one(trained, name, precision, tolerance):
    one, two = (json.loads((trained / f"losses{n}.json").read_text()) for n in (1, 2))
    for key, length in ((f"{name} {precision}", 20), (f"{name} {precision} epochs", 5)):
        assert len(one[key]) == len(two[key]) == length
        for alone, shared in zip(one[key], two[key], strict=True):
            assert shared == pytest.approx(alone, abs=tolerance, rel=0)
    assert ("neg" in one[f"{name} {precision}"][0]) == (name == "affinity")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_weights_of_two_processes_are_those_of_one(trained, name, precision, tolerance):
    one, two = (
        torch.load(trained / f"{name} {precision} {n}.pt", weights_only=True) for n in (1, 2)
    )
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=10 * tolerance)


#: each process gets two images: one is too few for BatchNorm
TWO = ("train_cam.batch_size=4", "train_affinity.batch_size=4", "train_segmentation.batch_size=4")
MAPS = ("make_cam", "affinity_labels", "random_walk")


def command(tiny, folder, *overrides):
    return [sys.executable, "-m", "wsss_affinity", *tiny, *TWO, f"output_dir={folder}", *overrides]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_pipeline_of_two_processes_makes_what_one_makes_of_its_weights(
    tiny, stored, tmp_path, format
):
    options = "trainer.devices=2", f"artifacts.format={format}"
    shared = subprocess.run(
        command(tiny, tmp_path / "two", *options), capture_output=True, text=True
    )
    assert shared.returncode == 0, shared.stderr
    metrics = json.loads((tmp_path / "two" / "shapes" / "metrics.json").read_text())
    assert [stage["made"] for stage in metrics["stages"].values()] == [True] * 7
    assert shared.stdout.count("metrics   ") == 1  # one process reports

    for stage in ("train_cam", "train_affinity"):
        source = tmp_path / "two" / "artifacts" / stage
        shutil.copytree(source, tmp_path / "one" / "artifacts" / stage)
    alone = subprocess.run(
        command(tiny, tmp_path / "one", "pipeline.only=[make_cam,affinity_labels,random_walk]"),
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    assert len(list(tmp_path.rglob("two/**/masks/shards/*.tar"))) == 2 * (format == "shards")
    for stage in MAPS:
        found, expected = (stored(tmp_path / n / "artifacts" / stage) for n in ("two", "one"))
        assert found == expected
        assert len(found) == 6 * (2 if stage == "random_walk" else 1)


@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_go_on(tiny, tmp_path):
    options = ("trainer.devices=2", "pipeline.only=[train_cam]", "train_cam.max_epochs=40")
    calm = subprocess.run(
        command(tiny, tmp_path / "calm", *options), capture_output=True, text=True
    )
    assert calm.returncode == 0, calm.stderr

    again = command(tiny, tmp_path / "stopped", *options)
    with subprocess.Popen(again, stdout=-1, stderr=-1, text=True) as process:
        while not list(tmp_path.glob("stopped/artifacts/train_cam/*.partial/resume.ckpt")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == RESUMABLE, said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("stopped/artifacts/train_cam/*/*.pt"))
    finished = subprocess.run(again, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    calm, stopped = (tmp_path.glob(f"{n}/artifacts/train_cam/*/*.pt") for n in ("calm", "stopped"))
    assert [p.read_bytes() for p in stopped] == [next(calm).read_bytes()]
