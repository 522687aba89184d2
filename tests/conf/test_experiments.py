"""Every shipped configuration composes, and every experiment runs on tiny data."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.backbones import list_backbones
from wsss_affinity.config import config_dir, load_config
from wsss_affinity.data.shapes import draw
from wsss_affinity.data.voc import VOC_CLASSES
from wsss_affinity.pipeline import run_pipeline

EXPERIMENTS = sorted(p.stem for p in (config_dir() / "experiment").glob("*.yaml"))
ANIMALS = ["cat", "dog", "person", "sheep"]
SHRINK = (
    "data.num_workers=0",
    "backbone=tiny",
    "train_cam.output_stride=8",
    "train_cam.batch_size=2",
    "train_cam.max_epochs=1",
    "train_cam.transform.crop_size=32",
    "train_affinity.batch_size=2",
    "train_affinity.max_epochs=1",
    "train_affinity.transform.crop_size=32",
    "train_segmentation.architecture=Unet",
    "train_segmentation.encoder=resnet18",
    "train_segmentation.weights=null",
    "train_segmentation.batch_size=2",
    "train_segmentation.max_epochs=1",
    "train_segmentation.transform.crop_size=32",
    "evaluate.sheet_images=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
)


@pytest.mark.parametrize("group", ["backbone", "data", "task", "stage", "trainer", "pipeline"])
def test_every_file_composes(group):
    for path in (config_dir() / group).glob("*.yaml"):
        key = {"task": f"task@train_{path.stem}", "stage": None}.get(group, group)
        if key is not None:
            assert load_config([f"{key}={path.stem}"]) is not None


def test_every_named_backbone_has_a_config():
    files = {p.stem for p in (config_dir() / "backbone").glob("*.yaml")} - {"timm"}
    assert files == {n for n in list_backbones() if not n.startswith("doctest")}


@pytest.fixture
def voc_tree(tmp_path):
    """A devkit with a CSV of labels: four training images and two unseen ones."""
    root = tmp_path / "voc"
    names = [f"2008_{i:06d}" for i in range(6)]
    rows = []
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        image, mask, labels = draw(np.random.default_rng(i), 48)
        values = np.array([0, *(VOC_CLASSES.index(n) + 1 for n in ANIMALS)], dtype=np.uint8)
        voc = np.where(mask == 255, 255, values[np.where(mask == 255, 0, mask)]).astype(np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(voc).save(root / "SegmentationClassAug" / f"{name}.png")
        rows.append([name, " ".join({ANIMALS[label] for label in labels} | {"chair"})])
    for split, part in (("train_aug", names[:4]), ("train", names[:2]), ("val", names[4:])):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(part))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "labels"], *rows])
    return root


@pytest.fixture
def photo_folder(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    lines = ["image,labels"]
    for i in range(4):
        image, _, labels = draw(np.random.default_rng(i), 48)
        Image.fromarray(image).save(root / f"IMG_{i}.png")
        lines.append(f"IMG_{i}.png,{' '.join({ANIMALS[label] for label in labels})}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs(experiment, tmp_path, voc_tree, photo_folder):
    data = [f"data.root={voc_tree}"]
    if experiment == "folder":
        data = [f"data.root={photo_folder}"]
    elif experiment == "shapes":
        data = ["data.num_train=4", "data.num_val=2", "data.image_size=48"]
    output = f"output_dir={tmp_path}/out"
    cfg = load_config([f"experiment={experiment}", output, *data, *SHRINK])
    result = run_pipeline(cfg)
    assert list(result.stages) == list(cfg.pipeline.stages)
    scored = {score["name"]: score["images"] for score in result.scores}
    if experiment == "folder":
        assert scored == {}
        assert len(list((result.stages["random_walk"].path / "masks").iterdir())) == 4
    elif experiment == "voc12_animals":
        assert scored["pseudo-masks"] == 2
        assert scored["segmentation"] == 2
    elif experiment == "voc12_animals_supervised":
        assert scored == {"segmentation": 2}


def test_conf_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (config_dir() / "config.yaml").is_file()
    assert load_config(["experiment=folder"]).name == "folder"
    assert list(Path(tmp_path).iterdir()) == []
