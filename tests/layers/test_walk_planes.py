import pytest
import torch

from wsss_affinity.layers import Neighborhood
from wsss_affinity.layers.walk_matrix import ShiftedProducts
from wsss_affinity.layers.walk_planes import rounded, sharpened, symmetric

NEIGHBORHOOD = Neighborhood(3)


@pytest.fixture
def affinity():
    return torch.rand(2, len(NEIGHBORHOOD), 5, 6, dtype=torch.float64)


@pytest.fixture
def valid():
    return NEIGHBORHOOD.valid(5, 6)


@pytest.mark.parametrize("differentiable", [False, True])
def test_sharpened(affinity, valid, differentiable):
    affinity[0, 0] = 0
    leaf = affinity.clone().requires_grad_(differentiable)
    weights = sharpened(leaf, valid, 0.5)
    assert torch.equal(weights, affinity.sqrt() * valid)
    if differentiable:
        (gradient,) = torch.autograd.grad(weights.sum(), leaf)
        expected = torch.where(valid & (affinity > 0), 0.5 / affinity.sqrt(), 0)
        torch.testing.assert_close(gradient, expected)


def product(planes, x):
    result = torch.zeros_like(x)
    ShiftedProducts(planes, NEIGHBORHOOD).add_product(result, x)
    return result


def test_the_scale_is_the_root_of_the_degrees_and_taken_to_0(affinity, valid):
    planes, scale = symmetric(affinity, valid, 2.0, NEIGHBORHOOD, torch.float64)
    # the first pixel is the first one of all its pairs
    degree = 1 + (affinity[:, :, 0, 0] ** 2 * valid[:, 0, 0]).sum(1)
    torch.testing.assert_close(scale[:, 0, 0, 0] ** 2, degree)
    assert product(planes, scale).abs().max() < 1e-14


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounded(affinity, valid, storage, dtype):
    affinity[0, 0] *= 1e-4  # weights that float16 holds a few bits of, or none
    planes, scale = symmetric(affinity, valid, 2.0, NEIGHBORHOOD, dtype)
    planes.requires_grad_()
    result = rounded(planes, scale, NEIGHBORHOOD, storage)
    assert torch.equal(result[:, :-1], planes[:, :-1].to(storage).to(dtype))
    assert not torch.equal(result[:, :-1], planes[:, :-1])
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert product(result.detach(), scale).abs().max() < tolerance
    assert torch.equal(torch.autograd.grad(result.sum(), planes)[0], torch.ones_like(planes))
