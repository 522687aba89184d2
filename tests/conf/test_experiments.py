"""Every shipped configuration composes, and every experiment runs on tiny data."""

from pathlib import Path

import pytest

from wsss_affinity.backbones import list_backbones
from wsss_affinity.config import config_dir, load_config
from wsss_affinity.pipeline import run_pipeline

EXPERIMENTS = sorted(p.stem for p in (config_dir() / "experiment").glob("*.yaml"))
#: tree that each one reads, and the names and numbers of images of its scores
SCORED = {"CAM": 2, "CAM, best": 2, "affinity labels": 2, "pseudo-masks": 2, "segmentation": 2}
BARE = {"CAM": 4, "affinity labels": 4, "pseudo-masks": 4, "segmentation": 2}
EXPECTED = {
    "shapes": (None, {**SCORED, "CAM": 4, "CAM, best": 4, "affinity labels": 4, "pseudo-masks": 4}),
    "folder": ("photo_folder", {}),
    "voc12_animals": ("voc_tree", SCORED),
    "voc12_animals_psa": ("voc_tree", SCORED),
    "voc12_animals_supervised": ("voc_tree", {"segmentation": 2}),
    "voc12_psa_vgg16": ("voc_tree", SCORED),
    "voc12_psa_resnet38d": ("voc_tree", SCORED),
    "coco14": (
        "coco_tree",
        {**SCORED, "CAM": 4, "CAM, best": 4, "affinity labels": 4, "pseudo-masks": 4},
    ),
    "camvid": ("camvid_tree", BARE),
    "cityscapes": ("cityscapes_tree", BARE),
}


@pytest.mark.parametrize(
    "group", ["backbone", "data", "task", "stage", "trainer", "pipeline", "preset", "sweep"]
)
def test_every_file_composes(group):
    paths = list((config_dir() / group).glob("*.yaml"))
    assert paths
    for path in paths:
        key = {"task": f"task@train_{path.stem}", "stage": None}.get(group, group)
        if key is not None:
            assert load_config([f"{key}={path.stem}"]) is not None


def test_every_named_backbone_has_a_config():
    anything = {"registered", "target", "timm"}
    files = {p.stem for p in (config_dir() / "backbone").glob("*.yaml")} - anything
    assert files == {n for n in list_backbones() if not n.startswith("doctest")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs(experiment, tmp_path, shrink, request):
    tree, expected = EXPECTED[experiment]
    data = ["data.num_train=4", "data.num_val=2", "data.image_size=48"]
    if tree is not None:
        data = [f"data.root={request.getfixturevalue(tree)}"]
    cfg = load_config([f"experiment={experiment}", f"output_dir={tmp_path}/out", *data, *shrink])
    result = run_pipeline(cfg)
    assert list(result.stages) == list(cfg.pipeline.stages)
    scored = {score["name"]: score["images"] for score in result.scores}
    scored.pop("pseudo-masks, best", None)  # where another α happens to do better
    assert scored == expected
    if "random_walk" in result.stages:
        assert len(list((result.stages["random_walk"].path / "masks").rglob("*.png"))) == 4
    from_masks = experiment in ("camvid", "cityscapes")
    for stage in result.stages.values():
        assert stage.manifest["data"]["labels_from_masks"] == from_masks
        assert stage.manifest["data"]["background"] == (not from_masks)


def test_conf_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (config_dir() / "config.yaml").is_file()
    assert load_config(["experiment=folder"]).name == "folder"
    assert list(Path(tmp_path).iterdir()) == []
