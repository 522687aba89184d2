import numpy as np
import pytest
import torch

from wsss_affinity.layers import Neighborhood, pairwise_affinity, random_walk
from wsss_affinity.layers.walk_matrix import WalkMatrix


@pytest.fixture(params=["csr", "shifted"])
def path(request, monkeypatch):
    if request.param == "shifted":
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    elif not torch.backends.mkl.is_available():
        pytest.skip("this build of torch has no CSR products on the CPU")
    return request.param


def dense_symmetric(weights, radius):
    """D^-1/2 W D^-1/2 of one image by plain loops, and D."""
    _, height, width = weights.shape
    matrix = np.eye(height * width)
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                i, j = y * width + x, (y + dy) * width + x + dx
                matrix[i, j] = matrix[j, i] = weights[k, y, x].item()
    degree = matrix.sum(1)
    return torch.from_numpy(matrix / np.sqrt(np.outer(degree, degree))), torch.from_numpy(degree)


def weights_of(batch, height, width, radius):
    return pairwise_affinity(torch.randn(batch, 2, height, width, dtype=torch.float64), radius)


@pytest.mark.parametrize(
    ("batch", "height", "width", "radius"), [(2, 7, 9, 5), (1, 2, 3, 5), (3, 1, 4, 2), (1, 1, 1, 5)]
)
def test_product_equals_the_dense_matrix(path, batch, height, width, radius):
    weights = weights_of(batch, height, width, radius)
    matrix = WalkMatrix(weights, Neighborhood(radius))
    assert (matrix._csr is not None) == (path == "csr")
    x, minus = torch.randn(2, batch, height, width, 3, dtype=torch.float64)
    product, recurrence = matrix.product(x), matrix.product(x, minus=minus)
    for b in range(batch):
        dense, degree = dense_symmetric(weights[b], radius)
        expected = (dense @ x[b].reshape(-1, 3)).view(height, width, 3)
        torch.testing.assert_close(product[b], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(recurrence[b], 2 * expected - minus[b], rtol=1e-12, atol=1e-12)
        scale = degree.sqrt().view(height, width, 1)
        torch.testing.assert_close(matrix.scale[b], scale, rtol=1e-12, atol=1e-12)


def test_gradcheck(path):
    x, minus = (torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True) for _ in "xm")
    inside = Neighborhood(4).valid(3, 4)
    weights = (torch.rand(2, len(inside), 3, 4, dtype=torch.float64) + 0.1) * inside

    def both(w, x, minus):
        # gradcheck also moves the weights that leave the grid, which must stay 0
        matrix = WalkMatrix(w * inside, Neighborhood(4))
        return matrix.product(x), matrix.product(x, minus=minus)

    assert torch.autograd.gradcheck(both, (weights.requires_grad_(), x, minus))


@pytest.mark.parametrize("method", ["power", "chebyshev"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_paths_walk_alike(monkeypatch, method, dtype):
    if not torch.backends.mkl.is_available():
        pytest.skip("this build of torch has no CSR products on the CPU")
    scores = torch.rand(2, 3, 12, 13, dtype=dtype)
    affinity = pairwise_affinity(torch.randn(2, 4, 12, 13, dtype=dtype))
    results = []
    for available in (True, False):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda value=available: value)
        leaves = [scores.clone().requires_grad_(), affinity.clone().requires_grad_()]
        walked = random_walk(*leaves, method=method)
        gradients = torch.autograd.grad(walked.square().sum(), leaves)
        results.append((walked.detach(), *gradients))
    # the gradient of a^8 through 256 steps, up to 3, is off by 6e-4 on either path
    tolerance = 2e-3 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_the_matrix_is_symmetric_with_eigenvalues_in_the_unit_interval(path):
    weights = weights_of(1, 4, 5, 3)
    matrix = WalkMatrix(weights, Neighborhood(3))
    identity = torch.eye(20, dtype=torch.float64).view(1, 4, 5, 20)
    dense = matrix.product(identity).view(20, 20)
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-14)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues.max().item() == pytest.approx(1, abs=1e-12)
    assert eigenvalues.min().item() > -1


def test_the_pattern_of_one_size_serves_others_of_the_same_number_of_pixels(path):
    for height, width in ((3, 8), (8, 3), (4, 6), (3, 8)):
        weights = weights_of(1, height, width, 3)
        x = torch.randn(1, height, width, 1, dtype=torch.float64)
        product = WalkMatrix(weights, Neighborhood(3)).product(x)
        expected = dense_symmetric(weights[0], 3)[0] @ x.reshape(-1, 1)
        torch.testing.assert_close(product.view(-1, 1), expected, rtol=1e-12, atol=1e-12)
