import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.data.images import load_mask
from wsss_affinity.data.source import Sample
from wsss_affinity.layers import DenseCRF, add_background
from wsss_affinity.pipeline.maps import (
    FinishMask,
    LabelImage,
    affinity_labels_of,
    read_scores,
    resize_scores,
    save_scores,
)


def one_hot(labels, count):
    return torch.nn.functional.one_hot(torch.tensor(labels), count).permute(2, 0, 1).float()


def test_affinity_labels_where_background_wins():
    # columns: sure object, unsure, sure background, conflict (low says object, high background)
    low = one_hot([[1, 0, 0, 2]], 3)
    high = one_hot([[1, 2, 0, 0]], 3)
    labels = affinity_labels_of(low, high, torch.tensor([4, 7]))
    assert labels.tolist() == [[5, 255, 0, 0]]


def test_scores_survive_the_file(tmp_path):
    scores = torch.rand(2, 3, 4)
    save_scores(tmp_path / "x.npz", torch.tensor([1, 5]), scores, (12, 16))
    classes, read, size = read_scores(tmp_path / "x.npz")
    assert classes.tolist() == [1, 5]
    assert size == (12, 16)
    assert torch.allclose(read, scores, atol=5e-4)
    assert resize_scores(read, size).shape == (2, 12, 16)
    assert resize_scores(read[:0], size).shape == (0, 12, 16)


@pytest.fixture
def two_tone(tmp_path):
    """An image whose left half is red and right half blue, with a CAM on part of the left."""
    pixels = np.zeros((24, 32, 3), dtype=np.uint8)
    pixels[:, :16] = (200, 30, 30)
    pixels[:, 16:] = (30, 30, 200)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    return Sample("x", tmp_path / "x.png", (2,))


def test_labels_of_an_image_follow_its_edge(two_tone, tmp_path):
    cam = torch.full((1, 24, 32), 0.02)
    cam[:, :, :10] = 0.9
    cam[:, :, 10:16] = 0.3
    save_scores(tmp_path / "cams" / "x.npz", torch.tensor([2]), cam, (24, 32))
    work = LabelImage(tmp_path / "cams", tmp_path / "out", None, None, 4.0, 32.0, DenseCRF())
    work(two_tone)
    labels = load_mask(tmp_path / "out" / "x.png")
    assert (labels[:, :15] == 3).all()
    assert (labels[:, 17:] == 0).all()


@pytest.mark.parametrize("crf", [None, DenseCRF(num_iterations=1)])
def test_mask_has_the_size_of_the_image(two_tone, tmp_path, crf):
    cam = torch.zeros(1, 3, 4)  # a grid of stride 8
    cam[:, :, :2] = 0.9
    scores = add_background(cam, alpha=1)
    save_scores(tmp_path / "scores" / "x.npz", torch.tensor([2]), scores, (24, 32))
    FinishMask(tmp_path / "scores", tmp_path / "masks", None, 8, True, crf)(two_tone)
    mask = load_mask(tmp_path / "masks" / "x.png")
    assert mask.shape == (24, 32)
    assert (mask[:, :14] == 3).all()
    assert (mask[:, 22:] == 0).all()


def test_last_cell_reaching_outside_is_cropped(tmp_path):
    # 20 pixels in cells of 8: the third cell is half outside, and must not be squeezed in
    Image.new("RGB", (20, 8)).save(tmp_path / "x.png")
    scores = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    save_scores(tmp_path / "scores" / "x.npz", torch.tensor([0]), scores, (8, 20))
    sample = Sample("x", tmp_path / "x.png", (0,))
    FinishMask(tmp_path / "scores", tmp_path / "masks", None, 8, True, None)(sample)
    # centres of the cells are at 4, 12, 20: the change is halfway between the last two
    assert load_mask(tmp_path / "masks" / "x.png")[0].tolist() == [0] * 16 + [1] * 4
