import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from wsss_affinity.layers import Neighborhood, RandomWalk, pairwise_affinity, random_walk

METHODS = ["auto", "power", "chebyshev", "dense"]


def transition(planes, radius=5, beta=8.0, border="full"):
    """T of one image, columns normalised, by plain loops in float64; and the column sums."""
    _, height, width = planes.shape
    matrix = np.eye(height * width)
    rim = radius - 1
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for y in range(height):
            for x in range(width):
                inside = y + dy < height and 0 <= x + dx < width
                if border == "psa":
                    inside = inside and y < height - rim and rim <= x < width - rim
                if inside:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    matrix[i, j] = matrix[j, i] = planes[k, y, x].item() ** beta
    return matrix / matrix.sum(0), matrix.sum(0)


def reference(scores, affinity, *, num_steps=256, **options):
    walked = []
    for x, planes in zip(scores, affinity, strict=True):
        power = np.linalg.matrix_power(transition(planes, **options)[0], num_steps)
        walked.append(torch.from_numpy(x.double().numpy().reshape(len(x), -1) @ power))
    return torch.stack(walked).view(scores.shape)


def inputs(batch, channels, height, width, radius=5, dtype=torch.float64, contrast=1.0):
    features = contrast * torch.randn(batch, 3, height, width, dtype=dtype)
    scores = torch.rand(batch, channels, height, width, dtype=dtype)
    return scores, pairwise_affinity(features, radius)


SHAPES = [
    (2, 3, 9, 11, 5),
    (1, 2, 3, 2, 5),  # smaller than the radius
    (1, 1, 1, 1, 5),
    (2, 1, 1, 7, 3),
    (1, 4, 8, 1, 2),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize(("batch", "channels", "height", "width", "radius"), SHAPES)
def test_equals_loops(batch, channels, height, width, radius, border, method):
    scores, affinity = inputs(batch, channels, height, width, radius)
    result = random_walk(scores, affinity, radius=radius, method=method, border=border)
    expected = reference(scores, affinity, radius=radius, border=border)
    # auto is chebyshev here, good to its tol; the other two are exact
    tolerance = 5e-5 if method in ("auto", "chebyshev") else 1e-11
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 16, 101])
@pytest.mark.parametrize("method", METHODS)
def test_equals_loops_for_any_number_of_steps(num_steps, method):
    scores, affinity = inputs(1, 2, 6, 7)
    result = random_walk(scores, affinity, num_steps=num_steps, method=method)
    expected = reference(scores, affinity, num_steps=num_steps)
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize("beta", [0.5, 1, 2.5, 8, 16])
@pytest.mark.parametrize("method", ["auto", "power", "chebyshev"])
def test_float32_agrees_with_dense_float64(method, beta, border):
    scores, affinity = inputs(2, 5, 17, 20, dtype=torch.float32, contrast=0.5)
    options = {"beta": beta, "border": border}
    result = random_walk(scores, affinity, method=method, **options)
    dense = random_walk(scores.double(), affinity.double(), method="dense", **options)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), dense, rtol=0, atol=1e-4)


def test_dense_equals_loops_for_beta():
    scores, affinity = inputs(1, 2, 5, 6)
    result = random_walk(scores, affinity, beta=0.7, method="dense", num_steps=9)
    torch.testing.assert_close(result, reference(scores, affinity, beta=0.7, num_steps=9))


