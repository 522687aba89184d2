import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wsss_affinity.layers import Neighborhood, pairwise_affinity, random_walk, walk_llvm
from wsss_affinity.layers.chebyshev import _power, _series, chebyshev_coefficients
from wsss_affinity.layers.walk_matrix import ShiftedProducts, WalkMatrix

pytest.importorskip("llvmlite")

SERIES = chebyshev_coefficients(64, 1e-5)


def inputs(batch, height, width, channels, radius=5, dtype=torch.float64):
    weights = pairwise_affinity(torch.randn(batch, 3, height, width, dtype=dtype), radius)
    planes = WalkMatrix(weights, Neighborhood(radius)).planes
    return torch.randn(batch, height, width, channels, dtype=dtype), planes


def by_products(rows, planes, neighborhood, coefficients, num_steps):
    matrix = ShiftedProducts(planes, neighborhood)
    if coefficients is None:
        return _power(matrix, rows, num_steps)
    return _series(matrix, rows, coefficients)


@pytest.mark.parametrize("coefficients", [None, SERIES, (0.25, 0.0, 0.5, 0.25), (0.0, 1.0)])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "radius"),
    [
        (2, 9, 11, 3, 5),
        (1, 3, 2, 1, 5),  # smaller than the radius
        (1, 1, 1, 8, 2),
        (3, 1, 17, 9, 3),  # channels and pixels just over a group
        (1, 8, 1, 21, 4),
        (1, 5, 16, 16, 7),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_products(batch, height, width, channels, radius, coefficients, dtype):
    rows, planes = inputs(batch, height, width, channels, radius)
    options = Neighborhood(radius), coefficients, 10
    expected = by_products(rows, planes, *options)
    copies = rows.to(dtype), planes.to(dtype)
    result = walk_llvm.walk(rows.to(dtype), planes.to(dtype), *options)
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    # the inputs are left alone
    assert torch.equal(copies[0], rows.to(dtype))
    assert torch.equal(copies[1], planes.to(dtype))


def test_no_step_and_no_degree():
    rows, planes = inputs(1, 4, 5, 3)
    assert torch.equal(walk_llvm.walk(rows, planes, Neighborhood(), (1.0,), 0), rows)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_batches_change_no_bit(threads, monkeypatch):
    rows, planes = inputs(4, 7, 10, 21, dtype=torch.float32)
    options = Neighborhood(), SERIES, 64
    single = [walk_llvm.walk(r[None], p[None], *options) for r, p in zip(rows, planes, strict=True)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(walk_llvm.walk(rows, planes, *options), torch.cat(single))


def test_calls_from_several_threads_at_once():
    cases = [inputs(1, 12, 9 + n, 21, 4 + n % 2) for n in range(8)]
    walk_llvm._compiled.cache_clear()

    def run(case):
        rows, planes = case
        radius = 4 + (rows.shape[2] - 9) % 2
        return walk_llvm.walk(rows, planes, Neighborhood(radius), SERIES, 64)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, cases))
    for case, result in zip(cases, results, strict=True):
        assert torch.equal(result, run(case))


def test_weights_too_small_for_normal_numbers_change_nothing():
    rows, planes = inputs(1, 6, 7, 16, dtype=torch.float32)
    result = walk_llvm.walk(rows, planes * 1e-42, Neighborhood(), SERIES, 64)
    torch.testing.assert_close(result, rows, rtol=0, atol=1e-6)


def test_random_walk_takes_it_where_groups_of_channels_occupy_the_threads(monkeypatch):
    taken = []
    real = walk_llvm.walk
    monkeypatch.setattr(walk_llvm, "walk", lambda *a: taken.append(len(a[0])) or real(*a))
    for threads, batch, channels, expected in (
        (1, 1, 21, True),
        (2, 1, 21, True),
        (8, 1, 21, False),
        (8, 3, 21, True),
        (1, 1, 2, False),
        (2, 1, 8, False),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda value=threads: value)
        affinity = pairwise_affinity(torch.randn(batch, 3, 6, 7))
        scores = torch.rand(batch, channels, 6, 7)
        del taken[:]
        result = random_walk(scores, affinity)
        assert taken == [batch] * expected
        monkeypatch.setattr(walk_llvm, "_installed", lambda: False)
        torch.testing.assert_close(random_walk(scores, affinity), result, rtol=0, atol=2e-6)
        assert taken == [batch] * expected
        monkeypatch.setattr(walk_llvm, "_installed", lambda: True)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    rows, _ = inputs(1, 4, 5, 21)
    assert walk_llvm.available(rows)
    walk_llvm._installed.cache_clear()
    try:
        assert not walk_llvm.available(rows)
    finally:
        walk_llvm._installed.cache_clear()
