import numpy as np
import pytest
import torch

from wsss_affinity.data.images import load_mask
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import encode_arrays, write_bytes
from wsss_affinity.models import AttentionNet
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.plan import fingerprints, stage_graph
from wsss_affinity.pipeline.scores import read_scores
from wsss_affinity.pipeline.source import ListKeys, load_source
from wsss_affinity.pipeline.storage import Records

ATTENTION = (
    "data.num_workers=0",
    "walk.affinity=attention",
    "walk.attention.name=vit_tiny_patch16_224",
    "walk.attention.radius=2",
    "walk.beta=1",
)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "vit.pth"
    torch.save(AttentionNet("vit_tiny_patch16_224", weights=None).network.state_dict(), path)
    return f"walk.attention.weights={path}"


def test_attention_needs_no_training(tiny_config, weights, tmp_path):
    options = (*ATTENTION, weights, "walk.num_steps=2", f"cams_from={tmp_path}/maps")
    cfg = tiny_config(*options, "pipeline.stages=[make_cam,random_walk,evaluate]")
    source = load_source(cfg)
    for item in source.train:
        mask = load_mask(item.mask)
        maps = {str(k): (mask == k + 1).astype(np.float32) for k in item.labels}
        write_bytes(tmp_path / "maps" / f"{item.id}.npz", encode_arrays(maps))
    result = run_pipeline(cfg)
    assert list(result.stages) == ["make_cam", "random_walk", "evaluate"]
    # masks from the stored scores are those that were written: both know the side of a patch
    score = next(s for s in result.scores if s["name"] == "pseudo-masks")
    union, hits = np.zeros(5), np.zeros(5)
    for item in source.train:
        found, truth = result.mask(item.id), load_mask(item.mask)
        assert found.shape == truth.shape
        for label in range(5):
            p, t = (found == label) & (truth != 255), truth == label
            hits[label] += (p & t).sum()
            union[label] += (p | t).sum()
        walked = Records(result.stages["random_walk"].path / "scores", ".npz")
        scores, size = read_scores(walked, item.id)[1:]
        assert tuple(scores.shape[1:]) == tuple(-(-side // 16) for side in size)
    assert score["miou"] == pytest.approx((hits / union)[union > 0].mean(), abs=1e-4)


def test_names_with_attention(tiny_config, weights, tmp_path):
    cfg = tiny_config(*ATTENTION, weights)
    source = load_source(cfg)
    lists = ListKeys.of(source)

    def names():
        return fingerprints(cfg, source, lists, stage_graph(cfg))

    own = names()
    assert [*own] == ["train_cam", "make_cam", "random_walk", "train_segmentation", "evaluate"]
    (tmp_path / "vit.pth").rename(tmp_path / "moved.pth")
    cfg.walk.attention.weights = f"{tmp_path}/moved.pth"
    assert names() == own
    cfg.train_affinity.radius = 4
    assert names() == own
    cfg.walk.attention.radius = 4
    other = names()
    assert {n for n in own if own[n] != other[n]} == {*own} - {"train_cam", "make_cam"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("walk.affinity=attn", r"walk.affinity is 'attn'; did you mean 'attention'"),
        ("walk.attention.name=resnet18", "resnet18 has no attention between all patches"),
        ("walk.attention.radius=1", "walk.attention: radius must be a whole number of at least 2"),
        ("pipeline.only=[train_affinity]", r"pipeline.only: train_affinity is not run with this"),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(tiny_config, override, message):
    with pytest.raises(WSSSError, match=message):
        run_pipeline(tiny_config(*ATTENTION, override, "pipeline.dry_run=true"))