@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_map_stays_constant(method, border, dtype):
    _, affinity = inputs(2, 1, 12, 13, dtype=dtype)
    scores = torch.full((2, 3, 12, 13), 0.37, dtype=dtype)
    result = random_walk(scores, affinity, method=method, border=border)
    # float32 rounds nearly isolated pixels to the same side 256 times
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(result, scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize("beta", [2, 4, 8])
@pytest.mark.parametrize("method", ["power", "chebyshev"])
def test_pixels_that_are_nearly_cut_off_in_float32(method, beta):
    features = 2 * torch.randn(1, 64, 16, 24, dtype=torch.float64)
    affinity, scores = pairwise_affinity(features), torch.rand(1, 3, 16, 24, dtype=torch.float64)
    exact = random_walk(scores, affinity, beta=beta, method=method)
    result = random_walk(scores.float(), affinity.float(), beta=beta, method=method)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-5)
    if beta == 8:
        # weights of 1e-8 to 1e-6: beside a diagonal of 1 they would be lost, with 1e-4 of error
        assert 1e-9 < (affinity[affinity > 0] ** 8).mean() < 1e-6
        assert 1e-6 < (exact - scores).abs().max() < 1e-2
    constant = torch.full_like(scores, 0.37).float()
    result = random_walk(constant, affinity.float(), beta=beta, method=method)
    torch.testing.assert_close(result, constant, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_zero_steps_return_a_copy(method):
    scores, affinity = inputs(1, 2, 5, 6)
    result = random_walk(scores, affinity, num_steps=0, method=method)
    assert torch.equal(result, scores)
    assert result.data_ptr() != scores.data_ptr()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [5, 256])
