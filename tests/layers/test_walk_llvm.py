import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wsss_affinity.layers import (
    Neighborhood,
    optional,
    pairwise_affinity,
    random_walk,
    walk_llvm,
)
from wsss_affinity.layers.chebyshev import _power, _series, chebyshev_coefficients
from wsss_affinity.layers.walk_matrix import ShiftedProducts, normalized

pytest.importorskip("llvmlite")

SERIES = chebyshev_coefficients(64, 1e-5)


def inputs(batch, height, width, channels, radius=5, dtype=torch.float64):
    weights = pairwise_affinity(torch.randn(batch, 3, height, width, dtype=dtype), radius)
    planes = normalized(weights, Neighborhood(radius))[0]
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


@pytest.mark.skipif(sys.platform != "linux", reason="torch has other threads there")
def test_threads_of_torch_and_of_our_own_do_the_same(monkeypatch):
    rows, planes = inputs(3, 7, 10, 21, dtype=torch.float32)
    options = Neighborhood(), SERIES, 64
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    openmp = walk_llvm._openmp()
    assert openmp is not None
    used = []
    monkeypatch.setattr(walk_llvm, "_openmp", lambda: lambda *a: used.append(a[2]) or openmp(*a))
    expected = walk_llvm.walk(rows, planes, *options)
    assert used == [3, 2]  # two images of two groups, then one
    monkeypatch.setattr(walk_llvm, "_openmp", lambda: None)
    assert torch.equal(walk_llvm.walk(rows, planes, *options), expected)


def test_torch_without_openmp_has_none(monkeypatch, tmp_path):
    walk_llvm._openmp.cache_clear()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert walk_llvm._openmp() is None
    walk_llvm._openmp.cache_clear()


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


def test_takes_no_default_device_and_no_default_type(monkeypatch):
    rows, planes = inputs(1, 4, 5, 16)
    expected = walk_llvm.walk(rows, planes, Neighborhood(), SERIES, 64)
    # tensors of the meta device hold no values: reading them would be a crash
    real = walk_llvm._in_parallel
    called = []

    def in_parallel(share, work, threads):
        assert work.device.type == "cpu"
        assert 0 not in work[2:]
        called.append(work[1].item())
        real(share, work, threads)

    monkeypatch.setattr(walk_llvm, "_in_parallel", in_parallel)
    with torch.device("meta"):
        result = walk_llvm.walk(rows, planes, Neighborhood(), SERIES, 64)
    assert torch.equal(result, expected)
    # the same if weights are of another type
    single = walk_llvm.walk(rows, planes.float(), Neighborhood(), SERIES, 64)
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-5)
    assert sum(called) == 4


def test_memory_of_many_channels_is_that_of_a_few(monkeypatch):
    rows, planes = inputs(1, 6, 7, 60, dtype=torch.float32)
    options = Neighborhood(), SERIES, 64
    groups = [walk_llvm.walk(part, planes, *options) for part in rows.split(16, -1)]
    made = []
    real = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda *a: made.append(a[1:]) or real(*a))
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda value=threads: value)
        del made[:]
        assert torch.equal(walk_llvm.walk(rows, planes, *options), torch.cat(groups, -1))
        counts = [shape[2] for shape in made if len(shape) == 6]
        assert counts == ([1, 1, 1, 1] if threads == 1 else [3, 1])


@pytest.fixture
def supported(monkeypatch):
    monkeypatch.setattr(walk_llvm, "_supported", lambda: True)


@pytest.mark.usefixtures("supported")
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
        with monkeypatch.context() as patch:
            patch.setattr(walk_llvm, "_supported", lambda: False)
            torch.testing.assert_close(random_walk(scores, affinity), result, rtol=0, atol=2e-6)
        assert taken == [batch] * expected


@pytest.mark.usefixtures("supported")
def test_rows_and_radii_it_takes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = torch.zeros(1, 4, 5, 21)
    assert walk_llvm.available(rows, 2)
    assert walk_llvm.available(rows.double(), 8)
    # compiling for those takes longer than it saves
    assert not walk_llvm.available(rows, 9)
    assert not walk_llvm.available(rows.to("meta"), 5)
    assert not walk_llvm.available(torch.nn.Parameter(rows), 5)


@pytest.mark.parametrize(
    ("version", "features", "expected"),
    [
        ("0.45.0", {"fma": True, "avx2": True, "avx512f": True}, True),
        ("0.44.0", {"fma": True, "avx2": True, "avx512f": True}, False),
        ("0.45.0", {"fma": True, "avx2": True, "avx512f": False}, False),
        ("0.45.0", {"neon": True}, False),
        (None, {"avx512f": True}, False),
    ],
)
def test_supported_versions_and_processors(version, features, expected, monkeypatch):
    if version is None:
        monkeypatch.setitem(sys.modules, "llvmlite", None)
    else:
        monkeypatch.setattr("llvmlite.__version__", version)
        monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: features)
    for cached in (walk_llvm._supported, optional.recent):
        cached.cache_clear()
    try:
        assert walk_llvm._supported() == expected
    finally:
        for cached in (walk_llvm._supported, optional.recent):
            cached.cache_clear()
