import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from wsss_affinity.layers import kernels
from wsss_affinity.layers import mean_field as module
from wsss_affinity.layers.mean_field import TILE, BilateralFilter, mean_field, sum_near_tiles

OPTIONS = {
    "gaussian_sxy": 3.0,
    "gaussian_compat": 3.0,
    "bilateral_sxy": 80.0,
    "bilateral_srgb": 13.0,
    "bilateral_compat": 10.0,
}


def scattered(batch=2, pixels=300, spread=12.0):
    """Features in two directions of position and three of colour, some pixels alike."""
    features = torch.rand(batch, pixels, 5) * torch.tensor([2, 3, spread, spread, spread])
    features[:, ::7] = features[:, :1].clone()
    return features.double()


def all_pairs(features, values):
    kernel = (-torch.cdist(features, features).square() / 2).exp()
    root = kernel.sum(-1, keepdim=True).sqrt()
    return kernel @ (values / root) / root


def hard_case(labels=4, size=(30, 40), seed=0, noise=15):
    """Image and scores that have little to do with each other: labels remain undecided."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels):
        values = torch.randn(1, channels, 5, 5, generator=generator)
        return torch.nn.functional.interpolate(values, size, mode="bicubic")[0]

    grain = noise * torch.randn(3, *size, generator=generator)
    image = (128 + 60 * smooth(3) + grain).clamp(0, 255).byte().permute(1, 2, 0)
    return image, smooth(labels).softmax(0)


def brute_force(image, scores, num_iterations, sxy=3.0, compats=(3.0, 10.0), widths=(80.0, 13.0)):
    """Mean field with all pairs of pixels written down, float64."""
    height, width = scores.shape[-2:]
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack(grid, -1).flatten(0, 1).double()
    colour = image.flatten(0, 1).double()
    near, alike = position / widths[0], colour / widths[1]
    unary = scores.double().clamp(1e-5, 1).log().flatten(1).T
    q = unary.softmax(1)
    for _ in range(num_iterations):
        blurred = all_pairs(position / sxy, q)
        filtered = all_pairs(torch.cat([near, alike], 1), q)
        q = (unary + compats[0] * blurred + compats[1] * filtered).softmax(1)
    return q.T.reshape(scores.shape)


@pytest.mark.parametrize("pixels", [1, TILE - 1, TILE, TILE + 1, 500])
def test_filter_equals_all_pairs(pixels):
    features = scattered(pixels=pixels)
    values = torch.randn(2, pixels, 3, dtype=torch.float64)
    result = BilateralFilter(features)(values)
    torch.testing.assert_close(result, all_pairs(features, values), rtol=0, atol=1e-9)


def test_tiles_far_apart_are_left_out_at_no_cost_in_accuracy():
    features = scattered(batch=1, pixels=20 * TILE, spread=60.0)
    bilateral = BilateralFilter(features)
    assert len(bilateral._near) < 0.8 * 20**2
    values = torch.randn(1, 20 * TILE, 2, dtype=torch.float64)
    difference = bilateral(values) - all_pairs(features, values)
    assert 0 < difference.abs().max() < 1e-5


def test_images_of_a_batch_do_not_mix():
    features = scattered()
    values = torch.randn(2, 300, 3, dtype=torch.float64)
    both = BilateralFilter(features)(values)
    for k in range(2):
        one = BilateralFilter(features[k : k + 1])(values[k : k + 1])
        torch.testing.assert_close(both[k : k + 1], one, rtol=0, atol=1e-12)


def test_pixels_all_alike_are_averaged():
    values = torch.randn(1, 200, 2)
    result = BilateralFilter(torch.full((1, 200, 5), 3.0))(values)
    torch.testing.assert_close(result, values.mean(1, keepdim=True).expand(-1, 200, -1))


def test_pixels_all_far_apart_stay_as_they_are():
    values = torch.randn(1, 200, 2)
    features = torch.randperm(200)[None, :, None] * 100.0
    torch.testing.assert_close(BilateralFilter(features)(values), values)


def test_filter_gradient():
    bilateral = BilateralFilter(scattered(pixels=130)[:1])
    values = torch.randn(1, 130, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bilateral, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(bilateral, values, fast_mode=True)


@pytest.mark.parametrize(("labels", "noise"), [(2, 0), (3, 10), (21, 25)])
def test_mean_field_equals_brute_force(labels, noise):
    image, scores = hard_case(labels, seed=labels, noise=noise)
    expected = {steps: brute_force(image, scores, steps) for steps in (1, 10)}
    # undecided pixels there are, which small errors would move
    assert (expected[10].amax(0) < 0.9).float().mean() > 0.01
    exact = mean_field(image[None], scores.double()[None, None], [1, 10], **OPTIONS)
    float32 = mean_field(image[None], scores[None, None], [1, 10], **OPTIONS)
    for steps, precise, ordinary in zip((1, 10), exact, float32, strict=True):
        torch.testing.assert_close(precise[0, 0], expected[steps], rtol=0, atol=1e-8)
        # 1e-4 was seen
        torch.testing.assert_close(ordinary[0, 0].double(), expected[steps], rtol=0, atol=5e-4)


def test_narrow_kernels_keep_their_digits():
    image, scores = hard_case()
    widths = (5.0, 0.5)
    options = OPTIONS | {"bilateral_sxy": widths[0], "bilateral_srgb": widths[1]}
    (result,) = mean_field(image[None], scores[None, None], [1], **options)
    expected = brute_force(image, scores, 1, widths=widths)
    torch.testing.assert_close(result[0, 0].double(), expected, rtol=0, atol=1e-5)


def test_mean_field_of_stacks_and_steps_in_any_order():
    image, first = hard_case(3)
    second = first.flip(0)
    three, none = mean_field(image[None], torch.stack([first, second])[None], [3, 0], **OPTIONS)
    assert three.shape == none.shape == (1, 2, 3, 30, 40)
    torch.testing.assert_close(none[0, 0], first)
    for stack, result in ((first, three[0, 0]), (second, three[0, 1])):
        expected = brute_force(image, stack, 3)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)


def test_mean_field_gradient():
    image, scores = hard_case(2, (4, 5))
    scores = scores.double()[None, None].requires_grad_()
    step = lambda s: mean_field(image[None], s, [2], **OPTIONS)[0]  # noqa: E731
    assert torch.autograd.gradcheck(step, scores)


def test_autocast_changes_nothing():
    image, scores = hard_case()
    expected = mean_field(image[None], scores[None, None], [2], **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        result = mean_field(image[None], scores[None, None], [2], **OPTIONS)
    assert torch.equal(result[0], expected[0])


def two_halves(features, values, starts, near):
    """The arithmetic of the kernel: weights and values as sums of two bfloat16 numbers."""
    weights = torch.zeros(len(features) * TILE, len(features) * TILE)
    flat = features.flatten(0, 1)
    for i in range(len(features)):
        for j in near[starts[i] : starts[i + 1]].tolist():
            here, there = slice(i * TILE, (i + 1) * TILE), slice(j * TILE, (j + 1) * TILE)
            weights[here, there] = (-(flat[here, None] - flat[there]).square().sum(-1)).exp2()

    def halves(x):
        high = x.bfloat16().float()
        return high, (x - high).bfloat16().float()

    (w, w_rest), (v, v_rest) = halves(weights), halves(values.flatten(0, 1))
    return (w @ v + w @ v_rest + w_rest @ v).reshape(values.shape)


@pytest.mark.parametrize(("labels", "noise"), [(2, 0), (3, 10), (21, 25)])
def test_sums_of_two_bfloat16_are_precise_enough(monkeypatch, labels, noise):
    image, scores = hard_case(labels, seed=labels, noise=noise)
    monkeypatch.setattr(module, "sum_near_tiles", two_halves)
    (result,) = mean_field(image[None], scores[None, None], [10], **OPTIONS)
    difference = (result[0, 0] - brute_force(image, scores, 10)).abs().max()
    # 5e-5 was seen
    assert 1e-7 < difference < 5e-4


KERNEL = """
import torch
from wsss_affinity.layers.mean_field import BilateralFilter, sum_near_tiles
from wsss_affinity.layers.kernels import dense_crf as kernels