def test_zero_affinity_moves_nothing(method, num_steps):
    scores, affinity = inputs(2, 3, 6, 7)
    result = random_walk(scores, torch.zeros_like(affinity), method=method, num_steps=num_steps)
    torch.testing.assert_close(result, scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_an_isolated_pixel_keeps_its_score_and_gives_none_away(method):
    scores, affinity = inputs(1, 2, 9, 9)
    y, x = 4, 3
    for k, (dy, dx) in enumerate(Neighborhood().pairs):
        affinity[0, k, y, x] = 0
        if y - dy >= 0 and 0 <= x - dx < 9:
            affinity[0, k, y - dy, x - dx] = 0
    result = random_walk(scores, affinity, method=method)
    torch.testing.assert_close(result[..., y, x], scores[..., y, x], rtol=0, atol=1e-12)
    scores[..., y, x] = 100
    other = random_walk(scores, affinity, method=method)
    other[..., y, x] = result[..., y, x]
    torch.testing.assert_close(other, result, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_psa_border_leaves_the_corner_pixels_alone(method):
    scores, affinity = inputs(1, 1, 13, 15)
    result = random_walk(scores, affinity, method=method, border="psa")
    corners = [(0, 0), (0, 3), (11, 0), (11, 14), (12, 0), (12, 1), (12, 13), (12, 14)]
    for y, x in corners:
        assert result[0, 0, y, x].item() == pytest.approx(scores[0, 0, y, x].item(), abs=1e-12)
    assert abs(result[0, 0, 0, 4] - scores[0, 0, 0, 4]).item() > 1e-3
    full = random_walk(scores, affinity, method=method)
    assert abs(full[0, 0, 0, 0] - scores[0, 0, 0, 0]).item() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_two_regions_without_affinity_between_them_reach_their_own_mean(method):
    scores = torch.rand(1, 1, 4, 6, dtype=torch.float64)
    features = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    features[..., 3:] = 1000
    result = random_walk(scores, pairwise_affinity(features, 9), radius=9, method=method)
    for half in (slice(0, 3), slice(3, 6)):
        # within a half every pixel sees every other, so one step is the mean
        expected = scores[..., half].mean().expand(1, 1, 4, 3)
        torch.testing.assert_close(result[..., half], expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("method", METHODS)
def test_batch_equals_loop_over_images(method):
    scores, affinity = inputs(3, 4, 8, 7)
    batched = random_walk(scores, affinity, method=method)
    looped = [
        random_walk(s[None], a[None], method=method) for s, a in zip(scores, affinity, strict=True)
    ]
    torch.testing.assert_close(batched, torch.cat(looped), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_walks_add_up(method):
    scores, affinity = inputs(1, 2, 7, 8)
    half = random_walk(scores, affinity, num_steps=40, method=method, tol=1e-12)
    twice = random_walk(half, affinity, num_steps=60, method=method, tol=1e-12)
    once = random_walk(scores, affinity, num_steps=100, method=method, tol=1e-12)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_the_degree_weighted_total_is_kept(method):
    scores, affinity = inputs(1, 2, 7, 8)
    degree = torch.from_numpy(transition(affinity[0])[1]).view(7, 8)
    before = (degree * scores[0]).sum((-2, -1))
    after = (degree * random_walk(scores, affinity, method=method)[0]).sum((-2, -1))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_values_at_pairs_outside_the_grid_are_ignored(method):
    scores, affinity = inputs(1, 2, 6, 7)
    outside = ~Neighborhood().valid(6, 7)
    polluted = torch.where(outside, torch.full_like(affinity, 0.9), affinity)
    results = [random_walk(scores, a, method=method) for a in (affinity, polluted)]
    assert torch.equal(*results)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("border", ["full", "psa"])
def test_padded_images_of_different_sizes_walk_as_by_themselves(border, method):
    # to the left, the right, above and below each, on a grid of 9 × 11
    sizes = {
        (9, 11): (0, 0, 0, 0),
        (6, 8): (0, 3, 0, 3),
        (8, 10): (1, 0, 1, 0),
        (1, 1): (9, 1, 0, 8),
    }
    scores, affinity, expected = [], [], []
    for size, padding in sizes.items():
        x, planes = inputs(1, 2, *size)
        scores.append(F.pad(x, padding, value=3))
        affinity.append(F.pad(planes * Neighborhood().valid(*size, border), padding))
        alone = random_walk(x, planes, border=border, method=method)
        expected.append(F.pad(alone, padding, value=3))
    walked = random_walk(torch.cat(scores), torch.cat(affinity), method=method)
    torch.testing.assert_close(walked, torch.cat(expected), rtol=0, atol=1e-12)


def test_the_psa_border_of_a_padded_grid_is_not_that_of_the_image():
    x, planes = inputs(1, 2, 8, 10)
    alone = random_walk(x, planes, border="psa")
    padded = [F.pad(tensor, (1, 0, 1, 0)) for tensor in (x, planes)]
    assert (random_walk(*padded, border="psa")[..., 1:, 1:] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_nan_scores_stay_in_their_channel_and_image(method):
    scores, affinity = inputs(2, 3, 6, 7)
    expected = random_walk(scores, affinity, method=method)
    scores[0, 1, 2, 3] = math.nan
    result = random_walk(scores, affinity, method=method)
    assert bool(result[0, 1].isnan().all())
    expected[0, 1] = result[0, 1] = 0
    assert torch.equal(result, expected)


def test_chebyshev_keeps_tol_in_the_degree_weighted_norm():
    scores, affinity = inputs(1, 3, 10, 12, contrast=0.7)
    degree = torch.from_numpy(transition(affinity[0])[1]).view(10, 12)
    exact = random_walk(scores, affinity, method="dense")

    def norm(x):
        return (degree * x**2).sum((-2, -1)).sqrt()

    for tol in (1e-2, 1e-4, 1e-6, 1e-10):
        result = random_walk(scores, affinity, method="chebyshev", tol=tol)
        assert bool((norm(result - exact) <= tol * norm(scores) + 1e-11).all())


def test_auto_takes_the_method_with_fewer_products():
    scores, affinity = inputs(1, 2, 6, 7)
    for num_steps, method in ((256, "chebyshev"), (60, "chebyshev"), (1, "power"), (6, "power")):
        expected = random_walk(scores, affinity, num_steps=num_steps, method=method)
        assert torch.equal(random_walk(scores, affinity, num_steps=num_steps), expected)
    # chebyshev at 6 steps would round differently, so equality above does tell them apart
    other = random_walk(scores, affinity, num_steps=6, method="chebyshev")
    assert not torch.equal(random_walk(scores, affinity, num_steps=6), other)


# --- rounded weights ----------------------------------------------------------------------------


def rounded(scores, affinity, storage, num_steps):
    """The walk of one image with weights rounded after normalisation, by plain loops."""
    planes = affinity[0]
    _, height, width = planes.shape
    matrix, degree = transition(planes)
    symmetric = matrix * degree**0.5 / degree[:, None] ** 0.5
    symmetric = torch.from_numpy(symmetric).to(storage).double().numpy()
    root = degree**0.5
    np.fill_diagonal(symmetric, 0)
    np.fill_diagonal(symmetric, 1 - symmetric @ root / root)
    power = np.linalg.matrix_power(symmetric, num_steps)
    walked = (scores[0].numpy().reshape(-1, height * width) * root) @ power / root
    return torch.from_numpy(walked).view(scores.shape)


STORAGE = pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])


@STORAGE
@pytest.mark.parametrize("method", ["auto", "power", "chebyshev"])
def test_rounded_weights_equal_loops(method, storage):
    scores, affinity = inputs(1, 2, 6, 7)
    options = {"method": method, "num_steps": 20, "tol": 1e-13}
    result = random_walk(scores, affinity, storage=storage, **options)
    expected = rounded(scores, affinity, storage, 20)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(result, random_walk(scores, affinity, **options), rtol=0, atol=1e-6)
    single = random_walk(scores.float(), affinity.float(), storage=storage, **options)
    # some weights are rounded the other way in float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=5e-4)


@STORAGE
@pytest.mark.parametrize("method", ["power", "chebyshev"])
@pytest.mark.parametrize("contrast", [0.1, 1.0, 2.0])
def test_rounded_weights_walk_nearly_alike_and_keep_constants(contrast, method, storage):
    scores, affinity = inputs(1, 3, 47, 63, dtype=torch.float32, contrast=contrast)
    scores[:, 0] = 0.37
    result = random_walk(scores, affinity, method=method, storage=storage)
    torch.testing.assert_close(result[:, 0], scores[:, 0], rtol=0, atol=2e-5)
    exact = random_walk(scores.double(), affinity.double(), method=method)
    # what the docstring tells
    tolerance = 2e-4 if storage == torch.float16 else 1e-3
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=tolerance)


@STORAGE
@pytest.mark.parametrize("method", ["power", "chebyshev"])
def test_gradients_of_rounded_weights(method, storage):
    scores, affinity = inputs(2, 2, 5, 6)
    options = {"method": method, "num_steps": 30}
    upstream = torch.rand_like(scores)
    gradients = []
    for kept in (None, storage):
        leaves = scores.clone().requires_grad_(), affinity.clone().requires_grad_()
        walked = random_walk(*leaves, storage=kept, **options)
        gradients.append(torch.autograd.grad((walked * upstream).sum(), leaves))
        # the walk is linear in the scores
        product = (gradients[-1][0] * scores).sum()
        torch.testing.assert_close(product, (walked * upstream).sum().detach())
    # the rounding itself has no gradient, so that the other one is nearly as without
    for exact, found in zip(*gradients, strict=True):
        assert not torch.equal(found, exact)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-2 * exact.abs().max().item())


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize(("method", "num_steps"), [("power", 3), ("chebyshev", 12), ("dense", 3)])
@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "radius"),
    [(2, 2, 3, 4, 3), (1, 2, 2, 2, 5), (1, 1, 1, 3, 2), (1, 1, 5, 6, 3)],
)
def test_gradcheck(batch, channels, height, width, radius, method, num_steps, border):
    planes = len(Neighborhood(radius))
    scores = torch.rand(batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    affinity = torch.rand(batch, planes, height, width, dtype=torch.float64) * 0.8 + 0.1
    affinity.requires_grad_()

    def walk(s, a):
        options = {"radius": radius, "beta": 1.5, "num_steps": num_steps, "tol": 1e-3}
        return random_walk(s, a, method=method, border=border, **options)

    assert torch.autograd.gradcheck(walk, (scores, affinity), fast_mode=height * width > 20)


@pytest.mark.parametrize("method", ["power", "chebyshev"])
def test_gradients_of_the_full_walk_equal_those_of_dense(method):
    scores, affinity = inputs(2, 3, 7, 8)
    upstream = torch.rand_like(scores)
    gradients = []
    for chosen in (method, "dense"):
        leaves = [scores.clone().requires_grad_(), affinity.clone().requires_grad_()]
        result = random_walk(*leaves, method=chosen, tol=1e-10)
        gradients.append(torch.autograd.grad((result * upstream).sum(), leaves))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["power", "chebyshev"])
