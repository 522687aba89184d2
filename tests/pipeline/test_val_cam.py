from dataclasses import replace

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.source import load_source
from wsss_affinity.pipeline.val_cam import check_val_cam

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


def test_a_data_set_without_labels_for_val_is_refused(tiny_config):
    cfg = tiny_config("evaluate.val_cam=true")
    source = load_source(cfg)
    first, *others = source.val
    check_val_cam(cfg, replace(source, val=(replace(first, labels=()), *others)))
    bare = replace(source, val=tuple(replace(s, labels=()) for s in source.val))
    with pytest.raises(WSSSError, match=r"none for them; set evaluate.val_cam=false"):
        check_val_cam(cfg, bare)
    check_val_cam(tiny_config(), bare)