# the interpreter multiplies bfloat16 as if they were integers
kernels._HALF = torch.float16
torch.manual_seed(0)
features = torch.rand(2, 200, 5) * torch.tensor([2, 3, 15, 15, 15])
bilateral = BilateralFilter(features)
lists = bilateral._starts, bilateral._near
assert len(bilateral._tiles) == 4
for channels in (1, 3, 17, 70):
    values = torch.randn(4, 128, channels)
    result = kernels.sum_near_tiles(bilateral._tiles, values, *lists)
    expected = sum_near_tiles(bilateral._tiles.double(), values.double(), *lists)
    assert expected.abs().max() > 3
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
print("all agree")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, if no GPU")
def test_kernel_in_the_interpreter_agrees_with_torch():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "all agree\n"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_taken_for_float32_where_kernels_are_available(monkeypatch, there, dtype):
    taken = []
    kernel = SimpleNamespace(sum_near_tiles=lambda *a: taken.append(a) or sum_near_tiles(*a))
    monkeypatch.setitem(sys.modules, "wsss_affinity.layers.kernels.dense_crf", kernel)
    monkeypatch.setattr(kernels, "dense_crf", kernel, raising=False)
    monkeypatch.setattr(module, "available", lambda tensor: there)
    features, values = scattered().to(dtype), torch.randn(2, 300, 1, dtype=dtype)
    result = BilateralFilter(features)(values)
    torch.testing.assert_close(result, all_pairs(features, values), rtol=0, atol=1e-4)
    # once for the normalisation
    assert len(taken) == (2 if there and dtype == torch.float32 else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 21, 70])
def test_kernel_agrees_with_torch(channels):
    from wsss_affinity.layers.kernels import dense_crf as kernels

    features = scattered(pixels=1000).float().cuda()
    bilateral = BilateralFilter(features)
    values = torch.randn(16, TILE, channels, device="cuda")
    lists = bilateral._starts, bilateral._near
    result = kernels.sum_near_tiles(bilateral._tiles, values, *lists)
    expected = sum_near_tiles(bilateral._tiles.double(), values.double(), *lists)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-3)
