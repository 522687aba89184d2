import math

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import wsss_affinity.layers.affinity as layer
from wsss_affinity.layers import Neighborhood, PairwiseAffinity, pairwise_affinity


def reference(features, radius):
    """Plain loops in float64."""
    features = features.double().numpy()
    batch, _, height, width = features.shape
    pairs = Neighborhood(radius).pairs
    out = np.zeros((batch, len(pairs), height, width))
    for b in range(batch):
        for k, (dy, dx) in enumerate(pairs):
            for y in range(height):
                for x in range(width):
                    if y + dy < height and 0 <= x + dx < width:
                        difference = features[b, :, y, x] - features[b, :, y + dy, x + dx]
                        out[b, k, y, x] = math.exp(-np.abs(difference).mean())
    return torch.from_numpy(out)


SHAPES = [
    (2, 7, 6, 9, 5),
    (1, 3, 3, 4, 5),  # the grid is smaller than the radius
    (1, 1, 1, 1, 5),
    (1, 2, 1, 6, 3),
    (2, 4, 5, 1, 2),
]


@pytest.mark.parametrize(("batch", "channels", "height", "width", "radius"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_loops(batch, channels, height, width, radius, dtype):
    features = torch.randn(batch, channels, height, width).to(dtype)
    result = pairwise_affinity(features, radius)
    assert result.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(
        result.double(), reference(features, radius), rtol=tolerance, atol=tolerance
    )


def test_default_radius_is_5():
    features = torch.randn(1, 2, 7, 7)
    assert torch.equal(pairwise_affinity(features), pairwise_affinity(features, 5))
    assert pairwise_affinity(features).shape == (1, 34, 7, 7)


@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "radius"), [(2, 3, 4, 5, 3), (1, 2, 2, 3, 5)]
)
def test_gradcheck(batch, channels, height, width, radius):
    # distinct values by construction: |f_i - f_j| has a kink at 0
    count = batch * channels * height * width
    features = torch.randperm(count).double().view(batch, channels, height, width) / 7
    features.requires_grad_()
    assert torch.autograd.gradcheck(pairwise_affinity, (features, radius))


def test_gradient_equals_autograd_through_plain_indexing():
    features = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 34, 6, 7, dtype=torch.float64)
    (ours,) = torch.autograd.grad((pairwise_affinity(features) * upstream).sum(), features)
    total = features.new_zeros(())
    for k, (dy, dx) in enumerate(Neighborhood().pairs):
        for y in range(6 - dy):
            for x in range(max(0, -dx), min(7, 7 - dx)):
                distance = (features[:, :, y, x] - features[:, :, y + dy, x + dx]).abs().mean(1)
                total = total + ((-distance).exp() * upstream[:, k, y, x]).sum()
    (expected,) = torch.autograd.grad(total, features)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_equal_features_have_affinity_1_inside_and_0_outside():
    result = pairwise_affinity(torch.full((1, 4, 6, 5), 3.25), radius=4)
    assert torch.equal(result[0], Neighborhood(4).valid(6, 5).float())


def test_equal_features_have_gradient_0():
    features = torch.full((1, 4, 4, 5), 3.25, requires_grad=True)
    pairwise_affinity(features, radius=3).sum().backward()
    assert torch.equal(features.grad, torch.zeros(1, 4, 4, 5))


def test_known_value():
    # two pixels, two channels: exp(-(1 + 3) / 2)
    features = torch.tensor([0.0, 1.0, 5.0, 2.0]).view(1, 2, 1, 2)
    result = pairwise_affinity(features, radius=2)
    assert result[0, 0, 0, 0].item() == pytest.approx(math.exp(-2))
    assert torch.count_nonzero(result) == 1


def test_batch_equals_loop_over_images():
    features = torch.randn(3, 5, 8, 6)
    batched = pairwise_affinity(features)
    assert torch.equal(batched, torch.cat([pairwise_affinity(f[None]) for f in features]))


def test_empty_batch():
    assert pairwise_affinity(torch.zeros(0, 5, 4, 4)).shape == (0, 34, 4, 4)


def test_module_agrees_and_prints_its_radius():
    features = torch.randn(1, 4, 6, 6)
    layer = PairwiseAffinity(radius=3)
    assert torch.equal(layer(features), pairwise_affinity(features, 3))
    assert repr(layer) == "PairwiseAffinity(radius=3)"


@pytest.mark.parametrize(
    "features",
    [torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=int), torch.zeros(2, 0, 4, 4)],
)
def test_features_are_checked(features):
    with pytest.raises(
        ValueError, match=r"floating point of shape \(B, D, H, W\) with D of at least 1, got torch"
    ):
        pairwise_affinity(features)


@pytest.mark.parametrize("make", [PairwiseAffinity, lambda r: pairwise_affinity(FEATURES, r)])
def test_radius_is_checked(make):
    with pytest.raises(ValueError, match="radius must be a whole number of at least 2, got 1"):
        make(1)


FEATURES = torch.zeros(1, 1, 3, 3)