def test_gradients_of_the_scores_alone_equal_those_of_dense(method):
    scores, affinity = inputs(2, 3, 7, 8)
    upstream = torch.rand_like(scores).mT.contiguous().mT
    gradients = []
    for chosen in (method, "dense"):
        leaf = scores.clone().requires_grad_()
        result = random_walk(leaf, affinity, method=chosen, tol=1e-10)
        gradients.append(torch.autograd.grad(result, leaf, upstream)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["power", "chebyshev", "dense"])
@pytest.mark.parametrize("beta", [0.5, 1, 8])
def test_gradient_is_finite_at_affinity_0(method, beta):
    scores, affinity = inputs(1, 2, 5, 5)
    affinity[:, ::2] = 0
    affinity.requires_grad_()
    random_walk(scores, affinity, beta=beta, method=method).square().sum().backward()
    assert bool(affinity.grad.isfinite().all())
    assert not affinity.grad[:, ::2].any()


@pytest.mark.parametrize("method", ["power", "chebyshev", "dense"])
def test_one_input_may_be_constant(method):
    scores, affinity = inputs(1, 2, 5, 5)
    for leaf, arguments in ((scores, (scores, affinity)), (affinity, (scores, affinity))):
        scores.requires_grad_(leaf is scores)
        affinity.requires_grad_(leaf is affinity)
        random_walk(*arguments, method=method).square().sum().backward()
        assert leaf.grad.abs().sum().item() > 0


