import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.data.transforms import TrainTransform, to_tensor
from wsss_affinity.errors import WSSSError

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.25)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "jitter": None}


def coded(height, width):
    """An image and a mask that both tell where a pixel came from."""
    y, x = np.mgrid[:height, :width]
    colours = np.stack([y, x, (y * 7 + x) % 251], axis=-1).astype(np.uint8)
    return Image.fromarray(colours), ((y * 7 + x) % 251).astype(np.uint8)


def bytes_of(pixels):
    return (pixels * 255).round().long()


def test_to_tensor():
    image = Image.fromarray(np.array([[[0, 51, 255], [255, 102, 0]]], dtype=np.uint8))
    expected = torch.tensor([[[-4.0, 6.0]], [[-1.5, -0.5]], [[1.6, -2.4]]])
    torch.testing.assert_close(to_tensor(image, MEAN, STD), expected)


@pytest.mark.parametrize("size", [(30, 50), (20, 20), (12, 33), (5, 3), (200, 31)])
@pytest.mark.parametrize("flip", [0.0, 1.0, 0.5])
def test_image_and_mask_move_together(size, flip):
    image, mask = coded(*size)
    transform = TrainTransform(20, flip=flip, **PLAIN)
    for seed in range(10):
        torch.manual_seed(seed)
        pixels, labels = transform(image, mask)
        assert pixels.shape == (3, 20, 20)
        assert labels.shape == (20, 20)
        assert labels.dtype == torch.int64
        known = labels != 255
        assert int(known.sum()) == min(20, size[0]) * min(20, size[1])
        assert torch.equal(bytes_of(pixels)[2][known], labels[known])
        # a window of neighbours, mirrored or not
        rows, columns = (bytes_of(pixels)[i][known].view(min(20, size[0]), -1) for i in (0, 1))
        steps = columns.diff(dim=1)
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert (rows[:, 0].diff() == 1).all()
        assert steps.unique().tolist() in ([1], [-1])
        if flip != 0.5:
            assert (steps == (-1 if flip else 1)).all()


def test_flip_probability():
    image, _ = coded(4, 4)
    transform = TrainTransform(4, flip=0.25, **PLAIN)
    first = [int(bytes_of(transform(image)[0])[1, 0, 0]) for _ in range(400)]
    assert set(first) == {0, 3}
    assert 0.17 < first.count(3) / 400 < 0.33


def test_rescaled_mask_stays_with_its_image():
    # halves of two colours: wherever it lands, mask and colour agree but at the edge
    colours = np.zeros((40, 60, 3), dtype=np.uint8)
    colours[:, 30:] = 255
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:, 30:] = 1
    transform = TrainTransform(48, long_side=(20, 90), **PLAIN)
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, labels = transform(Image.fromarray(colours), mask)
        bright = (pixels[0] > 0.5).long()
        wrong = (bright != labels) & (labels != 255)
        assert wrong.any(0).sum() <= 1


def test_mask_of_the_working_size_is_brought_to_the_image():
    image, _ = coded(10, 20)
    mask = np.repeat(np.array([[1, 2]], dtype=np.uint8), 2, axis=0)
    _, labels = TrainTransform(20, flip=0.0, **PLAIN)(image, mask)
    inside = labels[labels != 255].view(10, 20)
    assert (inside[:, :10] == 1).all()
    assert (inside[:, 10:] == 2).all()


@pytest.mark.parametrize(
    ("padding", "expected"), [("mean", (0.0, 0.0, 0.0)), ("black", (-4.0, -2.5, -2.4))]
)
def test_padding(padding, expected):
    image = Image.new("RGB", (3, 5), (255, 255, 255))
    mask = np.ones((5, 3), dtype=np.uint8)
    transform = TrainTransform(16, MEAN, STD, jitter=None, padding=padding)
    pixels, labels = transform(image, mask)
    outside = labels == 255
    assert int(outside.sum()) == 256 - 15
    torch.testing.assert_close(pixels[:, outside], torch.tensor(expected)[:, None].expand(3, 241))
    torch.testing.assert_close(
        pixels[:, ~outside], torch.tensor([6.0, 2.5, 1.6])[:, None].expand(3, 15)
    )


