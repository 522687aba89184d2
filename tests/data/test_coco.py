import hashlib
import json
import os
import shutil
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import coco, coco_source
from wsss_affinity.data.images import load_mask
from wsss_affinity.errors import WSSSError

CATEGORIES = [  # not in the order of their ids, which have gaps
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 3, "name": "traffic light", "supercategory": "outdoor"},
]


def box(number, image, category, left, top, right, bottom):
    """An object whose polygon is a rectangle."""
    corners = [left, top, right, top, right, bottom, left, bottom]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": [corners],
        "area": (right - left) * (bottom - top),
        "bbox": [left, top, right - left, bottom - top],
    }


def crowd(number, image, category, mask):
    """A region of several objects: run lengths down the columns, zeros first."""
    flat = np.asarray(mask).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 1,
        "segmentation": {"size": list(np.shape(mask)), "counts": counts},
        "area": int(flat.sum()),
    }


CROWD = [[0, 0, 0, 0, 0, 1]] * 4  # the last column
#: image 7 is 6×4: a person over a larger traffic light, a crowd of toothbrushes below both
ANNOTATIONS = [
    box(11, 7, 1, 1, 1, 3, 3),
    box(12, 7, 3, 0, 0, 6, 3),
    crowd(13, 7, 90, CROWD),
    box(14, 9, 3, 0, 0, 2, 2),
]
MASK_7 = [[2, 2, 2, 2, 2, 2], [2, 1, 1, 2, 2, 2], [2, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 3]]


def image_name(split, number):
    return f"COCO_{split}_{number:012d}.jpg"


def write(root, split, numbers, annotations):
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number in numbers:
        name = image_name(split, number)
        Image.new("RGB", (6, 4)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": 6, "height": 4})
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "coco"
    write(root, "train2014", [9, 7, 8], ANNOTATIONS)
    write(root, "val2014", [3], [box(15, 3, 90, 0, 0, 1, 1)])
    return root


def test_labels_and_masks(root, tmp_path, capfd):
    prepared = tmp_path / "out"
    source = coco_source(root, prepared=prepared)
    assert source.classes == ("person", "traffic light", "toothbrush")
    names = [f"COCO_train2014_{n:012d}" for n in (7, 8, 9)]
    assert [s.id for s in source.train] == names
    # the image without objects has no label, the crowd counts
    assert [s.labels for s in source.train] == [(0, 1, 2), (), (1,)]
    assert [s.id for s in source.val] == ["COCO_val2014_000000000003"]
    assert source.score == source.train
    assert source.train[0].image == root / "train2014" / f"{names[0]}.jpg"
    assert source.train[0].mask.name == f"{names[0]}.png"
    assert source.train[0].mask.is_relative_to(prepared)
    assert source.read_mask(source.train[0]).tolist() == MASK_7
    assert source.read_mask(source.train[1]).tolist() == [[0] * 6] * 4
    assert source.read_mask(source.train[2]).tolist() == [[2, 2, 0, 0, 0, 0]] * 2 + [[0] * 6] * 2
    assert source.read_mask(source.val[0]).tolist() == [[3, 0, 0, 0, 0, 0]] + [[0] * 6] * 3
    assert source.mask_values[:5] == (0, 1, 2, 3, -1)
    assert source.split_names == {"train": "train2014", "score": "train2014", "val": "val2014"}
    assert source.background
    assert capfd.readouterr().out == ""  # pycocotools talks


def test_without_val(root, tmp_path):
    shutil.rmtree(root / "val2014")
    source = coco_source(root, prepared=tmp_path / "out", val_split=None)
    assert source.val == ()
    assert source.split_names == {"train": "train2014", "score": "train2014"}


def test_wrong_mask_value(root, tmp_path):
    source = coco_source(root, prepared=tmp_path / "out")
    Image.fromarray(np.full((4, 6), 4, np.uint8)).save(source.train[0].mask)
    with pytest.raises(WSSSError, match=r"holds the values \[4\]; expected 0 .*, 1 to 3 \(classes"):
        source.read_mask(source.train[0])


@pytest.fixture
def loads(monkeypatch):
    """The annotation files that are read."""
    read = []
    load = coco._load

    def spy(path):
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(coco, "_load", spy)
    return read


def test_second_run_reads_no_annotations(root, tmp_path, loads):
    first = coco_source(root, prepared=tmp_path / "out")
    assert loads == ["instances_train2014.json", "instances_val2014.json"]
    loads.clear()
    before = [s.mask.stat().st_mtime_ns for s in first.train]
    assert coco_source(root, prepared=tmp_path / "out") == first
    assert loads == []
    assert [s.mask.stat().st_mtime_ns for s in first.train] == before


@pytest.mark.parametrize("damage", ["{", "[]", '{"classes": []}'])
def test_damaged_listing_is_made_anew(root, tmp_path, loads, damage):
    first = coco_source(root, prepared=tmp_path / "out")
    loads.clear()
    (first.train[0].mask.parents[1] / "train2014.json").write_text(damage)
    assert coco_source(root, prepared=tmp_path / "out") == first
    assert loads == ["instances_train2014.json"]


def test_lost_mask_is_rendered_again(root, tmp_path, loads):
    first = coco_source(root, prepared=tmp_path / "out")
    loads.clear()
    first.train[0].mask.unlink()
    coco_source(root, prepared=tmp_path / "out")
    assert loads == ["instances_train2014.json"]
    assert load_mask(first.train[0].mask).tolist() == MASK_7


@pytest.mark.parametrize("years", [-10, 10])
def test_other_annotations_are_rendered_anew(root, tmp_path, years):
    first = coco_source(root, prepared=tmp_path / "out")
    write(root, "train2014", [7, 8, 9], [box(11, 7, 90, 0, 0, 6, 4)])
    path = root / "annotations" / "instances_train2014.json"
    then = path.stat().st_mtime_ns + years * 31_536_000 * 10**9  # archives keep old times
    os.utime(path, ns=(then, then))
    source = coco_source(root, prepared=tmp_path / "out")
    assert source.train[0].labels == (2,)
    assert load_mask(source.train[0].mask).tolist() == [[3] * 6] * 4
    assert load_mask(first.train[0].mask).tolist() == MASK_7


def test_two_images_of_one_stem_are_refused(root, tmp_path):
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = f"a/{content['images'][0]['file_name']}"
    path.write_text(json.dumps(content))
    with pytest.raises(WSSSError, match=r"train2014\.json .*stem\): id 'COCO_train.*listed twice"):
        coco_source(root, prepared=tmp_path / "out")


def test_image_without_a_size_is_named(root, tmp_path):
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    del content["images"][0]["height"]
    path.write_text(json.dumps(content))
    with pytest.raises(WSSSError, match=r"image \d+ lacks one of file_name, height, id, width"):
        coco_source(root, prepared=tmp_path / "out")


def test_interrupted_rendering_goes_on(root, tmp_path, monkeypatch):
    save = coco.save_mask
    made = []

    def dies_at_the_second(path, mask):
        if made:
            raise WSSSError("the disk is full")
        made.append(path.name)
        save(path, mask)

    with monkeypatch.context() as patch:
        patch.setattr(coco, "save_mask", dies_at_the_second)
        with pytest.raises(WSSSError, match=r"instances_train2014\.json, image .*: the disk is"):
            coco_source(root, prepared=tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == made
    again = []
    monkeypatch.setattr(coco, "save_mask", lambda p, m: (again.append(p.name), save(p, m)))
    source = coco_source(root, prepared=tmp_path / "out")
    assert len(again) == 3  # two of train2014, one of val2014
    assert not set(again) & set(made)
    assert source.read_mask(source.train[0]).tolist() == MASK_7


def test_missing_parts(root, tmp_path, monkeypatch):
    prepared = tmp_path / "out"
    path = root / "annotations" / "instances_val2014.json"
    path.unlink()
    with pytest.raises(WSSSError) as caught:
        coco_source(root, prepared=prepared)
    assert str(caught.value) == (
        f"annotations {path} do not exist; unpack them there, or check data.train_split and "
        "data.val_split"
    )
    shutil.rmtree(root / "val2014")
    with pytest.raises(WSSSError) as caught:
        coco_source(root, prepared=prepared)
    assert str(caught.value) == (
        f"folder {root / 'val2014'} does not exist; unpack val2014.zip in {root}, or set "
        "data.download=true"
    )
    with pytest.raises(WSSSError, match=r"train2017 cannot be downloaded; did you mean 'train2014"):
        coco_source(root, prepared=prepared, train_split="train2017", download=True)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(WSSSError, match=r"pycocotools; pip install 'wsss-affinity\[coco\]'$"):
        coco_source(root, prepared=tmp_path / "new", val_split=None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read (JSONDecodeError("),
        ('{"info": {}}', "hold no images or no categories; expected COCO's instances_<split>.json"),
    ],
)
def test_bad_annotations(root, tmp_path, content, said):
    path = root / "annotations" / "instances_train2014.json"
    path.write_text(content)
    with pytest.raises(WSSSError) as caught:
        coco_source(root, prepared=tmp_path / "out")
    assert f"annotations {path} {said}" in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"segmentation": []}, {"segmentation": [[1, 1]]}, {"category_id": 2}]
)
def test_object_that_cannot_be_drawn(root, tmp_path, change):
    write(root, "train2014", [7], [box(11, 7, 1, 0, 0, 2, 2) | change])
    with pytest.raises(WSSSError) as caught:
        coco_source(root, prepared=tmp_path / "out")
    assert f"image {image_name('train2014', 7)}: annotation 11 cannot be drawn (" in str(
        caught.value
    )
    assert str(caught.value).endswith("); mend or remove it")


