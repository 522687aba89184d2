import numpy as np
import pytest
import torch

from wsss_affinity.layers import Neighborhood, pairwise_affinity
from wsss_affinity.layers import walk_matrix as module
from wsss_affinity.layers.walk_matrix import CSRProducts, ShiftedProducts, normalized, products

MKL = pytest.param(
    CSRProducts,
    marks=pytest.mark.skipif(
        not torch.backends.mkl.is_available(), reason="this torch has no CSR products on the CPU"
    ),
)
BOTH = pytest.mark.parametrize("kind", [MKL, ShiftedProducts])
SHAPES = [(2, 7, 9, 5), (1, 2, 3, 5), (3, 1, 4, 2), (1, 1, 1, 5), (1, 12, 3, 4)]


def dense_symmetric(weights, radius):
    """D^-1/2 W D^-1/2 - I of one image by plain loops, and D."""
    _, height, width = weights.shape
    matrix = np.eye(height * width)
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                i, j = y * width + x, (y + dy) * width + x + dx
                matrix[i, j] = matrix[j, i] = weights[k, y, x].item()
    degree = matrix.sum(1)
    symmetric = matrix / np.sqrt(np.outer(degree, degree)) - np.eye(len(matrix))
    return torch.from_numpy(symmetric), torch.from_numpy(degree)


def weights_of(batch, height, width, radius, dtype=torch.float64):
    return pairwise_affinity(torch.randn(batch, 2, height, width, dtype=dtype), radius)


@BOTH
@pytest.mark.parametrize(("batch", "height", "width", "radius"), SHAPES)
def test_product_equals_the_dense_matrix(kind, batch, height, width, radius):
    weights = weights_of(batch, height, width, radius)
    planes, scales = normalized(weights, Neighborhood(radius))
    x, start = torch.randn(2, batch, height, width, 3, dtype=torch.float64)
    result = start.clone()
    kind(planes, Neighborhood(radius)).add_product(result, x, 2)
    for b in range(batch):
        dense, degree = dense_symmetric(weights[b], radius)
        expected = start[b] + 2 * (dense @ x[b].reshape(-1, 3)).view(height, width, 3)
        torch.testing.assert_close(result[b], expected, rtol=1e-12, atol=1e-12)
        scale = degree.sqrt().view(height, width, 1)
        torch.testing.assert_close(scales[b], scale, rtol=1e-12, atol=1e-12)


@BOTH
@pytest.mark.parametrize(("batch", "height", "width", "radius"), SHAPES)
def test_outer_products_are_the_gradient_of_the_planes(kind, batch, height, width, radius):
    planes, _ = normalized(weights_of(batch, height, width, radius), Neighborhood(radius))
    operator = kind(planes, Neighborhood(radius))
    assert not operator.gradient().any()
    pairs = torch.randn(3, 2, batch, height, width, 4, dtype=torch.float64)
    for left, right in pairs:
        operator.add_outer(left, right)
    left, right = pairs.transpose(0, 1).movedim(1, -1).reshape(2, batch, height * width, -1)
    dense = left @ right.mT
    expected = torch.zeros_like(planes)
    expected[:, -1] = dense.diagonal(dim1=1, dim2=2).view(batch, height, width)
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                i, j = y * width + x, (y + dy) * width + x + dx
                expected[:, k, y, x] = dense[:, i, j] + dense[:, j, i]
    torch.testing.assert_close(operator.gradient(), expected, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    inside = Neighborhood(4).valid(3, 4)
    weights = (torch.rand(2, len(inside), 3, 4, dtype=torch.float64) + 0.1) * inside

    def planes_and_scale(w):
        # gradcheck also moves the weights that leave the grid, which must stay 0
        return normalized(w * inside, Neighborhood(4))

    assert torch.autograd.gradcheck(planes_and_scale, weights.requires_grad_())


@BOTH
def test_the_matrix_is_symmetric_with_eigenvalues_in_the_unit_interval(kind):
    planes, _ = normalized(weights_of(1, 4, 5, 3), Neighborhood(3))
    identity = torch.eye(20, dtype=torch.float64).view(1, 4, 5, 20)
    dense = identity.clone()
    kind(planes, Neighborhood(3)).add_product(dense, identity)
    dense = dense.view(20, 20)
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-14)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues.max().item() == pytest.approx(1, abs=1e-12)
    assert eigenvalues.min().item() > -1


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no CSR products on the CPU")
def test_the_pattern_of_one_size_serves_others_of_the_same_number_of_pixels():
    for height, width in ((3, 8), (8, 3), (4, 6), (3, 8)):
        planes, _ = normalized(weights_of(1, height, width, 3), Neighborhood(3))
        x = torch.randn(1, height, width, 1, dtype=torch.float64)
        results = [torch.zeros_like(x) for _ in "ab"]
        for result, kind in zip(results, (CSRProducts, ShiftedProducts), strict=True):
            kind(planes, Neighborhood(3)).add_product(result, x)
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_the_cpu_takes_images_one_by_one_where_it_has_csr_products(monkeypatch):
    planes, _ = normalized(weights_of(3, 4, 5, 3), Neighborhood(3))
    for available in (True, False):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda value=available: value)
        found = list(products(planes, Neighborhood(3)))
        assert [(part.start, part.stop) for part, _ in found] == (
            [(0, 1), (1, 2), (2, 3)] if available else [(0, 3)]
        )
        assert {type(p) for _, p in found} == {CSRProducts if available else ShiftedProducts}


def test_patterns_hold_32_bit_indices_and_large_ones_are_not_kept():
    before = module._kept_pattern.cache_info().currsize
    device = torch.device("cpu")
    starts, columns, places = module._pattern(1, 129, 129, 5, device)
    assert module._kept_pattern.cache_info().currsize == before
    assert {starts.dtype, columns.dtype, places.dtype} == {torch.int32}
    inside = Neighborhood(5).valid(129, 129).sum().item()
    assert starts[-1] == len(columns) == len(places) == 2 * inside + 129**2
    # two images are two blocks
    two = module._pattern(2, 5, 6, 3, device)
    one = module._pattern(1, 5, 6, 3, device)
    assert torch.equal(two[1], torch.cat([one[1], one[1] + 30]))
    assert torch.equal(two[0], torch.cat([one[0], one[0][1:] + one[0][-1]]))
    # 12 planes and the diagonal
    assert torch.equal(two[2], torch.cat([one[2], one[2] + 13 * 30]))
