import math

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("features", [torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=int)])
def test_features_are_checked(features):
    with pytest.raises(ValueError, match=r"floating point of shape \(B, D, H, W\), got torch"):
        pairwise_affinity(features)


@pytest.mark.parametrize("make", [PairwiseAffinity, lambda r: pairwise_affinity(FEATURES, r)])
def test_radius_is_checked(make):
    with pytest.raises(ValueError, match="radius must be a whole number of at least 2, got 1"):
        make(1)


FEATURES = torch.zeros(1, 1, 3, 3)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    features = torch.randn(2, 16, 20, 30)
    upstream = torch.randn(2, 34, 20, 30)
    results = []
    for device in ("cpu", "cuda"):
        leaf = features.to(device).detach().requires_grad_()
        affinity = pairwise_affinity(leaf)
        (affinity * upstream.to(device)).sum().backward()
        results.append((affinity.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