@pytest.mark.parametrize("method", ["power", "chebyshev"])
def test_memory_of_gradients_does_not_grow_with_the_steps(method):
    scores, affinity = inputs(1, 3, 9, 10)
    leaves = scores.requires_grad_(), affinity.requires_grad_()

    def measure(num_steps):
        """Bytes kept for the backward pass, and of the largest tensor that it makes."""
        saved = {}

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = random_walk(*leaves, method=method, num_steps=num_steps)
        with LargestTensor() as largest:
            result.sum().backward()
        return sum(saved.values()), 8 * largest.numel

    kept, made = measure(16)
    assert measure(256) == measure(1024) == (kept, made)
    pixel = 9 * 10 * 8
    # the planes a few times over, for beta and the degrees, the scores likewise
    assert kept <= (7 * 35 + 8 * 3) * pixel
    # both directions of the pairs, or the outer products of four steps
    assert made <= 69 * pixel


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_walk(method, dtype):
    scores, affinity = inputs(1, 2, 6, 7, dtype=torch.float32)
    results = []
    for enabled in (False, True):
        leaves = [x.clone().requires_grad_() for x in (scores, affinity)]
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            walked = random_walk(*leaves, method=method)
        assert walked.dtype == torch.float32
        gradients = torch.autograd.grad(walked.square().sum(), leaves)
        results.append((walked.detach(), *gradients))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["power", "chebyshev"])
def test_half_precision_affinities_get_gradients(method):
    scores, affinity = inputs(1, 2, 6, 7, dtype=torch.float32)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in (scores, affinity)]
        walked = random_walk(*leaves, method=method)
        gradients.append(torch.autograd.grad(walked.float().sum(), leaves))
    assert {g.dtype for g in gradients[1]} == {torch.bfloat16}
    for exact, half in zip(*gradients, strict=True):
        torch.testing.assert_close(half.float(), exact, rtol=1e-2, atol=1e-2)


