import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data.images import save_mask, voc_palette
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.submission import file_values, write_submission


@pytest.fixture
def source(tmp_path):
    """Value 15 stands for cat and 8 for dog; 255 and 100 are void."""
    values = [-1] * 256
    values[0], values[15], values[8], values[255], values[100] = 0, 1, 2, 255, 255
    samples = [Sample(name, tmp_path / f"{name}.jpg", ()) for name in ("2012_3", "2008_1")]
    return Source(("cat", "dog"), (), mask_values=tuple(values), test=tuple(samples))


@pytest.fixture
def masks(source, tmp_path):
    for index, sample in enumerate(source.test):
        mask = np.full((3 + index, 4), index, dtype=np.uint8)
        mask[0] = [0, 1, 2, 2]
        save_mask(tmp_path / "masks" / f"{sample.id}.png", mask)
    return Records(tmp_path / "masks", ".png")


def test_archive_as_the_server_wants_it(source, masks, tmp_path):
    path = tmp_path / "out" / "submission.tar.gz"
    write_submission(path, source, source.test, masks, "comp6_test_cls")
    with tarfile.open(path, "r:gz") as archive:
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert archive.getnames() == [f"{folder}/2008_1.png", f"{folder}/2012_3.png"]
        assert all(m.isfile() and m.mtime == 0 and m.mode == 0o644 for m in archive)
        files = [archive.extractfile(name).read() for name in archive.getnames()]
    first, second = (Image.open(io.BytesIO(content)) for content in files)
    assert first.mode == "P"
    assert first.getpalette() == voc_palette().ravel().tolist()
    assert np.asarray(first).tolist() == [[0, 15, 8, 8]] + [[15] * 4] * 3
    assert np.asarray(second).tolist() == [[0, 15, 8, 8]] + [[0] * 4] * 2
    assert [p.name for p in path.parent.iterdir()] == ["submission.tar.gz"]


def test_same_masks_same_bytes(source, masks, tmp_path, monkeypatch):
    one, two = tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"
    write_submission(one, source, source.test, masks, "comp5_test_cls")
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_submission(two, source, tuple(reversed(source.test)), masks, "comp5_test_cls")
    assert one.read_bytes() == two.read_bytes()


def test_classes_left_out_are_refused(source):
    values = list(source.mask_values)
    values[8] = 0  # dog has become background
    restricted = replace(source, classes=("cat",), mask_values=tuple(values))
    with pytest.raises(
        WSSSError, match=r"2 values of the data set's masks mean 'background'.*submission_name=null"
    ):
        file_values(restricted)


def test_class_without_a_value_is_refused(source):
    with pytest.raises(WSSSError, match="0 values of the data set's masks mean 'cow'"):
        file_values(replace(source, classes=("cat", "dog", "cow")))


def test_without_background_its_label_needs_no_value(source):
    values = [1, 2, 3, *([-1] * 252), 255]  # classes from 0 on, as Cityscapes' train ids
    plain = replace(source, classes=("a", "b", "c"), mask_values=tuple(values), background=False)
    assert file_values(plain).tolist() == [0, 0, 1, 2]


def test_missing_mask_is_told(source, masks, tmp_path):
    masks.file("2008_1").unlink()
    with pytest.raises(WSSSError, match=r"2008_1\.png cannot be read \(No such file"):
        write_submission(tmp_path / "x.tar.gz", source, source.test, masks, "comp6_test_cls")
    assert not (tmp_path / "x.tar.gz").exists()
