import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.images import save_mask
from wsss_affinity.data.source import Sample, Source, plain_mask_values


@pytest.fixture
def check():
    return SampleChecker(Source(("cat",), (), mask_values=plain_mask_values(1)))


@pytest.fixture
def sample(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    save_mask(tmp_path / "a.png", np.ones((4, 6), dtype=np.uint8))
    return Sample("a", tmp_path / "a.jpg", (0,), tmp_path / "a.png")


def test_good_sample(check, sample):
    assert check(sample) is None
    assert check(Sample("a", sample.image, (0,))) is None


def test_mask_of_another_size(check, sample):
    save_mask(sample.mask, np.ones((6, 4), dtype=np.uint8))
    problem = check(sample)
    assert problem.id == "a"
    assert problem.message == (
        f"mask {sample.mask} is 4×6 but its image {sample.image} is 6×4; expected one size, "
        "replace one of them"
    )


def test_mask_belongs_to_the_upright_image(check, sample):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(sample.image, exif=exif)
    assert check(sample) is None


def test_missing_image(check, sample):
    sample.image.unlink()
    assert "a.jpg does not exist" in check(sample).message


def test_corrupt_image(check, sample):
    sample.image.write_bytes(sample.image.read_bytes()[:200])
    assert "a.jpg cannot be read" in check(sample).message


def test_unknown_mask_value(check, sample):
    save_mask(sample.mask, np.full((4, 6), 2, dtype=np.uint8))
    assert "a.png holds the values [2]" in check(sample).message
