"""The pictures of docs/method.md can be drawn from a run, and are those that the page shows."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
NAMES = {f"method_{name}.png" for name in ("steps", "cam", "labels", "affinity", "walk", "masks")}
TINY = (
    "data.num_train=6",
    "data.num_val=2",
    "data.image_size=48",
    "data.num_workers=0",
    "train_cam.max_epochs=1",
    "train_cam.batch_size=2",
    "train_cam.transform.crop_size=32",
    "cam.scales=[1.0]",
    "train_affinity.max_epochs=1",
    "train_affinity.batch_size=2",
    "train_affinity.transform.crop_size=32",
    "train_segmentation.architecture=Unet",
    "train_segmentation.encoder=resnet18",
    "train_segmentation.max_epochs=1",
    "train_segmentation.batch_size=2",
    "train_segmentation.transform.crop_size=32",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(
        spec
    )  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_pictures_are_drawn_from_a_run_the_same_twice(script, tmp_path):
    drawn = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        script.main([f"output_dir={tmp_path}/out", *TINY, "--images", str(folder)])
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == NAMES
    for name in NAMES:
        with Image.open(tmp_path / "first" / name) as picture:
            assert 650 < picture.width < 750
            assert 100 < picture.height < 400
            assert np.asarray(picture.convert("L")).std() > 10  # something is on it


def test_pictures_of_the_page_are_there_and_small():
    shown = re.findall(r"\]\(images/(method_\w+\.png)\)", (DOCS / "method.md").read_text("utf-8"))
    assert set(shown) == NAMES
    sizes = [(DOCS / "images" / name).stat().st_size for name in NAMES]
    assert max(sizes) < 150_000
    assert sum(sizes) < 600_000


def test_discs_hold_the_affinities_of_both_directions(script):
    planes = torch.zeros(4, 2, 3)  # offsets (0, 1), (1, -1), (1, 0), (1, 1)
    planes[0, 0, 0], planes[1, 0, 1] = 0.5, 0.25
    discs = script.around(planes, radius=2).view(2, 3, 3, 3)
    assert discs[0, 0, 1, 2] == discs[0, 1, 1, 0] == 0.5
    assert discs[0, 1, 2, 0] == discs[1, 0, 0, 2] == 0.25
    assert (discs[:, :, 1, 1] == 1).all()
    assert discs[0, 0, 0].isnan().all()  # above the image
    assert not discs[0, 1, 1:].isnan().any()


def test_boundaries_lie_where_neighbours_differ(script):
    planes = torch.ones(4, 2, 3)
    planes[0, 0, 1], planes[2, 0, 0], planes[3] = 0.25, 0.5, 0  # the last is no next cell
    expected = torch.tensor([[0.5, 0.75, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(script.boundaries(planes, radius=2), expected)
