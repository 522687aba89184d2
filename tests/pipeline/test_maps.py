import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.data.images import load_mask
from wsss_affinity.data.soft_labels import affinity_labels_of
from wsss_affinity.data.source import Sample
from wsss_affinity.files import load_arrays
from wsss_affinity.layers import DenseCRF, add_background
from wsss_affinity.pipeline.maps import FinishMask, LabelImage
from wsss_affinity.pipeline.scores import save_scores


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


def test_soft_labels_are_kept_beside_the_hard_ones(two_tone, tmp_path):
    cam = torch.full((1, 24, 32), 0.05)  # background by the small α, object by the large one
    save_scores(tmp_path / "cams" / "x.npz", torch.tensor([2]), cam, (24, 32))
    folders = tmp_path / "cams", tmp_path / "labels", tmp_path / "soft"
    LabelImage(*folders, None, 4.0, 128.0, DenseCRF())(two_tone)
    arrays = load_arrays(tmp_path / "soft" / "x.npz")
    assert set(arrays) == {"low", "high"}
    low, high = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("low", "high"))
    assert low.shape == (2, 24, 32)
    torch.testing.assert_close(low.sum(0), torch.ones(24, 32), atol=2e-3, rtol=0)
    assert (low[0] > 0.5).all()
    assert (high[0] < 0.5).all()
    labels = affinity_labels_of(low, high, torch.tensor([2]))
    assert labels.tolist() == load_mask(tmp_path / "labels" / "x.png").tolist()


def test_without_background_one_crf_and_no_background(two_tone, tmp_path):
    cam = torch.full((1, 24, 32), 0.02)
    cam[:, :, :12] = 0.9
    save_scores(tmp_path / "cams" / "x.npz", torch.tensor([2]), cam, (24, 32))
    folders = tmp_path / "cams", tmp_path / "labels", tmp_path / "soft"
    LabelImage(*folders, None, 4.0, None, DenseCRF())(two_tone)
    assert set(load_arrays(tmp_path / "soft" / "x.npz")) == {"low"}
    labels = load_mask(tmp_path / "labels" / "x.png")
    assert (labels[:, :15] == 3).all()
    assert (labels[:, 17:] == 255).all()
    FinishMask(tmp_path / "cams", tmp_path / "masks", None, 1, False, None)(two_tone)
    assert (load_mask(tmp_path / "masks" / "x.png") == 3).all()