def test_splits_with_other_categories(root, tmp_path):
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "comb"
    path.write_text(json.dumps(content))
    with pytest.raises(WSSSError, match="the categories of val2014 are not those of train2014"):
        coco_source(root, prepared=tmp_path / "out")


def test_download(root, tmp_path, monkeypatch, http_server):
    server, address = http_server
    archives = {}
    for name in ("train2014", "val2014", "annotations"):
        with zipfile.ZipFile(server / f"{name}.zip", "w") as file:
            for path in (root / name).iterdir():
                file.write(path, f"{name}/{path.name}")
        md5 = hashlib.md5((server / f"{name}.zip").read_bytes()).hexdigest()
        archives[name] = (f"{address}/{name}.zip", md5)
    monkeypatch.setattr(coco, "_ARCHIVES", archives)
    fetched = tmp_path / "fetched"
    source = coco_source(fetched, prepared=tmp_path / "out", download=True)
    assert sorted(p.name for p in fetched.iterdir()) == ["annotations", "train2014", "val2014"]
    assert source.read_mask(source.train[0]).tolist() == MASK_7
    for path in server.iterdir():
        path.unlink()
    assert coco_source(fetched, prepared=tmp_path / "out", download=True) == source


def test_published_archives():
    assert {name: url for name, (url, _) in coco._ARCHIVES.items()} == {
        "train2014": "http://images.cocodataset.org/zips/train2014.zip",
        "val2014": "http://images.cocodataset.org/zips/val2014.zip",
        "annotations": "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    }
    assert all(len(md5) == 32 for _, md5 in coco._ARCHIVES.values())
