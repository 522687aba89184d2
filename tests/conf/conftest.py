"""Small data sets in the true layouts, and settings that make an experiment last seconds."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data.shapes import draw
from wsss_affinity.data.voc import VOC_CLASSES

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


@pytest.fixture(scope="session")
def shrink():
    return SHRINK


def picture(seed, size=48):
    """An image, its mask of values 0 to 4 and 255, and the classes 0 to 3 in it."""
    return draw(np.random.default_rng(seed), size)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def as_values(mask, values):
    """Replace 0, 1, … of a mask by ``values``, 255 stays."""
    table = np.full(256, 255, dtype=np.uint8)
    table[: len(values)] = values
    return table[mask]


@pytest.fixture
def voc_tree(tmp_path):
    """A devkit with train_aug, annotations and a CSV: four training images and two unseen ones."""
    root = tmp_path / "voc"
    names = [f"2008_{i:06d}" for i in range(6)]
    rows = []
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for i, name in enumerate(names):
        image, mask, labels = picture(i)
        voc = as_values(mask, [0, *(VOC_CLASSES.index(n) + 1 for n in ANIMALS)])
        save(image, root / "JPEGImages" / f"{name}.jpg")
        save(voc, root / "SegmentationClassAug" / f"{name}.png")
        present = {ANIMALS[label] for label in labels} | {"chair"}
        objects = "".join(f"<object><name>{n}</name></object>" for n in sorted(present))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        rows.append([name, " ".join(sorted(present))])
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
        image, _, labels = picture(i)
        save(image, root / f"IMG_{i}.png")
        lines.append(f"IMG_{i}.png,{' '.join({ANIMALS[label] for label in labels})}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def camvid_tree(tmp_path):
    root = tmp_path / "camvid"
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        lines = []
        for i in seeds:
            image, mask, _ = picture(i)
            save(image, root / split / f"{i:04d}.png")
            # the last image of each split is void everywhere, so that it has no label
            values = [11] * 5 if i in (3, 5) else [0, 1, 3, 8, 5]
            save(as_values(mask, values), root / f"{split}annot" / f"{i:04d}.png")
            place = "/SegNet/CamVid"
            lines.append(f"{place}/{split}/{i:04d}.png {place}/{split}annot/{i:04d}.png")
        (root / f"{split}.txt").write_text("\n".join(lines))
    return root


@pytest.fixture
def cityscapes_tree(tmp_path):
    root = tmp_path / "cityscapes"
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        for i in seeds:
            image, mask, _ = picture(i)
            name = f"ulm_{i:06d}_000019"
            save(image, root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png")
            ids = as_values(mask, [7, 11, 23, 26, 33])
            save(ids, root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png")
    return root


@pytest.fixture
def coco_tree(tmp_path):
    """The last image of each split has no object."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 2 * i + 1, "name": name} for i, name in enumerate(ANIMALS)]
    for split, seeds in (("train2014", range(4)), ("val2014", range(4, 6))):
        images, annotations = [], []
        for i in seeds:
            image, _, labels = picture(i)
            name = f"COCO_{split}_{i:012d}.jpg"
            save(image, root / split / name)
            height, width = image.shape[:2]
            images.append({"id": i, "file_name": name, "height": height, "width": width})
            for label in labels if i not in (3, 5) else ():
                annotations.append(
                    {
                        "id": 10 * i + label + 1,
                        "image_id": i,
                        "category_id": 2 * label + 1,
                        "iscrowd": 0,
                        "segmentation": [[8, 8, 30, 8, 30, 30, 8, 30]],
                        "area": 484.0 + label,
                        "bbox": [8, 8, 22, 22],
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
