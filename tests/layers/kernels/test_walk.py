import importlib.util
import math
import sys

import pytest
import torch

from wsss_affinity.layers import Neighborhood, random_walk
from wsss_affinity.layers.walk_matrix import normalized

pytest.importorskip("triton")

PACKAGE = "wsss_affinity.layers.kernels."
# T_3 and a constant: no product is left out, and one degree adds nothing
COEFFICIENTS = (0.25, 0.0, 0.25, 0.5)


@pytest.fixture(scope="module")
def interpreted():
    """Copies of the modules, for Triton's interpreter, which is chosen on import."""
    modules = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in ("walk_planes", "walk"):
            spec = importlib.util.find_spec(PACKAGE + name)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            patch.setitem(sys.modules, PACKAGE + name, module)
            modules.append(module)
    return modules


@pytest.fixture(params=["alone", "shared"])
def kernels(request, interpreted, monkeypatch):
    """The kernels with tiles smaller than most grids, in both ways to divide the work."""
    module = interpreted[1]
    alone = request.param == "alone"
    monkeypatch.setattr(module, "_THREADS_ALONE", 16)
    monkeypatch.setattr(module, "_THREADS", 16)
    monkeypatch.setattr(module, "_multiprocessors", lambda tensor: 1 if alone else 10**6)
    monkeypatch.setattr(module, "_PIXELS_A_LAUNCH", 0)
    return module


def walk_matrix(batch, height, width, radius, device="cpu"):
    """Float64 planes of a random walk, sharp enough that some pixels are nearly cut off."""
    neighborhood = Neighborhood(radius)
    affinity = torch.rand(batch, len(neighborhood), height, width, dtype=torch.float64)
    weights = (affinity * neighborhood.valid(height, width)) ** 8
    planes, scale = normalized(weights, neighborhood)
    return planes.to(device), scale.to(device)


def dense(planes, radius):
    """``M`` as (B, N, N) by plain loops."""
    batch, _, height, width = planes.shape
    size = height * width
    matrix = torch.diag_embed(1 + planes[:, -1].reshape(batch, size).double().cpu())
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                i, j = y * width + x, (y + dy) * width + x + dx
                matrix[:, i, j] = matrix[:, j, i] = planes[:, k, y, x].double().cpu()
    return matrix


def reference(rows, planes, radius, coefficients, num_steps):
    matrix, x = dense(planes, radius), rows.double().cpu().flatten(1, 2)
    if coefficients is None:
        return (torch.linalg.matrix_power(matrix, num_steps) @ x).view(rows.shape)
    states = [x, matrix @ x]
    for _ in coefficients[2:]:
        states.append(2 * matrix @ states[-1] - states[-2])
    return sum(c * v for c, v in zip(coefficients, states, strict=False)).view(rows.shape)


