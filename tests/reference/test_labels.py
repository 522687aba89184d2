import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.data.soft_labels import affinity_labels_of, pool_soft_labels

CLASSES = torch.tensor([3, 11, 19])


def crf_result(size, seed):
    """Probabilities that change over tens of pixels, as those of a CRF do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1 + len(CLASSES), 4, 5, generator=generator)
    return F.interpolate(4 * coarse, size, mode="bicubic")[0].softmax(0)


@pytest.mark.parametrize("size", [(40, 56), (37, 45)])
def test_hard(psa, size):
    low, high = crf_result(size, 0), crf_result(size, 1)
    expected = psa.hard_labels(low.numpy(), high.numpy(), CLASSES.numpy())
    assert set(np.unique(expected)) == {0, 4, 12, 20, 255}
    np.testing.assert_array_equal(affinity_labels_of(low, high, CLASSES).numpy(), expected)


@pytest.mark.parametrize("size", [(80, 112), (75, 91)])
def test_soft(psa, size):
    # the image at (11, 5) of a crop whose sides are multiples of 8, nothing around it
    low, high = (
        F.pad(crf_result(size, seed), (5, 120 - 5 - size[1], 11, 96 - 11 - size[0]))
        for seed in (0, 1)
    )
    expected = psa.soft_labels(low.numpy(), high.numpy(), CLASSES.numpy())
    assert expected.shape == (12, 15)
    assert (expected[0] == 255).all()
    assert set(np.unique(expected)) == {0, 4, 12, 20, 255}
    labels = pool_soft_labels(low, high, CLASSES, 8)
    np.testing.assert_array_equal(labels.numpy(), expected)


def test_soft_where_the_rules_meet(psa):
    # cells of 2 × 2 pixels: outside; by a hair inside; objects lose to the background; unsure;
    # object in one pixel of four outweighs three weak ones
    low = torch.zeros(2, 2, 10)
    high = torch.zeros(2, 2, 10)
    low[1, :, 0:2], high[1, :, 0:2] = 0.9e-5, 0.9e-5
    low[1, :, 2:4], high[1, :, 2:4] = 0.9e-5, 1.1e-5
    low[1, :, 4:6], high[0, :, 4:6] = 1, 1
    low[0, :, 6:8], high[1, :, 6:8] = 1, 1
    low[0, :, 8:10], low[1, :, 8:10] = 0.55, 0.45
    low[:, 0, 9] = torch.tensor([0.0, 1.0])
    high[1, :, 8:10] = 1
    classes = torch.tensor([6])
    expected = psa.soft_labels(low.numpy(), high.numpy(), classes.numpy(), stride=2)
    assert expected.tolist() == [[255, 7, 0, 255, 7]]
    np.testing.assert_array_equal(pool_soft_labels(low, high, classes, 2).numpy(), expected)
