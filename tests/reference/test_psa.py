"""The reference itself, against what is known of the published method and by hand."""

import numpy as np
import pytest
from PIL import Image


def test_offsets(psa):
    found = psa.offsets(5)
    assert len(found) == len(set(found)) == 34
    assert found[:5] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, -4)]
    assert found[-1] == (4, 2)
    # no pair comes twice
    assert not set(found) & {(-dy, -dx) for dy, dx in found}


def test_what_the_published_border_loses(psa):
    full = psa.pairs(47, 63, border="full")
    published = psa.pairs(47, 63, border="psa")
    assert (full.shape[1], published.shape[1]) == (93314, 80410)
    assert round(100 * (1 - 80410 / 93314), 1) == 13.8
    assert {*map(tuple, published.T)} < {*map(tuple, full.T)}
    neighbours = np.bincount(published[1:].ravel(), minlength=47 * 63).reshape(47, 63)
    alone = [tuple(p) for p in np.argwhere(neighbours == 0).tolist()]
    top = [(0, 0), (0, 1), (0, 2), (0, 3)]
    bottom = [(45, 0), (45, 62), (46, 0), (46, 1), (46, 61), (46, 62)]
    assert alone == top + bottom
    assert np.bincount(full[1:].ravel()).min() > 0


def test_a_grid_without_published_pairs(psa):
    assert psa.pairs(13, 7, border="psa").shape == (3, 0)
    assert psa.pairs(6, 9, border="psa").shape == (3, 68)


def test_walk_by_hand(psa):
    # two pixels in a row and one pair: T = [[1, w], [w, 1]] / (1 + w), w = 0.5²
    planes = np.zeros((4, 1, 2))
    planes[0, 0, 0] = 0.5
    walked = psa.walk(np.array([[[1.0, 0.0]]]), planes, radius=2, beta=2, num_steps=1)
    np.testing.assert_allclose(walked, [[[0.8, 0.2]]])


@pytest.mark.parametrize("size", [(7, 9), (26, 40), (20, 5)])
def test_bicubic_is_that_of_pil(psa, size):
    image = np.random.default_rng(0).random((13, 20))
    expected = np.asarray(Image.fromarray(np.float32(image)).resize(size[::-1], Image.BICUBIC))
    np.testing.assert_allclose(psa.resize_bicubic(image[None], size)[0], expected, atol=1e-6)


def test_bilinear_by_hand(psa):
    assert psa.resize_bilinear(np.array([[[0.0, 1.0]]]), (1, 4)).tolist() == [[[0, 0.25, 0.75, 1]]]
    assert psa.resize_bilinear(np.array([[[0.0, 1, 2, 3]]]), (1, 2)).tolist() == [[[0.5, 2.5]]]
