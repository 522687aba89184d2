import numpy as np
import pytest
import torch

from wsss_affinity.layers import pairwise_affinity, random_walk

BORDERS = ["full", "psa"]


def agree_all(psa, agree, x, affinity, methods, **options):
    """Asserts that every method, in both precisions, walks as the reference."""
    expected = np.stack(
        [psa.walk(*pair, **options) for pair in zip(x.numpy(), affinity.numpy(), strict=True)]
    )
    for dtype, tol in ((torch.float32, 1e-7), (torch.float64, 1e-12)):
        for method in methods:
            y = random_walk(x.to(dtype), affinity.to(dtype), method=method, tol=tol, **options)
            agree(y, expected, atol=0)
    return expected


@pytest.mark.parametrize("num_steps", [1, 16, 33, 256])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(6, 9), (13, 7), (16, 24)])
def test_small(psa, agree, size, border, num_steps):
    affinity = pairwise_affinity(torch.randn(2, 16, *size) * 0.3)
    x = torch.rand(2, 3, *size)
    methods = ("power", "chebyshev", "dense")
    walked = agree_all(psa, agree, x, affinity, methods, border=border, num_steps=num_steps)
    # it did walk, unless there is no pair
    moved = np.abs(walked - x.numpy()).max() > 0.1
    assert moved == (border == "full" or size != (13, 7))


@pytest.mark.parametrize("beta", [1.0, 8.0])
@pytest.mark.parametrize("radius", [3, 5])
def test_radius_and_beta(psa, agree, radius, beta):
    affinity = pairwise_affinity(torch.randn(1, 16, 9, 14) * 0.3, radius)
    x = torch.rand(1, 3, 9, 14)
    methods = ("power", "chebyshev", "dense")
    agree_all(psa, agree, x, affinity, methods, radius=radius, beta=beta, num_steps=64)


@pytest.mark.parametrize("border", BORDERS)
def test_the_grid_of_a_voc_image(psa, agree, border):
    affinity = pairwise_affinity(torch.randn(1, 16, 47, 63) * 0.3)
    x = torch.rand(1, 3, 47, 63)
    expected = agree_all(psa, agree, x, affinity, ("power", "chebyshev"), border=border)
    # the default, auto with tol 1e-5, is as near
    agree(random_walk(x, affinity, border=border), expected, atol=0)


def test_pixels_that_are_nearly_cut_off(psa, agree):
    # weights of about 1e-8 beside the 1 of the diagonal are at the end of float32's digits:
    # over 256 steps 1e-4 of the scores, in the dense form too
    affinity = pairwise_affinity(torch.randn(1, 64, 16, 24, dtype=torch.float64) * 2)
    weights = affinity[affinity > 0] ** 8
    assert weights.mean() < 1e-7
    x = torch.rand(1, 3, 16, 24, dtype=torch.float64)
    expected = psa.walk(x[0].numpy(), affinity[0].numpy())
    for method in ("power", "chebyshev", "dense"):
        agree(random_walk(x, affinity, method=method, tol=1e-12)[0], expected, atol=0)
        single = random_walk(x.float(), affinity.float(), method=method)[0]
        np.testing.assert_allclose(single.numpy(), expected, rtol=3e-4)
