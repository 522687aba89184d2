import os
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_affinity.data import sbd
from wsss_affinity.data.images import load_mask, voc_palette
from wsss_affinity.data.sbd import find_sbd, prepare_train_aug, read_sbd_mask
from wsss_affinity.errors import WSSSError

# (train ∪ SBD train ∪ SBD val) − val
TRAIN_AUG = ["2007_000001", "2007_000002", "2008_000005", "2008_000006"]


@pytest.fixture
def places(tmp_path, make_devkit, make_sbd):
    return make_devkit(tmp_path / "voc"), make_sbd(tmp_path / "sbd"), tmp_path / "prepared"


def masks(prepared):
    folder = prepared / "SegmentationClassAug"
    return {p.stem: load_mask(p)[0].tolist() for p in sorted(folder.glob("[!.]*"))}


OWN, EXTRA = [0, 9, 9, 255], [0, 5, 5, 5]
EXPECTED = {
    "2007_000001": OWN,  # in both: VOC's own wins
    "2007_000002": OWN,
    "2007_000003": OWN,  # val, for scoring
    "2008_000004": OWN,
    "2008_000005": EXTRA,
    "2008_000006": EXTRA,
}


def test_masks_and_list(places):
    prepare_train_aug(*places)
    prepared = places[2]
    assert (prepared / "train_aug.txt").read_text().split() == TRAIN_AUG
    assert masks(prepared) == EXPECTED
    with Image.open(prepared / "SegmentationClassAug" / "2008_000005.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:18] == voc_palette()[:6].ravel().tolist()
    own = prepared / "SegmentationClassAug" / "2007_000001.png"
    assert own.read_bytes() == (places[0] / "SegmentationClass" / own.name).read_bytes()


def test_second_run_writes_nothing(places, monkeypatch):
    prepare_train_aug(*places)
    files = [p for p in places[2].rglob("*") if p.is_file()]
    before = [p.stat().st_mtime_ns for p in files]
    assert len(files) == 7

    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(sbd, "save_mask", forbidden)
    monkeypatch.setattr(sbd, "write_bytes", forbidden)
    prepare_train_aug(*places)
    assert [p.stat().st_mtime_ns for p in files] == before


def test_interrupted_conversion_goes_on(places, monkeypatch):
    prepared = places[2]
    converted = []
    save = sbd.save_mask

    def dies_at_the_second(path, mask):
        if converted:
            raise WSSSError("the disk is full")
        converted.append(path.stem)
        save(path, mask)

    with monkeypatch.context() as patch:
        patch.setattr(sbd, "save_mask", dies_at_the_second)
        with pytest.raises(WSSSError, match="the disk is full"):
            prepare_train_aug(*places)
    assert not (prepared / "train_aug.txt").exists()  # written last
    assert len(converted) == 1
    assert masks(prepared)[converted[0]] == EXTRA  # whole

    again = []
    monkeypatch.setattr(sbd, "save_mask", lambda p, m: (again.append(p.stem), save(p, m)))
    prepare_train_aug(*places)
    assert sorted(converted + again) == ["2008_000005", "2008_000006"]
    assert masks(prepared) == EXPECTED


def test_replaced_mask_is_converted_again(places):
    prepare_train_aug(*places)
    path = places[1] / "cls" / "2008_000005.mat"
    savemat(path, {"GTcls": {"Segmentation": np.full((2, 4), 7, np.uint8)}})
    made = places[2] / "SegmentationClassAug" / "2008_000005.png"
    os.utime(path, ns=(0, made.stat().st_mtime_ns + 1))
    prepare_train_aug(*places)
    assert masks(places[2]) == EXPECTED | {"2008_000005": [7, 7, 7, 7]}


def test_missing_parts(places):
    devkit, dataset, prepared = places
    missing = dataset / "cls" / "2008_000006.mat"
    missing.unlink()
    with pytest.raises(WSSSError) as caught:
        prepare_train_aug(*places)
    assert str(caught.value) == f"SBD's mask {missing} does not exist; unpack the archive again"
    missing = devkit / "ImageSets" / "Segmentation" / "val.txt"
    missing.unlink()
    with pytest.raises(WSSSError, match=r"list .*val\.txt cannot be read \(.*\); unpack"):
        prepare_train_aug(devkit, dataset, prepared)


def test_find_sbd(tmp_path, make_sbd):
    inner = make_sbd(tmp_path / "benchmark_RELEASE" / "dataset")
    assert (
        find_sbd(tmp_path) == find_sbd(tmp_path / "benchmark_RELEASE") == find_sbd(inner) == inner
    )
    (inner / "val.txt").unlink()
    with pytest.raises(WSSSError) as caught:
        find_sbd(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no SBD (cls/*.mat, train.txt, val.txt), which the split train_aug is "
        "made from; set data.sbd_root to its folder benchmark_RELEASE/dataset, or "
        "data.download=true"
    )


def test_bad_mat(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"no matlab file" * 20)
    with pytest.raises(WSSSError, match=r"a\.mat cannot be read \(.*\); unpack the archive again"):
        read_sbd_mask(path)
    savemat(path, {"GTinst": {"Segmentation": np.zeros((2, 2), np.uint8)}})
    with pytest.raises(WSSSError, match=r"a\.mat cannot be read \('GTcls'\)"):
        read_sbd_mask(path)
    savemat(path, {"GTcls": {"Segmentation": np.zeros((2, 2))}})
    with pytest.raises(WSSSError, match=r"has shape \(2, 2\) and type float64; expected \(H, W\)"):
        read_sbd_mask(path)


def test_without_scipy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(WSSSError, match=r"needs SciPy; pip install 'wsss-affinity\[voc\]'$"):
        read_sbd_mask(tmp_path / "a.mat")
