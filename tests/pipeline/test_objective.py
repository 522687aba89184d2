from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsss_affinity.data.images import save_mask
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import RunResult, run_pipeline
from wsss_affinity.pipeline.objective import check_objective, evidence, objective
from wsss_affinity.pipeline.runner import StageResult
from wsss_affinity.pipeline.storage import Records

SHARED = ["train_cam", "make_cam", "affinity_labels", "train_affinity", "random_walk"]


class Colours(nn.Module):
    """Knows two classes: something red and something green."""

    def __init__(self):
        super().__init__()
        self.backbone = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.scale = nn.Parameter(torch.tensor(100.0))

    def forward(self, images):
        return self.scale * (images[:, :2].amax((2, 3)) - 0.5)


@pytest.fixture
def scene(tmp_path):
    """Grey 20×40 images with a red object on a tenth of the pixels, and the way to score masks."""
    pixels = np.full((20, 40, 3), 128, dtype=np.uint8)
    pixels[2:10, 5:15] = (255, 0, 0)
    samples = []
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), tmp_path / f"{i}.png", (0,) if i else ()))
    trained = tmp_path / "trained"
    trained.mkdir()
    torch.save(Colours().state_dict(), trained / "weights.pt")
    context = SimpleNamespace(
        cam_net=Colours, device=torch.device("cpu"), max_side=None, num_workers=0
    )

    def worth(*boxes, samples=samples):
        masks = tmp_path / "masks"
        mask = np.zeros((20, 40), dtype=np.uint8)
        for rows, columns in boxes:
            mask[rows, columns] = 1
        for sample in samples:
            save_mask(masks / f"{sample.id}.png", mask)
        return evidence(context, samples, Records(masks, ".png"), trained)

    return worth


def test_evidence_of_known_masks(scene):
    everything = slice(None)
    # alone it is seen, without it not; it takes a tenth of the image
    assert scene((slice(2, 10), slice(5, 15))) == pytest.approx(0.9, abs=1e-3)
    # twice as large as the object
    assert scene((slice(2, 10), slice(5, 25))) == pytest.approx(0.8, abs=1e-3)
    # half of it: the other half is still seen
    assert scene((slice(2, 6), slice(5, 15))) == pytest.approx(-0.05, abs=1e-3)
    assert scene() == pytest.approx(-1.0, abs=1e-3)
    assert scene((everything, everything)) == pytest.approx(0.0, abs=1e-3)


def test_evidence_without_labels_is_undefined(scene):
    assert np.isnan(scene(samples=[]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=pseudo_mask.miou", "did you mean 'pseudo_masks.miou'"),
        ("objective=segmentation.miou", "needs train_segmentation, which is not among"),
    ],
)
def test_impossible_objectives_are_refused_at_the_start(tiny_config, override, message):
    cfg = tiny_config(f"pipeline.stages=[{','.join(SHARED)}]", override)
    with pytest.raises(WSSSError, match=message):
        check_objective(cfg)


def test_known_objectives_pass(tiny_config):
    for name in ("null", "pseudo_masks.miou", "pseudo_masks.evidence", "segmentation.miou"):
        check_objective(tiny_config(f"objective={name}"))


def test_same_with_and_without_evaluate(tiny_config):
    short = tiny_config(f"pipeline.stages=[{','.join(SHARED)}]")
    whole = tiny_config(f"pipeline.stages=[{','.join(SHARED)},evaluate]")
    first = objective(short, run_pipeline(short))
    result = run_pipeline(whole)
    scores = {score["name"]: score["miou"] for score in result.scores}
    assert first.name == "pseudo_masks.miou"
    assert first.value == scores["pseudo-masks"] > 0
    assert objective(whole, result) == first
    cam = tiny_config("objective=cam.miou")
    assert objective(cam, result).value == scores["CAM"]

    # and where there are no masks
    blind = RunResult(
        {name: result.stages[name] for name in SHARED},
        source=Source(result.source.classes, result.source.train),
    )
    found = objective(short, blind)
    assert found.name == "pseudo_masks.evidence"
    assert -1 <= found.value <= 1
    named = tiny_config("objective=pseudo_masks.miou")
    with pytest.raises(
        WSSSError, match=r"objective pseudo_masks\.miou cannot be told, .* no masks"
    ):
        objective(named, blind)


def test_nothing_to_tell(tiny_config):
    assert objective(tiny_config(), RunResult({})) is None


@pytest.mark.parametrize("override", ["objective=pseudo_masks.evidence", "objective=null"])
def test_evidence_needs_the_classifier(tiny_config, tmp_path, override):
    source = Source(("cat",), (Sample("a", tmp_path / "a.png", (0,)),))
    walk = StageResult("random_walk", tmp_path, False, {"metrics": {}})
    with pytest.raises(WSSSError, match=r"needs the artefact of train_cam, which is gone; add"):
        objective(tiny_config(override), RunResult({"random_walk": walk}, source=source))