def test_blocks_of_channels_change_nothing(monkeypatch):
    features = torch.randn(2, 11, 5, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 34, 5, 6, dtype=torch.float64)
    results = []
    # all channels at once; four, four and three; one by one
    for size in (2**16, 4 * 30, 1):
        monkeypatch.setattr(layer, "_BLOCK", size)
        affinity = pairwise_affinity(features)
        (gradient,) = torch.autograd.grad(affinity, features, upstream)
        results.append((affinity.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(results[2], results[0], rtol=1e-13, atol=1e-13)


def test_memory_layout_does_not_matter():
    features = torch.randn(2, 5, 6, 7)
    expected = pairwise_affinity(features)
    assert torch.equal(pairwise_affinity(features.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(pairwise_affinity(features.transpose(2, 3).contiguous().mT), expected)


def test_gradient_of_pairs_that_leave_the_grid_is_ignored():
    features = torch.randn(1, 3, 5, 6, requires_grad=True)
    upstream = torch.randn(1, 34, 5, 6)
    (expected,) = torch.autograd.grad(pairwise_affinity(features), features, upstream)
    upstream[:, ~Neighborhood().valid(5, 6)] = math.nan
    (gradient,) = torch.autograd.grad(pairwise_affinity(features), features, upstream)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    features = torch.randn(2, 600, 6, 7).to(dtype).requires_grad_()
    upstream = torch.randn(2, 34, 6, 7)
    affinity = pairwise_affinity(features)
    exact = pairwise_affinity(features.detach().float())
    assert affinity.dtype == dtype
    assert torch.equal(affinity, exact.to(dtype))
    (gradient,) = torch.autograd.grad(affinity, features, upstream.to(dtype))
    assert gradient.dtype == dtype
    leaf = features.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(pairwise_affinity(leaf), leaf, upstream)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        gradient.float(), expected, rtol=2 * eps, atol=4 * eps * expected.abs().max().item()
    )


def test_autocast_changes_nothing_but_the_dtype_it_is_given():
    features = torch.randn(1, 6, 5, 5, requires_grad=True)
    expected = torch.autograd.grad(pairwise_affinity(features).sum(), features)
    with torch.autocast("cpu", torch.bfloat16):
        affinity = pairwise_affinity(features)
        assert affinity.dtype == torch.float32
        mixed = torch.nn.functional.conv2d(features, torch.randn(8, 6, 1, 1))
        assert pairwise_affinity(mixed).dtype == torch.bfloat16
    assert torch.equal(*torch.autograd.grad(affinity.sum(), features), *expected)


def test_compiled_code_breaks_its_graph_here_and_goes_on():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(features):
        return pairwise_affinity(2 * features, 3) + 1

    features = torch.randn(1, 4, 5, 6, requires_grad=True)
    compiled = torch.compile(function, backend=backend)(features)
    assert len(graphs) == 2
    assert torch.equal(compiled, function(features))
    found = torch.autograd.grad(compiled.square().sum(), features)
    assert torch.equal(*found, *torch.autograd.grad(function(features).square().sum(), features))


def test_func_grad_works_and_vmap_is_refused():
    features = torch.randn(2, 4, 5, 6, requires_grad=True)
    found = torch.func.grad(lambda f: pairwise_affinity(f).sum())(features.detach())
    assert torch.equal(found, *torch.autograd.grad(pairwise_affinity(features).sum(), features))
    with pytest.raises(ValueError, match=r"cannot be mapped by torch\.func\.vmap: .* fold the"):
        torch.func.vmap(pairwise_affinity)(features[:, None])


def test_fake_tensors_before_and_after_real_ones():
    for _ in range(2):
        with FakeTensorMode():
            for device in ("cpu", "cuda"):
                affinity = pairwise_affinity(torch.rand(2, 3, 5, 8, device=device))
                assert affinity.shape == (2, 34, 5, 8)
                assert affinity.device.type == device
        features = torch.randn(1, 2, 5, 8, dtype=torch.float64)
        torch.testing.assert_close(pairwise_affinity(features), reference(features, 5))


def test_exported_equals_eager():
    features = torch.randn(1, 2, 4, 5)
    exported = torch.export.export(PairwiseAffinity(3), (features,), strict=False).module()
    other = torch.randn(1, 2, 4, 5)
    torch.testing.assert_close(exported(other), pairwise_affinity(other, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stays_in_the_pairs_of_its_pixel(value):
    features = torch.randn(2, 3, 6, 7)
    exact = pairwise_affinity(features, 3)
    features[0, 1, 2, 3] = value
    result = pairwise_affinity(features, 3)
    touched = torch.zeros(2, len(Neighborhood(3)), 6, 7, dtype=torch.bool)
    for k, (dy, dx) in enumerate(Neighborhood(3).pairs):
        touched[0, k, 2, 3] = True
        if dy <= 2:
            touched[0, k, 2 - dy, 3 - dx] = True
    assert torch.equal(result[~touched], exact[~touched])
    # next to an infinite value, the affinity is 0
    assert bool((result[touched].isnan() if math.isnan(value) else result[touched] == 0).all())


def test_second_derivatives_are_refused():
    features = torch.randn(1, 4, 5, 6, requires_grad=True)
    total = pairwise_affinity(features).square().sum()
    (gradient,) = torch.autograd.grad(total, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 16, 20, 30), (8, 448, 56, 56), (1, 3, 300, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_cuda_equals_cpu(shape, dtype):
    features = torch.randn(shape).to(dtype)
    upstream = torch.randn(shape[0], 34, *shape[2:]).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        leaf = features.to(device).detach().requires_grad_()
        affinity = pairwise_affinity(leaf)
        affinity.backward(upstream.to(device))
        results.append((affinity.detach().cpu(), leaf.grad.cpu()))
    half = dtype == torch.float16
    tolerance = {"rtol": 2e-3, "atol": 5e-3} if half else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(results[0], results[1], **tolerance)


@pytest.mark.gpu
def test_memory_on_cuda_is_features_gradient_and_affinities():
    features = torch.randn(8, 448, 56, 56, device="cuda", requires_grad=True)
    pairwise_affinity(features[:1]).sum().backward()
    features.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pairwise_affinity(features).sum().backward()
    planes = 8 * 34 * 56 * 56
    assert torch.cuda.max_memory_allocated() - before <= 4 * (features.numel() + 5 * planes)
