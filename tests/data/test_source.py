import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data.images import save_mask
from wsss_affinity.data.source import (
    Sample,
    Source,
    check_unique,
    check_values,
    class_mask_values,
    class_names,
    label_indices,
    plain_mask_values,
)
from wsss_affinity.errors import WSSSError


def test_plain_mask_values():
    values = plain_mask_values(3)
    assert len(values) == 256
    assert values[:5] == (0, 1, 2, 3, -1)
    assert set(values[4:255]) == {-1}
    assert values[255] == 255


def test_read_mask(tmp_path):
    mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    save_mask(tmp_path / "a.png", mask)
    source = Source(("cat", "dog"), (), mask_values=plain_mask_values(2))
    found = source.read_mask(Sample("a", tmp_path / "a.jpg", (), tmp_path / "a.png"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)


def test_unknown_mask_values_are_named(tmp_path):
    save_mask(tmp_path / "a.png", np.array([[0, 3, 9, 3, 255]], dtype=np.uint8))
    source = Source(("cat", "dog"), (), mask_values=plain_mask_values(2))
    with pytest.raises(WSSSError) as caught:
        source.read_mask(Sample("a", tmp_path / "a.jpg", (), tmp_path / "a.png"))
    assert "a.png holds the values [3, 9]; expected 0 (background), 1 to 2" in str(caught.value)


def test_class_mask_values():
    values = class_mask_values([7, 2], void=[0, 3])
    assert values[:9] == (255, -1, 2, 255, -1, -1, -1, 1, -1)
    assert len(values) == 256
    assert values[255] == 255


def test_values_without_background(tmp_path):
    path = tmp_path / "a.png"
    save_mask(path, np.array([[0, 1, 2, 255]], dtype=np.uint8))
    sample = Sample("a", tmp_path / "a.jpg", (), path)
    source = Source(("sky", "road"), (), mask_values=class_mask_values([0, 1]), background=False)
    with pytest.raises(WSSSError) as caught:
        source.read_mask(sample)
    assert str(caught.value) == (
        f"mask {path} holds the values [2]; expected class indices (0 to 1) or void (255); "
        "mend the mask"
    )
    save_mask(path, np.array([[0, 1, 1, 255]], dtype=np.uint8))
    assert source.read_mask(sample).tolist() == [[1, 2, 2, 255]]


def test_check_values(tmp_path):
    values = class_mask_values([7, 8, 11, 33], void=[*range(7), 9])
    check_values([0, 7, 255], values, tmp_path, background=False)
    with pytest.raises(WSSSError) as caught:
        check_values([7, 10, 34], values, tmp_path, background=False)
    assert str(caught.value) == (
        f"mask {tmp_path} holds the values [10, 34]; expected class indices (7 to 8, 11, 33) or "
        "void (0 to 6, 9, 255); mend the mask"
    )


def test_sample_without_mask(tmp_path):
    with pytest.raises(WSSSError, match="image a has no mask"):
        Source(("cat",), ()).read_mask(Sample("a", tmp_path / "a.jpg", ()))


def test_label_indices():
    assert label_indices(["dog", "cat", "dog"], ["cat", "dog"], ["cat", "dog"], "here") == (0, 1)
    assert label_indices(["dog", "cow"], ["dog"], ["cat", "cow", "dog"], "here") == (0,)
    assert label_indices([], ["dog"], ["dog"], "here") == ()
    with pytest.raises(WSSSError, match=r"^line 3: label 'gog' is not a class; .*'dog'"):
        label_indices(["gog"], ["cat", "dog"], ["cat", "dog"], "line 3")


def test_check_unique():
    check_unique(["a", "b"], "list")
    with pytest.raises(WSSSError, match=r"^list: id 'b' is listed twice; remove one of the two$"):
        check_unique(["a", "b", "b"], "list")


def test_mask_of_another_kind_is_refused_as_ground_truth(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    source = Source(("cat",), (), mask_values=plain_mask_values(1))
    with pytest.raises(WSSSError, match="mode RGB"):
        source.read_mask(Sample("a", tmp_path / "a.jpg", (), tmp_path / "a.png"))


def test_class_names():
    assert class_names([1, "b"]) == ("1", "b")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat", r"expected a list, e.g. \[cat\]"),
        ([], "there are 0 classes"),
        (range(255), "there are 255 classes; a mask can hold 1 to 254"),
        (["a", "a"], "'a' is listed twice"),
    ],
)
def test_class_names_that_cannot_be(classes, message):
    with pytest.raises(WSSSError, match=message):
        class_names(classes)