def test_compiled():
    layer = RandomWalk(radius=3, num_steps=20)
    scores, affinity = inputs(2, 2, 5, 6, radius=3)
    results = []
    for walk in (layer, torch.compile(layer, backend="eager")):
        leaves = [x.clone().requires_grad_() for x in (scores, affinity)]
        walked = walk(*leaves)
        results.append((walked.detach(), *torch.autograd.grad(walked.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="this torch does not say that it exports"
)
def test_export_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"^random_walk cannot be exported: its graph would be"):
        torch.export.export(
            RandomWalk(), (torch.rand(1, 2, 6, 8), torch.rand(1, 34, 6, 8)), strict=False
        )


def test_vmap_is_refused_in_a_sentence():
    scores, affinity = inputs(3, 2, 5, 6)
    with pytest.raises(ValueError, match=r"cannot be mapped by torch\.func\.vmap: .* fold the"):
        torch.func.vmap(random_walk)(scores[:, None], affinity[:, None])
    with pytest.raises(ValueError, match=r"cannot be mapped by torch\.func\.vmap"):
        torch.func.vmap(lambda a: random_walk(scores[:1], a))(affinity[:, None])


def test_fake_tensors_are_refused_and_leave_nothing_behind():
    scores, affinity = inputs(1, 2, 5, 13)
    with FakeTensorMode() as mode, pytest.raises(DataDependentOutputException):
        random_walk(mode.from_tensor(scores), mode.from_tensor(affinity))
    result = random_walk(scores, affinity, method="power")
    torch.testing.assert_close(result, random_walk(scores, affinity, method="dense"))


def test_a_second_derivative_is_refused():
    scores, affinity = inputs(1, 2, 5, 6)
    result = random_walk(scores, affinity.requires_grad_())
    (first,) = torch.autograd.grad(result.square().sum(), affinity, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_first_call_in_inference_mode_leaves_later_gradients_alone():
    # the cached index pattern of this size is made in inference mode
    scores, affinity = inputs(1, 2, 11, 19)
    with torch.inference_mode():
        expected = random_walk(scores, affinity)
    affinity.requires_grad_()
    result = random_walk(scores, affinity)
    result.sum().backward()
    torch.testing.assert_close(result.detach(), expected.clone())
    assert bool(affinity.grad.isfinite().all())


# --- memory, types, module ----------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ["power", "chebyshev", "auto"])
def test_no_matrix_of_pixels_by_pixels(method, backward):
    size = 29 * 31
    scores, affinity = inputs(1, 2, 29, 31, dtype=torch.float32)
    affinity.requires_grad_(backward)
    with LargestTensor() as largest:
        result = random_walk(scores, affinity, method=method)
        if backward:
            result.sum().backward()
    # a value a neighbour, the two directions and the pixel itself
    assert 34 * size <= largest.numel <= 69 * size
    with LargestTensor() as largest:
        random_walk(scores, affinity, method="dense")
    assert largest.numel >= size**2


def test_a_large_grid_fits():
    """256 x 512: the dense matrix would take 69 GB."""
    scores = torch.zeros(1, 1, 256, 512)
    scores[..., :256] = 1
    features = torch.zeros(1, 1, 256, 512)
    features[..., 256:] = 100
    affinity = pairwise_affinity(features, radius=2)
    with LargestTensor() as largest:
        result = random_walk(scores, affinity, radius=2)
    assert largest.numel <= 9 * 256 * 512
    # the two halves do not mix, and both are constant already
    torch.testing.assert_close(result, scores, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_large_grid_fits_at_the_radius_of_the_paper():
    scores = torch.rand(1, 2, 256, 512)
    affinity = pairwise_affinity(torch.rand(1, 2, 256, 512))
    with LargestTensor() as largest:
        result = random_walk(scores, affinity)
    assert largest.numel <= 69 * 256 * 512
    power = random_walk(scores, affinity, method="power")
    torch.testing.assert_close(result, power, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_walks_in_float32(method, dtype):
    scores, affinity = (x.to(dtype) for x in inputs(1, 2, 8, 9, dtype=torch.float32))
    result = random_walk(scores, affinity, method=method)
    assert result.dtype == dtype
    expected = random_walk(scores.float(), affinity.float(), method=method)
    assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("method", METHODS)
def test_empty_batch_and_no_channels(method):
    assert random_walk(torch.zeros(0, 2, 4, 5), torch.zeros(0, 34, 4, 5), method=method).shape == (
        (0, 2, 4, 5)
    )
    assert random_walk(torch.zeros(2, 0, 4, 5), torch.zeros(2, 34, 4, 5), method=method).shape == (
        (2, 0, 4, 5)
    )


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method):
    scores, affinity = inputs(1, 2, 5, 6)
    copies = scores.clone(), affinity.clone()
    random_walk(scores, affinity, method=method)
    assert torch.equal(scores, copies[0])
    assert torch.equal(affinity, copies[1])


@pytest.mark.parametrize("method", METHODS)
def test_strided_inputs(method):
    scores, affinity = inputs(2, 3, 6, 6)
    turned = scores.transpose(2, 3).contiguous().transpose(2, 3), affinity.flip(0).flip(0)
    last = [x.to(memory_format=torch.channels_last) for x in (scores, affinity)]
    expected = random_walk(scores, affinity, method=method)
    torch.testing.assert_close(random_walk(*turned, method=method), expected)
    torch.testing.assert_close(random_walk(*last, method=method), expected)


def test_module_agrees_and_prints_its_options():
    scores, affinity = inputs(1, 2, 6, 6, radius=3)
    options = {"radius": 3, "beta": 2.0, "num_steps": 9, "method": "power", "border": "psa"}
    options["storage"] = torch.bfloat16
    layer = RandomWalk(**options)
    assert torch.equal(layer(scores, affinity), random_walk(scores, affinity, **options))
    assert repr(layer) == (
        "RandomWalk(radius=3, beta=2.0, num_steps=9, method='power', tol=1e-05, border='psa', "
        "storage=torch.bfloat16)"
    )
    assert repr(RandomWalk()) == (
        "RandomWalk(radius=5, beta=8.0, num_steps=256, method='auto', tol=1e-05, border='full', "
        "storage=None)"
    )


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "affinity"),
    [
        ((1, 2, 6, 6), (1, 33, 6, 6)),
        ((1, 2, 6, 6), (1, 34, 6, 5)),
        ((1, 2, 6, 6), (2, 34, 6, 6)),
        ((2, 6, 6), (1, 34, 6, 6)),
        ((2, 6, 6), (34, 6, 6)),
    ],
)
def test_shapes_are_checked(scores, affinity):
    with pytest.raises(ValueError, match=r"\(B, C, h, w\) and affinity \(B, 34, h, w\)") as error:
        random_walk(torch.zeros(scores), torch.zeros(affinity))
    assert "radius 5" in str(error.value)
    assert str(scores) in str(error.value)
    assert str(affinity) in str(error.value)


SCORES, AFFINITY = torch.zeros(1, 2, 4, 4), torch.zeros(1, 34, 4, 4)


@pytest.mark.parametrize(
    ("scores", "affinity", "message"),
    [
        (SCORES.long(), AFFINITY, "must be floating point, got torch.int64 and torch.float32"),
        (SCORES, AFFINITY.int(), "must be floating point, got torch.float32 and torch.int32"),
        (SCORES, AFFINITY - 0.1, r"in \[0, 1\], .* got -0.1 to -0.1"),
        (SCORES, AFFINITY + math.nan, "got nan to nan"),
        (SCORES, (AFFINITY + math.nan).half(), "got nan to nan"),
        (SCORES, AFFINITY + math.inf, "got inf to inf"),
        (SCORES, AFFINITY + 1.01, "got 1.01 to 1.01"),
        (SCORES, AFFINITY.to("meta"), "scores are on cpu and affinity on meta; move one of them"),
        (SCORES.to("meta"), AFFINITY, "scores are on meta and affinity on cpu; move one of them"),
    ],
)
def test_tensors_are_checked(scores, affinity, message):
    with pytest.raises(ValueError, match=message):
        random_walk(scores, affinity)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 1.0001])