def test_smaller_image_lands_everywhere():
    image, mask = Image.new("RGB", (2, 1)), np.ones((1, 2), dtype=np.uint8)
    transform = TrainTransform(3, **PLAIN)
    places = set()
    for _ in range(100):
        _, labels = transform(image, mask)
        places.add(tuple((labels == 1).nonzero()[0].tolist()))
    assert places == {(y, x) for y in range(3) for x in range(2)}


def test_long_side_covers_its_range():
    image, mask = Image.new("RGB", (40, 20)), np.ones((20, 40), dtype=np.uint8)
    transform = TrainTransform(64, long_side=(30, 34), **PLAIN)
    sides = set()
    for _ in range(100):
        _, labels = transform(image, mask)
        inside = (labels == 1).nonzero()
        height, width = (inside.max(0).values - inside.min(0).values + 1).tolist()
        assert height == round(width / 2)
        sides.add(width)
    assert sides == {30, 31, 32, 33, 34}


@pytest.mark.parametrize("jitter", [None, (0.3, 0.3, 0.3, 0.1)])
def test_seed_fixes_it(jitter):
    image, mask = coded(40, 50)
    transform = TrainTransform(24, MEAN, STD, long_side=(20, 80), jitter=jitter)

    def draw(seed):
        torch.manual_seed(seed)
        return transform(image, mask)

    for first, again in zip(draw(3), draw(3), strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(draw(3)[0], draw(4)[0])


def test_jitter_changes_colours_and_not_the_mask():
    image, mask = coded(16, 16)
    same = {"mean": MEAN, "std": STD, "flip": 0.0}
    plain, labels = TrainTransform(16, jitter=None, **same)(image, mask)
    vivid, jittered = TrainTransform(16, jitter=(0.5, 0.5, 0.5, 0.1), **same)(image, mask)
    assert torch.equal(labels, jittered)
    assert not torch.equal(plain, vivid)


def test_without_a_mask():
    image, _ = coded(16, 16)
    pixels, labels = TrainTransform(8, MEAN, STD)(image)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == torch.float32
    assert labels is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"crop_size": 0}, "crop_size must be at least 1"),
        ({"padding": "grey"}, "padding must be 'mean' or 'black', got 'grey'"),
        ({"long_side": (512, 256)}, "long_side must be a range"),
    ],
)
def test_values_out_of_range(option, message):
    options = {"crop_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)} | option
    with pytest.raises(WSSSError, match=message):
        TrainTransform(**options)


@pytest.mark.parametrize("size", [(30, 50), (12, 33)])
def test_scores_move_with_the_image(size):
    image, mask = coded(*size)
    scores = np.stack([mask, 250 - mask]).astype(np.float32)
    transform = TrainTransform(20, **PLAIN)
    for seed in range(6):
        torch.manual_seed(seed)
        pixels, cropped = transform(image, scores)
        assert cropped.shape == (2, 20, 20)
        assert cropped.dtype == torch.float32
        inside = cropped.sum(0) > 0
        assert int(inside.sum()) == min(20, size[0]) * min(20, size[1])
        assert torch.equal(cropped[0][inside].long(), bytes_of(pixels)[2][inside])
        assert (cropped[:, ~inside] == 0).all()


def test_scores_are_resized_with_the_image():
    image = Image.new("RGB", (8, 4))
    scores = np.full((1, 4, 8), 0.25, dtype=np.float32)
    _, cropped = TrainTransform(16, long_side=(16, 16), **PLAIN)(image, scores)
    assert int((cropped[0] == 0.25).sum()) == 8 * 16
