import struct

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data.images import load_image, load_mask, resize_mask, save_mask, voc_palette
from wsss_affinity.errors import WSSSError


def pixels(path, max_side=None):
    return np.asarray(load_image(path, max_side)).tolist()


def test_colour_image_is_as_stored(tmp_path):
    colours = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    Image.fromarray(colours).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert image.size == (4, 5)
    np.testing.assert_array_equal(np.asarray(image), colours)


def test_greyscale(tmp_path):
    Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[[0] * 3, [7] * 3, [255] * 3]]


def test_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert pixels(tmp_path / f"a.{suffix}") == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_transparency_is_laid_on_white(tmp_path):
    values = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    # a fifth of the colour, four fifths of white
    assert pixels(tmp_path / "a.png") == [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]


def test_grey_with_transparency(tmp_path):
    values = np.array([[[50, 255], [50, 0]]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[[50] * 3, [255] * 3]]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert pixels(tmp_path / "opaque.png") == [[[200, 10, 20], [30, 40, 50]]]
    assert pixels(tmp_path / "clear.png") == [[[255, 255, 255], [30, 40, 50]]]


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (2, 1))
    image.putpixel((0, 0), (0, 255, 255, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif") == [[[255, 0, 0], [0, 0, 0]]]


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    found = np.asarray(load_image(tmp_path / "a.jpg")).astype(int)
    assert np.abs(found - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, [[0, 1, 2], [3, 4, 5]]),
        (2, [[2, 1, 0], [5, 4, 3]]),
        (3, [[5, 4, 3], [2, 1, 0]]),
        (6, [[3, 0], [4, 1], [5, 2]]),
        (8, [[2, 5], [1, 4], [0, 3]]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_of_the_camera_is_applied(tmp_path, orientation, turned, dtype):
    step = 10 if dtype == np.uint8 else 2570
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray((np.arange(6).reshape(2, 3) * step).astype(dtype))
    image.save(tmp_path / "a.png", exif=exif)
    found = np.asarray(load_image(tmp_path / "a.png"))
    assert found[..., 0].tolist() == (np.array(turned) * 10).tolist()


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((3, 5), 1536, (3, 5)),
        ((3, 5), None, (3, 5)),
        ((4000, 3000), 1536, (1536, 1152)),
        ((3000, 4000), 512, (384, 512)),
        ((4000, 3000), None, (4000, 3000)),
        ((64, 64), 64, (64, 64)),
        ((900, 2), 100, (100, 1)),
    ],
)
def test_max_side(tmp_path, size, max_side, expected):
    Image.new("RGB", size, (9, 80, 200)).save(tmp_path / "a.png", compress_level=1)
    image = load_image(tmp_path / "a.png", max_side)
    assert image.size == expected
    assert image.getcolors(1) == [(expected[0] * expected[1], (9, 80, 200))]


def test_missing_image(tmp_path):
    path = tmp_path / "none.jpg"
    with pytest.raises(WSSSError) as caught:
        load_image(path)
    assert str(caught.value) == f"image {path} does not exist; restore it or take it off the list"


def test_truncated_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WSSSError, match=r"a\.jpg cannot be read \(.*truncated.*\); replace it or"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_corrupt_image(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(WSSSError, match=r"image .*a\.png cannot be read .*; replace it or take"):
        load_image(path)


LABELS = np.array([[0, 1, 2], [15, 8, 255]], dtype=np.uint8)


def test_mask_opens_in_colour_and_comes_back(tmp_path):
    path = tmp_path / "sub" / "mask.png"
    save_mask(path, LABELS)
    with Image.open(path) as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB")).tolist()
    assert colours == [
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
        [[192, 128, 128], [64, 0, 0], [224, 224, 192]],
    ]
    found = load_mask(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LABELS)


def test_palette():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    known = {3: (128, 128, 0), 7: (128, 128, 128), 12: (64, 0, 128), 20: (0, 64, 128)}
    for label, colour in known.items():
        assert tuple(palette[label]) == colour
    assert len({tuple(c) for c in palette.tolist()}) == 256


def test_mask_of_a_view_is_saved(tmp_path):
    save_mask(tmp_path / "a.png", LABELS[:, ::-1])
    np.testing.assert_array_equal(load_mask(tmp_path / "a.png"), LABELS[:, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_greyscale_mask(tmp_path, dtype):
    path = tmp_path / ("a.png" if dtype != np.int32 else "a.tif")
    Image.fromarray(LABELS.astype(dtype)).save(path)
    found = load_mask(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LABELS)


def test_one_bit_mask(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert load_mask(tmp_path / "a.png").tolist() == [[1, 0]]


def test_mask_values_do_not_wrap_around(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 257]], dtype=np.uint16)).save(path)
    with pytest.raises(WSSSError, match=r"a\.png holds the value 257; expected .* 0 to 255"):
        load_mask(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_mask_is_refused(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(WSSSError, match=rf"mode {mode}; expected a palette or greyscale PNG"):
        load_mask(path)


def test_missing_and_damaged_mask(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(WSSSError, match=r"mask .*a\.png does not exist; restore it"):
        load_mask(path)
    save_mask(path, np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(WSSSError, match=r"mask .*a\.png cannot be read .*; replace it"):
        load_mask(path)


def test_resize_mask_keeps_labels():
    mask = np.array([[0, 255], [3, 7]], dtype=np.uint8)
    assert resize_mask(mask, (4, 6)).tolist() == [
        [0, 0, 0, 255, 255, 255],
        [0, 0, 0, 255, 255, 255],
        [3, 3, 3, 7, 7, 7],
        [3, 3, 3, 7, 7, 7],
    ]
    assert resize_mask(mask, (2, 2)) is mask


def test_huge_claims_of_a_small_file_are_an_error(tmp_path):
    # a header that promises 60000 × 60000 pixels
    path = tmp_path / "a.bmp"
    path.write_bytes(
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    with pytest.raises(WSSSError, match=r"a\.bmp cannot be read"):
        load_image(path)
