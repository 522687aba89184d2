import hashlib
import shutil
import tarfile

import pytest
from torchvision.datasets import SBDataset, voc

from wsss_affinity.data import voc12_source
from wsss_affinity.errors import WSSSError

TRAIN_AUG = ["2007_000001", "2007_000002", "2008_000005", "2008_000006"]


def ids(samples):
    return [s.id for s in samples]


def check(source, devkit, masks):
    assert ids(source.train) == TRAIN_AUG
    assert ids(source.score) == TRAIN_AUG[:2]
    assert ids(source.val) == ["2007_000003", "2008_000004"]
    assert source.problems == ()
    assert source.split_names == {"train": "train_aug", "score": "train", "val": "val"}
    assert source.background
    assert not source.labels_from_masks
    # difficult objects count
    assert {s.labels for s in source.train} == {(source.classes.index("bottle"),)} == {(4,)}
    assert source.train[2].mask.name == "2008_000005.png"
    assert source.train[2].mask.is_relative_to(masks)
    assert source.train[2].mask.parent.name == "SegmentationClassAug"
    assert source.train[2].image == devkit / "JPEGImages" / "2008_000005.jpg"
    assert source.read_mask(source.train[2])[0].tolist() == [0, 5, 5, 5]
    assert source.read_mask(source.val[0])[0].tolist() == [0, 9, 9, 255]


def test_devkit_and_sbd(tmp_path, make_devkit, make_sbd):
    devkit = make_devkit(tmp_path / "VOCdevkit" / "VOC2012")
    make_sbd(tmp_path / "elsewhere" / "benchmark_RELEASE" / "dataset")
    before = sorted(p for p in tmp_path.rglob("*"))
    prepared = tmp_path / "out"
    for root in (tmp_path, devkit):
        source = voc12_source(root, sbd_root=tmp_path / "elsewhere", prepared=prepared)
        check(source, devkit, prepared)
    # nothing is written into the devkit
    assert sorted(p for p in tmp_path.rglob("*") if not p.is_relative_to(prepared)) == before


def test_relative_folders(tmp_path, make_devkit, make_sbd, monkeypatch):
    devkit = make_devkit(tmp_path / "VOCdevkit" / "VOC2012")
    make_sbd(tmp_path / "sbd")
    monkeypatch.chdir(tmp_path)
    source = voc12_source(".", prepared="out")
    assert ids(source.train) == TRAIN_AUG
    assert source.read_mask(source.train[2])[0].tolist() == [0, 5, 5, 5]
    assert source.train[0].image.resolve() == devkit / "JPEGImages" / "2007_000001.jpg"


def test_complete_devkit_needs_no_sbd(tmp_path, make_devkit, make_sbd):
    devkit = make_devkit(tmp_path / "VOC2012")
    made = tmp_path / "made"
    voc12_source(devkit, sbd_root=make_sbd(tmp_path / "sbd"), prepared=made)
    (made,) = made.iterdir()
    (made / "train_aug.txt").rename(devkit / "ImageSets" / "Segmentation" / "train_aug.txt")
    (made / "SegmentationClassAug").rename(devkit / "SegmentationClassAug")
    source = voc12_source(devkit, prepared=tmp_path / "unused")
    check(source, devkit, devkit / "SegmentationClassAug")
    assert not (tmp_path / "unused").exists()


def test_train_without_sbd(tmp_path, make_devkit):
    devkit = make_devkit(tmp_path)
    source = voc12_source(devkit, train_split="train", prepared=tmp_path / "unused")
    assert ids(source.train) == ["2007_000001", "2007_000002"]
    assert source.train[0].mask == devkit / "SegmentationClass" / "2007_000001.png"
    assert not (tmp_path / "unused").exists()


def test_test_split(tmp_path, make_devkit):
    devkit = make_devkit(tmp_path)
    (devkit / "ImageSets" / "Segmentation" / "test.txt").write_text("2008_000006\n2012_1\n")
    options = {"train_split": "train", "test_split": "test", "prepared": tmp_path / "unused"}
    with pytest.raises(WSSSError) as caught:
        voc12_source(devkit, **options)
    assert str(caught.value) == (
        f"1 photographs of split 'test' are missing ({devkit / 'JPEGImages' / '2012_1.jpg'}, …); "
        "unpack the archive of the test images there, or set data.test_split=null"
    )
    shutil.copy(
        devkit / "JPEGImages" / "2008_000006.jpg", devkit / "JPEGImages" / "2012_1.jpg"
    )  # which has no annotation
    source = voc12_source(devkit, **options)
    assert [(s.id, s.labels, s.mask) for s in source.test] == [
        ("2008_000006", (), None),
        ("2012_1", (), None),
    ]
    assert source.split_names["test"] == "test"


def test_missing_parts(tmp_path, make_devkit):
    with pytest.raises(WSSSError) as caught:
        voc12_source(tmp_path, prepared=tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path} holds no VOC 2012 (JPEGImages, or VOCdevkit/VOC2012); set data.root to the "
        "unpacked VOCtrainval_11-May-2012.tar, or data.download=true"
    )
    make_devkit(tmp_path)
    with pytest.raises(WSSSError, match=r"sbd holds no SBD .*; set data\.sbd_root to its folder"):
        voc12_source(tmp_path, prepared=tmp_path / "out")


def pack(archive, folder, mode):
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, folder.name)
    return hashlib.md5(archive.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path, make_devkit, make_sbd, monkeypatch, http_server):
    """The two archives, where torchvision takes them for the published ones."""
    folder, address = http_server
    devkit = make_devkit(tmp_path / "made" / "VOCdevkit" / "VOC2012")
    md5 = pack(folder / "voc.tar", devkit.parent, "w")
    known = voc.DATASET_YEAR_DICT["2012"] | {"url": f"{address}/voc.tar", "md5": md5}
    monkeypatch.setitem(voc.DATASET_YEAR_DICT, "2012", known)
    dataset = make_sbd(tmp_path / "made" / "benchmark_RELEASE" / "dataset")
    md5 = pack(folder / "benchmark.tgz", dataset.parent, "w:gz")
    monkeypatch.setattr(SBDataset, "url", f"{address}/benchmark.tgz")
    monkeypatch.setattr(SBDataset, "md5", md5)
    return folder


def test_download(tmp_path, server):
    root, prepared = tmp_path / "data", tmp_path / "out"
    source = voc12_source(root, download=True, prepared=prepared)
    check(source, root / "VOCdevkit" / "VOC2012", prepared)
    assert sorted(p.name for p in root.iterdir()) == ["VOCdevkit", "sbd"]
    assert not (root / "sbd" / "benchmark.tgz").exists()
    for archive in server.iterdir():
        archive.unlink()
    # what is there is not fetched again
    again = voc12_source(root, download=True, prepared=prepared)
    assert again == source


def test_download_that_fails_goes_on(tmp_path, server):
    root, prepared = tmp_path / "data", tmp_path / "out"
    archive = server / "benchmark.tgz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    with pytest.raises(WSSSError) as caught:
        voc12_source(root, download=True, prepared=prepared)
    assert str(caught.value) == (
        "cannot download SBD's benchmark.tgz (File not found or corrupted.); run the same command "
        f"again, or fetch it yourself and unpack it as {root / 'sbd'}"
    )
    assert not (root / "sbd").exists()
    archive.write_bytes(whole)
    assert ids(voc12_source(root, download=True, prepared=prepared).train) == TRAIN_AUG
