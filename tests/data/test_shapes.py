import errno
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import shapes, shapes_source
from wsss_affinity.data.images import load_image, load_mask
from wsss_affinity.data.shapes import SHAPES_CLASSES, draw
from wsss_affinity.errors import WSSSError


def small(root, **options):
    return shapes_source(root, **{"num_train": 6, "num_val": 2, "image_size": 48, **options})


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    return root, small(root)


def test_layout(made):
    root, source = made
    assert [p.name for p in root.iterdir()] == ["shapes-v1-seed0-6+2-48px"]
    assert source.classes == SHAPES_CLASSES == ("cross", "ring", "checker", "bars")
    assert [s.id for s in source.train] == [f"train_{i:05d}" for i in range(6)]
    assert source.score == source.train
    assert [s.id for s in source.val] == ["val_00000", "val_00001"]
    assert len(contents(root)) == 3 * 8 + 2


def test_same_seed_same_bytes(made, tmp_path):
    root, _ = made
    small(tmp_path)
    assert contents(tmp_path) == contents(root)


def test_another_seed_other_pictures(made, tmp_path):
    small(tmp_path, seed=1)
    first = {Path(n).name: data for n, data in contents(made[0]).items() if n.endswith("jpg")}
    other = {Path(n).name: data for n, data in contents(tmp_path).items() if n.endswith("jpg")}
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_masks_hold_what_annotations_say(made):
    _, source = made
    for sample in (*source.train, *source.val):
        mask = source.read_mask(sample)
        image = load_image(sample.image)
        assert mask.shape == (image.height, image.width)
        assert 36 <= min(mask.shape) <= max(mask.shape) <= 48
        shown = {int(v) - 1 for v in np.unique(mask)} - {-1, 254}
        assert shown == set(sample.labels)
        assert shown
        path = sample.image.parents[1] / "Annotations" / f"{sample.id}.xml"
        names = [n.text for n in ElementTree.parse(path).iter("name")]
        assert {SHAPES_CLASSES.index(n) for n in names} == shown


@pytest.mark.parametrize("size", [32, 64, 128])
def test_every_picture_has_an_object(size):
    for seed in range(60):
        image, mask, labels = draw(np.random.default_rng(seed), size)
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert 1 <= len(labels) <= 3
        assert {int(v) for v in np.unique(mask)} - {0, 255} == {label + 1 for label in labels}


def test_badge_is_smaller_than_its_object():
    rng = np.random.default_rng(0)
    for extent in (8.0, 20.0, 38.0):
        for label in range(4):
            picture = np.full((128, 128, 3), -1.0)
            shapes._badge(rng, picture, label, (64, 64), extent)
            painted = np.argwhere(picture[..., 0] >= 0)
            side = painted.max(0) - painted.min(0) + 1
            assert side[0] == side[1] == 2 * max(3, round(0.3 * extent)) + 1
            assert side[0] ** 2 < np.pi * extent**2 / 2
            # both tones, or there would be nothing to see
            assert set(np.unique(picture[..., 0])) == {-1.0, 15.0, 240.0}


def test_objects_have_a_void_rim():
    _, mask, labels = draw(np.random.default_rng(0), 128)
    inside = mask == labels[0] + 1
    padded = np.pad(mask, 1, constant_values=255)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbour = padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
        assert not (inside & (neighbour == 0)).any()


def test_what_is_there_is_not_made_again(made, monkeypatch):
    root, source = made
    monkeypatch.setattr(shapes, "_generate", None)
    again = small(root)
    assert again.train == source.train


def test_restricted_classes(made):
    root, full = made
    source = small(root, classes=["bars", "cross"])
    assert source.classes == ("bars", "cross")
    for sample, whole in zip(source.train, full.train, strict=True):
        expected = sorted({3: 0, 0: 1}[label] for label in whole.labels if label in (0, 3))
        assert list(sample.labels) == expected
        raw = load_mask(sample.mask)
        table = {0: 0, 1: 2, 2: 0, 3: 0, 4: 1, 255: 255}
        np.testing.assert_array_equal(
            source.read_mask(sample), np.vectorize(table.get)(raw).astype(np.uint8)
        )


def test_unknown_class(made):
    with pytest.raises(WSSSError, match=r"data\.classes: 'rings' is no class; did you mean 'ring'"):
        small(made[0], classes=["rings"])


def test_another_process_was_faster(made, tmp_path, monkeypatch):
    real = shapes._generate

    def generate(root, *rest):
        real(root, *rest)
        real(tmp_path / "shapes-v1-seed0-6+2-48px", *rest)

    monkeypatch.setattr(shapes, "_generate", generate)
    assert len(small(tmp_path).train) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["shapes-v1-seed0-6+2-48px"]


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    real, calls = Path.write_bytes, []

    def write(self, data):
        calls.append(self)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(WSSSError, match=r"cannot write .*: the disk is full; free some space"):
        small(tmp_path)
    assert len(calls) == 6
    assert list(tmp_path.iterdir()) == []


def test_empty_split(tmp_path):
    with pytest.raises(WSSSError, match=r"train\.txt is empty; expected an image id"):
        small(tmp_path, num_train=0)


def test_photographs_open_as_colour(made):
    with Image.open(made[1].train[0].image) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