def test_a_single_bad_affinity_is_found(value):
    affinity = torch.full((2, 34, 4, 4), 0.5)
    affinity[1, 20, 0, 3] = value
    with pytest.raises(ValueError, match=r"affinity must hold values in \[0, 1\]"):
        random_walk(torch.zeros(2, 1, 4, 4), affinity)


def test_affinities_may_be_rounded_to_above_1():
    scores, affinity = torch.rand(1, 2, 4, 4), torch.ones(1, 34, 4, 4)
    expected = random_walk(scores, affinity)
    torch.testing.assert_close(random_walk(scores, affinity * (1 + 1e-6)), expected)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"radius": 1}, "radius must be a whole number of at least 2, got 1"),
        ({"beta": 0}, "beta must be positive, got 0"),
        ({"beta": -1.0}, "beta must be positive, got -1.0"),
        ({"beta": math.nan}, "beta must be positive, got nan"),
        ({"num_steps": -1}, "num_steps must be a whole number of at least 0, got -1"),
        ({"num_steps": 2.0}, "num_steps must be a whole number of at least 0, got 2.0"),
        ({"num_steps": True}, "num_steps must be a whole number of at least 0, got True"),
        ({"method": "sparse"}, "one of auto, power, chebyshev, dense, got 'sparse'"),
        ({"tol": 0}, "tol must lie between 0 and 1, got 0"),
        ({"tol": 1.0}, "tol must lie between 0 and 1, got 1.0"),
        ({"tol": -0.1}, "tol must lie between 0 and 1, got -0.1"),
        ({"tol": math.nan}, "tol must lie between 0 and 1, got nan"),
        ({"storage": torch.float64}, "float16, torch.bfloat16 or None, got torch.float64"),
        ({"storage": torch.int8}, "float16, torch.bfloat16 or None, got torch.int8"),
        ({"storage": "half"}, "float16, torch.bfloat16 or None, got 'half'"),
        (
            {"storage": torch.float16, "method": "dense"},
            "storage is for the sparse methods; leave out torch.float16 for 'dense'",
        ),
        ({"border": "half"}, "border must be 'full' or 'psa', got 'half'"),
    ],
)
def test_options_are_checked(option, message):
    with pytest.raises(ValueError, match=message):
        random_walk(SCORES, AFFINITY, **option)
    with pytest.raises(ValueError, match=message):
        RandomWalk(**option)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("border", ["full", "psa"])
def test_cuda_equals_cpu(method, border):
    scores, affinity = inputs(2, 3, 17, 20, dtype=torch.float32)
    upstream = torch.rand_like(scores)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).detach().requires_grad_() for x in (scores, affinity)]
        walked = random_walk(*leaves, method=method, border=border)
        gradients = torch.autograd.grad((walked * upstream.to(device)).sum(), leaves)
        results.append([x.detach().cpu() for x in (walked, *gradients)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@STORAGE
@pytest.mark.parametrize("differentiable", [False, True])
def test_rounded_weights_on_cuda_equal_those_on_cpu(differentiable, storage):
    scores, affinity = inputs(2, 3, 17, 20, dtype=torch.float32)
    expected = random_walk(scores, affinity, storage=storage)
    leaf = affinity.cuda().requires_grad_(differentiable)
    result = random_walk(scores.cuda(), leaf, storage=storage).detach().cpu()
    # a few weights are rounded the other way
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-4)
