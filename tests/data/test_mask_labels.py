import json
import os

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import labels_from_masks, mask_labels
from wsss_affinity.data.source import Sample, class_mask_values

VALUES = class_mask_values([0, 1, 4], void=[2])  # value 4 is the third class
MASKS = {"a": [[0, 4, 4]], "b": [[2, 255, 1]], "c/d": [[2, 2, 2]]}


@pytest.fixture
def samples(tmp_path):
    found = []
    for name, rows in MASKS.items():
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(rows, dtype=np.uint8)).save(path)
        found.append(Sample(name, tmp_path / f"{name}.jpg", (), path))
    return found


@pytest.fixture
def reads(monkeypatch):
    """The masks that are opened, by file name."""
    opened = []
    read = mask_labels.load_mask

    def spy(path):
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(mask_labels, "load_mask", spy)
    return opened


def labels(samples, cache):
    labelled, problems = labels_from_masks(samples, VALUES, cache)
    assert problems == ()
    return [(s.id, s.labels) for s in labelled]


EXPECTED = [("a", (0, 2)), ("b", (1,)), ("c/d", ())]


def test_classes_that_cover_a_pixel(samples, tmp_path):
    labelled, problems = labels_from_masks(samples, VALUES, tmp_path / "out" / "labels.json")
    assert [(s.id, s.labels) for s in labelled] == EXPECTED
    assert [s.mask for s in labelled] == [s.mask for s in samples]
    assert [s.image for s in labelled] == [s.image for s in samples]
    assert problems == ()


def test_second_run_opens_no_mask(samples, tmp_path, reads):
    cache = tmp_path / "labels.json"
    assert labels(samples, cache) == EXPECTED
    assert sorted(reads) == ["a.png", "b.png", "d.png"]
    reads.clear()
    before = cache.stat().st_mtime_ns
    assert labels(samples, cache) == EXPECTED
    assert reads == []
    assert cache.stat().st_mtime_ns == before
    # labels follow the meaning of the values, though these are from the cache
    labelled, _ = labels_from_masks(samples, class_mask_values([4, 2, 0, 1]), cache)
    assert [s.labels for s in labelled] == [(0, 2), (1, 3), (1,)]
    assert reads == []


def test_changed_mask_is_read_again(samples, tmp_path, reads):
    cache = tmp_path / "labels.json"
    labels(samples, cache)
    reads.clear()
    stat = samples[0].mask.stat()
    Image.fromarray(np.array([[1, 4, 4]], dtype=np.uint8)).save(samples[0].mask)
    os.utime(samples[0].mask, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert labels(samples, cache)[0] == ("a", (1, 2))
    assert reads == ["a.png"]


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"a": 3}',
        '{"a": ["stamp", [256]]}',
        '{"a": ["", [0]]}',
        b"\xff\xfe\x00",
        '{"a": ["stamp", [true]]}',
    ],
)
def test_damaged_cache_is_made_anew(samples, tmp_path, reads, damage):
    cache = tmp_path / "labels.json"
    labels(samples, cache)
    good = cache.read_bytes()
    cache.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    reads.clear()
    assert labels(samples, cache) == EXPECTED
    assert len(reads) == 3
    assert json.loads(cache.read_bytes()) == json.loads(good)


def test_bad_masks_are_problems(samples, tmp_path):
    samples[0].mask.unlink()
    samples[1].mask.write_bytes(b"no png")
    Image.fromarray(np.array([[0, 3, 7]], dtype=np.uint8)).save(samples[2].mask)
    bare = Sample("e", tmp_path / "e.jpg", ())
    cache = tmp_path / "labels.json"
    for _ in range(2):  # and of the cached values too
        labelled, problems = labels_from_masks([*samples, bare], VALUES, cache)
        assert labelled == ()
        assert [p.id for p in problems] == ["a", "b", "c/d", "e"]
        messages = [p.message for p in problems]
        assert messages[0] == (
            f"mask {samples[0].mask} does not exist; restore it or take it off the list"
        )
        assert messages[1].startswith(f"mask {samples[1].mask} cannot be read")
        assert messages[2] == (
            f"mask {samples[2].mask} holds the values [3, 7]; expected class indices (0 to 1, 4) "
            "or void (2, 255); mend the mask"
        )
        assert messages[3] == "image e has no mask to read its labels from; add one"


def test_interrupted_pass_is_not_lost(samples, tmp_path, monkeypatch, reads):
    cache = tmp_path / "labels.json"

    def interrupted(name, items, work):
        yield items[0], work(items[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mask_labels, "for_each", interrupted)
        with pytest.raises(KeyboardInterrupt):
            labels_from_masks(samples, VALUES, cache)
    assert reads == ["a.png"]
    reads.clear()
    assert labels(samples, cache) == EXPECTED
    assert sorted(reads) == ["b.png", "d.png"]
