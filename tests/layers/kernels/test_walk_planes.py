import importlib.util

import pytest
import torch

from wsss_affinity.layers import Neighborhood
from wsss_affinity.layers.walk_matrix import normalized

pytest.importorskip("triton")

SHAPES = pytest.mark.parametrize(
    ("batch", "height", "width", "radius"),
    [(1, 9, 7, 2), (2, 5, 4, 3), (1, 2, 3, 5), (1, 1, 1, 5), (3, 1, 6, 4)],
)


@pytest.fixture(scope="module")
def kernels():
    """A copy of the module whose kernels run in Triton's interpreter, which is chosen on import."""
    spec = importlib.util.find_spec("wsss_affinity.layers.kernels.walk_planes")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
        patch.setattr(module, "_THREADS", 16)  # several tiles a grid
        yield module


@SHAPES
@pytest.mark.parametrize("beta", [8.0, 0.5])
def test_normalize_equals_torch(kernels, batch, height, width, radius, beta):
    neighborhood = Neighborhood(radius)
    affinity = torch.rand(batch, len(neighborhood), height, width)
    affinity[torch.rand_like(affinity) < 0.2] = 0
    planes, scale = kernels.normalize(affinity, radius, beta)
    weights = affinity.double() ** beta * neighborhood.valid(height, width)
    exact, exact_scale = normalized(weights, neighborhood)
    assert planes.dtype == scale.dtype == torch.float32
    torch.testing.assert_close(planes.double(), exact, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(scale.double(), exact_scale[..., 0], rtol=1e-6, atol=0)


def test_normalize_takes_half_precision(kernels):
    neighborhood = Neighborhood(2)
    affinity = torch.rand(1, 4, 3, 5).half()
    half = kernels.normalize(affinity, neighborhood.radius, 8.0)
    full = kernels.normalize(affinity.float(), neighborhood.radius, 8.0)
    assert torch.equal(half[0], full[0])
    assert torch.equal(half[1], full[1])


@SHAPES
def test_pack_puts_every_weight_in_its_slot(kernels, batch, height, width, radius):
    neighborhood = Neighborhood(radius)
    planes = torch.randn(batch, len(neighborhood) + 1, height, width)
    rim = radius - 1
    weights, diagonal = kernels.pack(planes, radius, height + 2 * rim, 32, torch.float32)
    slots = [dy * (2 * radius - 1) + dx for dy, dx in neighborhood.pairs]
    expected = torch.zeros(batch, height + 2 * rim, 2 * radius * rim + 1, 32)
    grid = slice(rim, rim + height), slice(rim, rim + width)
    expected[:, grid[0], slots, grid[1]] = planes[:, :-1].transpose(1, 2)
    assert torch.equal(weights, expected)
    expected = torch.zeros_like(diagonal)
    expected[(slice(None), *grid)] = planes[:, -1]
    assert torch.equal(diagonal, expected)


@pytest.mark.gpu
def test_normalize_on_cuda():
    from wsss_affinity.layers.kernels.walk_planes import normalize

    neighborhood = Neighborhood(5)
    affinity = torch.rand(64, len(neighborhood), 47, 63, device="cuda")
    planes, scale = normalize(affinity, neighborhood.radius, 8.0)
    weights = affinity.double() ** 8 * neighborhood.valid(47, 63).cuda()
    exact, exact_scale = normalized(weights, neighborhood)
    torch.testing.assert_close(planes.double(), exact, rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(scale.double(), exact_scale[..., 0], rtol=1e-5, atol=0)
