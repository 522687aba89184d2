import importlib.util
import sys

import pytest
import torch

import wsss_affinity.layers.affinity as layer
from wsss_affinity.layers import Neighborhood, pairwise_affinity

pytest.importorskip("triton")

SHAPES = [
    (2, 7, 6, 9, 5),
    (1, 5, 11, 13, 4),  # more pixels than a tile holds
    (1, 19, 3, 4, 3),  # more channels than are unrolled, or taken at once
    (1, 3, 3, 4, 5),  # the grid is smaller than the radius
    (1, 1, 1, 1, 5),
    (2, 2, 1, 6, 3),
    (1, 4, 5, 1, 2),
]
shapes = pytest.mark.parametrize(("batch", "channels", "height", "width", "radius"), SHAPES)


@pytest.fixture(scope="module")
def kernels():
    """A copy of the module whose kernels run in Triton's interpreter, which is chosen on import."""
    spec = importlib.util.find_spec("wsss_affinity.layers.kernels.affinity")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def through_kernels(kernels, monkeypatch):
    """Make the layer take the interpreted kernels, where it would not for lack of a GPU."""
    name = "wsss_affinity.layers.kernels.affinity"
    monkeypatch.setattr(layer, "available", lambda tensor: True)
    monkeypatch.setitem(sys.modules, name, kernels)
    monkeypatch.setattr(sys.modules["wsss_affinity.layers.kernels"], "affinity", kernels, False)


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affinities_equal_those_of_torch_ops(
    kernels, batch, channels, height, width, radius, dtype
):
    features = torch.randn(batch, channels, height, width, dtype=dtype)
    result = kernels.pairwise_affinity(features, radius)
    assert result.dtype == dtype
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(
        result, pairwise_affinity(features, radius), rtol=tolerance, atol=tolerance
    )


@shapes
def test_gradient_equals_that_of_torch_ops(kernels, batch, channels, height, width, radius):
    # few values, so that many differences are 0
    features = torch.randint(3, (batch, channels, height, width)).double().requires_grad_()
    affinity = pairwise_affinity(features, radius)
    upstream = torch.randn_like(affinity)
    (expected,) = torch.autograd.grad(affinity, features, upstream)
    weight = (upstream * affinity / -channels).detach()
    # what stands at pairs that leave the grid is not looked at
    weight[:, ~Neighborhood(radius).valid(height, width)] = torch.nan
    result = kernels.pairwise_affinity_backward(features.detach(), weight, radius)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(kernels, dtype):
    features = torch.randn(1, 30, 3, 4).to(dtype)
    exact = features.float()
    affinity = kernels.pairwise_affinity(features, 3)
    assert affinity.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(affinity.float(), pairwise_affinity(exact, 3), rtol=eps, atol=0)
    weight = torch.randn(1, len(Neighborhood(3)), 3, 4)
    gradient = kernels.pairwise_affinity_backward(features, weight, 3)
    assert gradient.dtype == dtype
    expected = kernels.pairwise_affinity_backward(exact, weight, 3)
    torch.testing.assert_close(gradient.float(), expected, rtol=eps, atol=1e-5)


def test_memory_layout_does_not_matter(kernels):
    features = torch.randn(1, 5, 4, 6)
    expected = kernels.pairwise_affinity(features, 3)
    last = features.to(memory_format=torch.channels_last)
    assert torch.equal(kernels.pairwise_affinity(last, 3), expected)


@pytest.mark.parametrize("shape", [(0, 5, 4, 4), (1, 5, 0, 4)])
def test_nothing_to_do(kernels, shape):
    features = torch.zeros(shape)
    affinity = kernels.pairwise_affinity(features, 3)
    assert affinity.shape == (shape[0], len(Neighborhood(3)), *shape[2:])
    assert kernels.pairwise_affinity_backward(features, affinity, 3).shape == shape


@pytest.mark.usefixtures("through_kernels")
def test_gradcheck_through_the_layer():
    # distinct values by construction: |f_i - f_j| has a kink at 0
    features = torch.randperm(18).double().view(1, 2, 3, 3).requires_grad_() / 7
    assert torch.autograd.gradcheck(pairwise_affinity, (features, 2), fast_mode=True)


@pytest.mark.usefixtures("through_kernels")
def test_the_layer_hands_over_to_the_kernels(kernels, monkeypatch):
    calls = []
    for name in ("pairwise_affinity", "pairwise_affinity_backward"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *a, name=name, kernel=kernel: calls.append(name) or kernel(*a)
        )
    features = torch.randn(1, 2, 3, 4, requires_grad=True)
    pairwise_affinity(features, 2).sum().backward()
    assert calls == ["pairwise_affinity", "pairwise_affinity_backward"]
