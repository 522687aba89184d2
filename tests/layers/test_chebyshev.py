import math

import numpy as np
import pytest
import torch

from wsss_affinity.layers import Neighborhood, chebyshev, pairwise_affinity, walk_llvm
from wsss_affinity.layers.chebyshev import chebyshev_coefficients, walk
from wsss_affinity.layers.walk_matrix import CSRProducts, normalized


@pytest.fixture(params=["llvm", "csr", "shifted"], autouse=True)
def path(request, monkeypatch):
    if request.param == "llvm":
        pytest.importorskip("llvmlite")
    monkeypatch.setattr(walk_llvm, "available", lambda rows, radius: request.param == "llvm")
    if request.param == "shifted":
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    elif not torch.backends.mkl.is_available():
        pytest.skip("this torch has no CSR products on the CPU")


def step_by_step(x, planes, neighborhood, coefficients, num_steps):
    """The walk on the dense M by one autograd node a product."""
    batch, height, width, channels = x.shape
    size = height * width
    pixel = torch.arange(size).view(height, width)
    dense = torch.diag_embed(1 + planes[:, -1].flatten(1))
    for k, (dy, dx) in enumerate(neighborhood.pairs):
        rows, columns = slice(max(0, height - dy)), slice(max(0, -dx), max(0, width - max(0, dx)))
        i = pixel[rows, columns].flatten()
        values = torch.zeros_like(dense)
        values[:, i, i + dy * width + dx] = planes[:, k, rows, columns].flatten(1)
        dense = dense + values + values.mT
    states = [x.reshape(batch, size, channels)]
    if coefficients is None:
        for _ in range(num_steps):
            states = [dense @ states[0]]
        return states[0].view_as(x)
    states.append(dense @ states[0])
    for _ in coefficients[2:]:
        states.append(2 * dense @ states[-1] - states[-2])
    return sum(c * s for c, s in zip(coefficients, states, strict=True)).view_as(x)


def inputs(batch, height, width, radius, dtype=torch.float64, contrast=1.0):
    features = contrast * torch.randn(batch, 3, height, width, dtype=dtype)
    weights = pairwise_affinity(features, radius) ** 2
    return torch.randn(batch, height, width, 2, dtype=dtype), weights


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, 33, 256])
@pytest.mark.parametrize("tol", [None, 1e-5, 1e-14])
def test_equals_step_by_step_with_its_gradients(num_steps, tol):
    # 5 and 33 steps leave groups of outer products half full
    coefficients = tol and chebyshev_coefficients(num_steps, tol)
    x, weights = inputs(2, 4, 6, 3)
    upstream = torch.randn_like(x)
    results = []
    for function in (walk, step_by_step):
        leaves = x.clone().requires_grad_(), weights.clone().requires_grad_()
        planes = normalized(leaves[1], Neighborhood(3))[0]
        walked = function(leaves[0], planes, Neighborhood(3), coefficients, num_steps)
        results.append((walked, *torch.autograd.grad((walked * upstream).sum(), leaves)))
    inside = Neighborhood(3).valid(4, 6)
    for result, expected in zip(*results, strict=True):
        if result.shape == weights.shape:
            result, expected = result * inside, expected * inside
        scale = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=3e-12 * max(scale, 1))


@pytest.mark.parametrize("method", ["power", "chebyshev"])
@pytest.mark.parametrize("contrast", [0.3, 1, 4])
def test_float32_gradients_of_a_long_walk(method, contrast):
    coefficients = None if method == "power" else chebyshev_coefficients(256, 1e-5)
    x, weights = inputs(1, 12, 13, 5, contrast=contrast)
    upstream = torch.randn_like(x)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (x, weights)]
        planes = normalized(leaves[1], Neighborhood())[0]
        walked = walk(leaves[0], planes, Neighborhood(), coefficients, 256)
        gradients.append(torch.autograd.grad((walked * upstream.to(dtype)).sum(), leaves))
    for single, double in zip(*gradients, strict=True):
        error = (single - double).abs().max() / double.abs().max()
        # as large step by step
        assert error.item() < 3e-4


@pytest.mark.parametrize("coefficients", [None, (0.25, 0.0, 0.5, 0.25), (0.0, 1.0)])
def test_gradcheck(coefficients):
    x, weights = inputs(2, 3, 4, 3)
    weights = weights.requires_grad_()

    def walked(x, w):
        # gradcheck also moves the weights that leave the grid, which must stay 0
        planes = normalized(w * Neighborhood(3).valid(3, 4), Neighborhood(3))[0]
        return walk(x, planes, Neighborhood(3), coefficients, 3)

    assert torch.autograd.gradcheck(walked, (x.requires_grad_(), weights))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no CSR products on the CPU")
@pytest.mark.parametrize("coefficients", [None, (0.25, 0.0, 0.5, 0.25)])
def test_strided_gradients_of_a_batch_in_one_matrix(coefficients, monkeypatch):
    """As on CUDA, where the products of a batch are one matrix's."""
    rows, weights = inputs(2, 4, 6, 3)
    rows = rows.repeat(1, 1, 1, 2)  # four channels, of which none is cut off behind the walk
    upstream = torch.randn(2, 4, 4, 6, dtype=torch.float64).permute(0, 2, 3, 1)
    assert not upstream.is_contiguous()
    gradients = []
    for chosen in (upstream.contiguous(), upstream):
        leaves = rows.clone().requires_grad_(), weights.clone().requires_grad_()
        planes = normalized(leaves[1], Neighborhood(3))[0]
        walked = walk(leaves[0], planes, Neighborhood(3), coefficients, 3)
        gradients.append(torch.autograd.grad(walked, leaves, chosen))
        monkeypatch.setattr(
            chebyshev, "products", lambda p, n: iter([(slice(0, len(p)), CSRProducts(p, n))])
        )
    for alone, together in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 30, 256, 1001])
def test_the_series_is_within_its_tol_on_the_whole_spectrum(num_steps, tol):
    coefficients = np.array(chebyshev_coefficients(num_steps, tol))
    x = np.cos(np.linspace(0, np.pi, 4001))
    error = np.abs(np.polynomial.chebyshev.chebval(x, coefficients) - x**num_steps).max()
    assert error <= tol + 1e-12
    assert coefficients.min() >= 0
    assert coefficients.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 30])
def test_the_series_holds_the_binomials(num_steps):
    t = num_steps
    expected = np.zeros(t + 1)
    for k in range(t % 2, t + 1, 2):
        expected[k] = math.comb(t, (t - k) // 2) * 2.0 ** (1 - t) / (2 if k == 0 else 1)
    np.testing.assert_allclose(chebyshev_coefficients(t, 1e-15), expected, rtol=1e-11)


def test_the_degree_is_the_smallest_that_keeps_tol():
    t, tol = 256, 1e-5
    degree = len(chebyshev_coefficients(t, tol)) - 1
    exact = [math.comb(t, (t - k) // 2) / 2 ** (t - 1) if k % 2 == 0 else 0 for k in range(t + 1)]
    assert sum(exact[degree + 1 :]) <= tol / 2 < sum(exact[degree:])
    # the two figures that the method's description gives
    assert sum(exact[65:]) == pytest.approx(4.4e-5, rel=0.02)
    assert sum(exact[81:]) == pytest.approx(3.3e-7, rel=0.02)