@pytest.mark.parametrize(
    ("batch", "height", "width", "radius", "channels", "num_steps"),
    [
        (1, 9, 7, 2, 5, 2),  # several tiles, the last line of them not full
        (3, 5, 2, 3, 1, 1),
        (1, 2, 3, 5, 21, 1),  # smaller than the radius; two groups of channels
        (1, 1, 1, 5, 1, 7),
        (1, 6, 5, 4, 4, 2),  # a disc with corners cut off
        (2, 3, 40, 2, 13, 1),  # lines longer than the first pitch
    ],
)
def test_equals_the_dense_matrix(kernels, batch, height, width, radius, channels, num_steps):
    planes, _ = walk_matrix(batch, height, width, radius)
    rows = torch.randn(batch, height, width, channels)
    for coefficients in (None, COEFFICIENTS[: num_steps + 2]):
        walked = kernels.walk(rows, planes.float(), radius, coefficients, num_steps)
        expected = reference(rows, planes, radius, coefficients, num_steps)
        assert walked.dtype == torch.float32
        torch.testing.assert_close(walked.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernels", ["alone"], indirect=True)
def test_many_steps(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "_ROWS", 1)  # fewer operations for the interpreter
    planes, scale = walk_matrix(1, 3, 4, 2)
    rows = scale.float() * torch.tensor([1.0, 0.0])
    rows[0, 1, 1, 1] = 1
    walked = kernels.walk(rows, planes.float(), 2, None, 256)
    expected = reference(rows, planes, 2, None, 256)
    torch.testing.assert_close(walked.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(walked[..., 0], rows[..., 0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("coefficients", [None, (0.5,)])
def test_no_step_gives_the_input(kernels, coefficients):
    planes, _ = walk_matrix(1, 3, 4, 2)
    rows = torch.randn(1, 3, 4, 5)
    walked = kernels.walk(rows, planes.float(), 2, coefficients, 0)
    assert torch.equal(walked, rows * (0.5 if coefficients else 1))


@pytest.mark.parametrize(("storage", "atol"), [(torch.float16, 2e-4), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("kernels", ["alone"], indirect=True)
def test_half_precision_weights_lose_nothing(kernels, storage, atol):
    planes, scale = walk_matrix(1, 4, 5, 3)
    # constants on the pixels, and random values
    rows = scale.float() * torch.cat([torch.ones(1, 4, 5, 1), torch.rand(1, 4, 5, 2)], -1)
    walked = kernels.walk(rows, planes.float(), 3, None, 16, storage=storage)
    expected = reference(rows, planes, 3, None, 16)
    assert not torch.allclose(walked.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(walked.double(), expected, rtol=0, atol=atol)
    torch.testing.assert_close(walked[..., 0], rows[..., 0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernels", ["alone"], indirect=True)
@pytest.mark.parametrize("storage", [None, torch.float16, torch.bfloat16])
def test_the_layer_through_the_kernels(kernels, interpreted, storage, monkeypatch):
    package = sys.modules[PACKAGE.rstrip(".")]
    scores, affinity = torch.rand(1, 2, 3, 4), torch.rand(1, 4, 3, 4)
    options = {"radius": 2, "num_steps": 6, "method": "power", "storage": storage}
    expected = random_walk(scores, affinity, **options)
    asked = []
    walk = kernels.walk
    monkeypatch.setattr(
        kernels, "walk", lambda *a, storage: asked.append(storage) or walk(*a, storage=storage)
    )
    monkeypatch.setattr(package, "available", lambda tensor: True)
    for name, module in zip(("walk_planes", "walk"), interpreted, strict=True):
        monkeypatch.setattr(package, name, module, False)
        monkeypatch.setitem(sys.modules, PACKAGE + name, module)
    # Triton's interpreter cuts the bits that bfloat16 has not, instead of rounding them
    tolerance = 4e-3 if storage == torch.bfloat16 else 1e-6
    walked = random_walk(scores, affinity, **options)
    torch.testing.assert_close(walked, expected, rtol=0, atol=tolerance)
    # with gradients of the affinities, the layer rounds and the kernel finds nothing to round
    walked = random_walk(scores, affinity.requires_grad_(), **options)
    torch.testing.assert_close(walked.detach(), expected, rtol=0, atol=1e-6)
    assert asked == [storage or torch.float32] * 2


def test_smaller_images_of_a_batch_walk_as_by_themselves(kernels):
    planes, _ = walk_matrix(1, 6, 7, 3)
    small, _ = walk_matrix(1, 3, 4, 3)
    padded = torch.zeros_like(planes)
    padded[:, :, 1:4, 2:6] = small
    rows, x = torch.randn(2, 6, 7, 2), torch.randn(1, 3, 4, 2)
    rows[1, 1:4, 2:6] = x
    outside = torch.ones(6, 7, dtype=torch.bool)
    outside[1:4, 2:6] = False
    both = torch.cat([planes, padded]).float()
    for coefficients in (None, COEFFICIENTS):
        walked = kernels.walk(rows, both, 3, coefficients, 2)
        own = kernels.walk(x, small.float(), 3, coefficients, 2)
        assert torch.equal(walked[1:, 1:4, 2:6], own)
        assert torch.equal(walked[1][outside], rows[1][outside])
        alone = kernels.walk(rows[:1], planes.float(), 3, coefficients, 2)
        assert torch.equal(walked[:1], alone)


@pytest.mark.parametrize(
    ("programs", "pixels", "alone"),
    [
        (128, 2961, True),  # 64 images of 47×63 with 21 channels
        (140, 2961, False),  # would leave 124 of 132 multiprocessors idle half of the time
        (384, 2961, True),
        (2, 2961, False),
        (2, 100, True),  # done before a kernel is launched
        (2, 128 * 256, False),
    ],
)
def test_division_of_the_work(interpreted, programs, pixels, alone):
    assert interpreted[1]._alone(programs, pixels, 132) == alone


@pytest.mark.parametrize("radius", range(2, 12))
def test_runs_make_up_the_disc(interpreted, radius):
    columns = {}
    for height, first, end in interpreted[1]._runs(radius):
        for i in range(first, end):
            dx = (i + 1) // 2 * (i % 2 * 2 - 1)
            columns[dx] = height
    assert columns == {dx: math.isqrt(radius**2 - 1 - dx**2) for dx in range(1 - radius, radius)}


@pytest.mark.gpu
@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels"),
    [(64, 47, 63, 21), (3, 47, 63, 21), (1, 94, 125, 21), (1, 128, 256, 20), (2, 63, 47, 81)],
)
def test_full_size_on_cuda(batch, height, width, channels, storage):
    from wsss_affinity.layers.chebyshev import chebyshev_coefficients
    from wsss_affinity.layers.kernels.walk import walk

    planes, scale = walk_matrix(batch, height, width, 5, "cuda")
    scores = torch.rand(batch, height, width, channels, device="cuda")
    rows = scores.double() * scale
    coefficients = chebyshev_coefficients(256, 1e-5)
    states = [rows, product(planes, 5, rows)]
    total = coefficients[0] * states[0] + coefficients[1] * states[1]
    for c in coefficients[2:]:
        states = [states[1], 2 * product(planes, 5, states[1]) - states[0]]
        total += c * states[1]
    for kept in (None, coefficients):
        walked = walk(rows.float(), planes.float(), 5, kept, 256, storage=storage)
        error = ((walked - total) / scale).abs().max().item()
        assert error < (1e-4 if storage == torch.float32 else 1e-3)
        again = walk(rows.float(), planes.float(), 5, kept, 256, storage=storage)
        assert torch.equal(walked, again)


def product(planes, radius, x):
    _, _, height, width = planes.shape
    result = (1 + planes[:, -1, :, :, None]) * x
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        here = slice(None), slice(height - dy), slice(max(0, -dx), min(width, width - dx))
        there = slice(None), slice(dy, None), slice(max(0, dx), min(width, width + dx))
        weight = planes[:, k][here].unsqueeze(-1)
        result[here] += weight * x[there]
        result[there] += weight * x[here]
    return result
