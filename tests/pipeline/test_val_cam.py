from dataclasses import replace

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.source import load_source
from wsss_affinity.pipeline.val_cam import score_val_cam

STAGES = ("pipeline.stages=[train_cam,evaluate]", "data.num_val=3", "train_cam.max_epochs=1")


@pytest.mark.parametrize(("drop_last", "images"), [(False, 3), (True, 2)])
def test_cams_of_val_are_scored_with_their_labels_given(tiny_config, drop_last, images):
    cfg = tiny_config(*STAGES, "evaluate.val_cam=true", f"evaluate.val_drop_last={drop_last}")
    result = run_pipeline(cfg)
    (score,) = result.scores
    assert (score["name"], score["split"], score["images"]) == ("CAM, val", "val", images)
    assert score["labels_given"]
    assert not score["saw_masks"]
    assert score["threshold"] == cfg.evaluate.cam_threshold
    assert len(list((result.stages["evaluate"].path / "val_cams").iterdir())) == images


def test_off_by_default(tiny_config):
    assert run_pipeline(tiny_config(*STAGES)).scores == []


def test_images_without_labels_are_refused(tiny_config, tmp_path):
    cfg = tiny_config()
    source = load_source(cfg)
    bare = replace(source, val=(replace(source.val[0], labels=()),))
    with pytest.raises(WSSSError, match=rf"but {source.val[0].id} has none; set evaluate.val_cam"):
        score_val_cam(Context(cfg, bare), tmp_path)
