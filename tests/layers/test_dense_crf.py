import re
import sys

import numpy as np
import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.layers import DenseCRF, dense_crf

BACKENDS = ["pydensecrf", "torch"]


def mean_field(
    image,
    scores,
    num_iterations=10,
    gaussian_sxy=3.0,
    gaussian_compat=3.0,
    bilateral_sxy=80.0,
    bilateral_srgb=13.0,
    bilateral_compat=10.0,
):
    """Mean field with all pairs of pixels, float64, kernels normalised symmetrically."""
    labels, height, width = scores.shape
    position = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    far = ((position[:, None] - position) ** 2).sum(-1)
    unlike = ((colour[:, None] - colour) ** 2).sum(-1)
    kernels = [
        (gaussian_compat, np.exp(-far / (2 * gaussian_sxy**2))),
        (
            bilateral_compat,
            np.exp(-far / (2 * bilateral_sxy**2) - unlike / (2 * bilateral_srgb**2)),
        ),
    ]
    log_unary = np.log(np.clip(scores.reshape(labels, -1), 1e-5, 1))
    q = np.exp(log_unary) / np.exp(log_unary).sum(0)
    for _ in range(num_iterations):
        energy = log_unary.copy()
        for compat, kernel in kernels:
            root = np.sqrt(kernel.sum(1))
            energy += compat * (q @ (kernel / np.outer(root, root)))
        q = np.exp(energy - energy.max(0))
        q /= q.sum(0)
    return q.reshape(scores.shape)


def scene(seed=0):
    """Two coloured rectangles on a ground, scores that are wrong at every fifth pixel or so."""
    random = np.random.default_rng(seed)
    truth = np.zeros((20, 24), dtype=int)
    truth[5:14, 6:17] = 1
    truth[12:, 15:] = 2
    colours = np.array([[60, 120, 90], [200, 60, 70], [30, 40, 200]])
    noisy = colours[truth] + random.integers(-8, 9, (20, 24, 3))
    image = noisy.clip(0, 255).astype(np.uint8)
    scores = np.eye(3)[truth].transpose(2, 0, 1) * 0.35 + 0.3
    scores = (scores + random.normal(0, 0.2, scores.shape)).clip(0.02, 1)
    return image, scores / scores.sum(0), truth


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_all_pairs_at_convergence(seed, backend):
    image, scores, truth = scene(seed)
    result = dense_crf(image, torch.from_numpy(scores), backend=backend).numpy()
    expected = mean_field(image, scores)
    # sure by then, so the lattice's error hardly shows: 2e-4 at most was seen
    np.testing.assert_allclose(result, expected, atol=1e-3)
    np.testing.assert_array_equal(result.argmax(0), expected.argmax(0))
    # and it does its work: a fifth of the labels was wrong
    assert (scores.argmax(0) != truth).mean() > 0.15
    np.testing.assert_array_equal(result.argmax(0), truth)


@pytest.mark.parametrize(
    "options",
    [
        {"bilateral_compat": 0.0},
        {"gaussian_compat": 0.0},
        {"bilateral_compat": 0.0, "gaussian_sxy": 5.0, "gaussian_compat": 2.0},
        {"gaussian_compat": 0.0, "bilateral_sxy": 10.0, "bilateral_srgb": 30.0},
    ],
)
def test_one_iteration_of_each_kernel_agrees_with_all_pairs(options):
    image, scores, _ = scene()
    values = torch.from_numpy(scores)
    result = dense_crf(image, values, num_iterations=1, **options).numpy()
    expected = mean_field(image, scores, num_iterations=1, **options)
    # the lattice errs by up to 0.025 for a pixel, and by 0.003 on average
    np.testing.assert_allclose(result, expected, atol=0.05)
    assert np.abs(result - expected).mean() < 0.005
    exact = dense_crf(image, values, num_iterations=1, backend="torch", **options).numpy()
    np.testing.assert_allclose(exact, expected, atol=5e-6)
    # an ignored or misread option would be far off
    assert np.abs(mean_field(image, scores, num_iterations=1) - expected).mean() > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_iteration_returns_clipped_scores_normalised(backend):
    image, scores, _ = scene()
    scores[0, :3] = 0
    scores[:, 4] *= 0.5  # not a distribution
    values = torch.from_numpy(scores)
    result = dense_crf(image, values, num_iterations=0, backend=backend).numpy()
    clipped = scores.clip(1e-5, 1)
    np.testing.assert_allclose(result, clipped / clipped.sum(0), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_not_renormalised(backend):
    """Halving all scores adds a constant to the energy, unless the clip cuts in."""
    image, scores, _ = scene()
    whole = dense_crf(image, torch.from_numpy(scores), backend=backend)
    half = dense_crf(image, torch.from_numpy(scores / 2), backend=backend)
    torch.testing.assert_close(whole, half, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_label_has_probability_1(backend):
    image, scores, _ = scene()
    result = dense_crf(image, torch.from_numpy(scores[:1]), backend=backend)
    assert torch.equal(result, torch.ones(1, 20, 24))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_labels_and_a_single_pixel(backend):
    scores = torch.rand(30, 1, 1)
    result = dense_crf(np.zeros((1, 1, 3), np.uint8), scores, backend=backend)
    assert result.sum().item() == pytest.approx(1, abs=1e-5)
    assert result.argmax() == scores.argmax()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensor_numpy_and_read_only_images_agree(backend):
    image, scores, _ = scene()
    scores = torch.from_numpy(scores)
    crf = DenseCRF(backend=backend)
    expected = crf(image, scores)
    frozen = image.copy()
    frozen.flags.writeable = False
    assert torch.equal(crf(frozen, scores), expected)
    assert torch.equal(crf(torch.from_numpy(image), scores), expected)
    turned = np.ascontiguousarray(image.transpose(2, 1, 0)).transpose(2, 1, 0)
    assert torch.equal(crf(turned, scores), expected)
    assert torch.equal(crf(torch.from_numpy(turned), scores), expected)


def test_inputs_are_left_alone_and_result_is_a_distribution():
    image, scores, _ = scene()
    pixels, values = image.copy(), torch.from_numpy(scores).float().requires_grad_()
    result = dense_crf(pixels, values)
    np.testing.assert_array_equal(pixels, image)
    assert torch.equal(values.detach(), torch.from_numpy(scores).float())
    assert not result.requires_grad
    assert (result.shape, result.dtype) == ((3, 20, 24), torch.float32)
    torch.testing.assert_close(result.sum(0), torch.ones(20, 24))


def test_parameters_object_agrees():
    image, scores, _ = scene()
    options = {
        "num_iterations": 2,
        "gaussian_sxy": 2.0,
        "gaussian_compat": 1.0,
        "bilateral_sxy": 20.0,
        "bilateral_srgb": 7.0,
        "bilateral_compat": 4.0,
        "backend": "torch",
    }
    scores = torch.from_numpy(scores)
    assert torch.equal(DenseCRF(**options)(image, scores), dense_crf(image, scores, **options))
    assert torch.equal(DenseCRF()(image, scores), dense_crf(image, scores))


@pytest.mark.parametrize("backend", BACKENDS)
def test_snapshots_equal_separate_inferences(backend):
    image, scores, _ = scene()
    first = torch.from_numpy(scores)
    second = first.flip(0).sqrt()
    options = {"gaussian_compat": 2.0, "bilateral_sxy": 40.0, "backend": backend}
    crf = DenseCRF(num_iterations=99, **options)
    found = crf.snapshots(image, [first, second], [7, 0, 1, 3])
    assert [len(row) for row in found] == [4, 4]
    for stack, row in zip((first, second), found, strict=True):
        for steps, result in zip((7, 0, 1, 3), row, strict=True):
            alone = DenseCRF(num_iterations=steps, **options)(image, stack)
            # products of another width may add up in another order
            torch.testing.assert_close(result, alone, rtol=0, atol=1e-5)
            assert result.shape == stack.shape
    # they differ, so a mix-up would show
    assert not torch.equal(found[0][0], found[0][3])
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_images_one_by_one(backend):
    image, scores, _ = scene()
    images = np.stack([image, image[::-1]])
    scores = torch.from_numpy(np.stack([scores, scores[:, ::-1]]))
    crf = DenseCRF(num_iterations=2, backend=backend)
    result = crf(images, scores)
    assert (result.shape, result.dtype) == (scores.shape, torch.float32)
    for one, guess, expected in zip(images, scores, result, strict=True):
        torch.testing.assert_close(crf(one, guess), expected, rtol=0, atol=1e-5)
    # images or scores mixed up would show
    assert (crf(images[0], scores[1]) - result[1]).abs().max() > 0.1
    looks = crf.snapshots(images, [scores, scores.flip(1)], [0, 2])
    torch.testing.assert_close(looks[0][1], result, rtol=0, atol=1e-5)
    assert looks[1][0].shape == scores.shape


def test_only_torch_is_differentiable():
    image, scores, _ = scene()
    leaf = torch.from_numpy(scores).requires_grad_()
    assert not dense_crf(image, leaf, num_iterations=1, backend="pydensecrf").requires_grad
    result = dense_crf(image, leaf, num_iterations=1, backend="torch")
    (gradient,) = torch.autograd.grad(result[0].sum(), leaf)
    assert gradient.abs().max() > 0.1


def test_auto_is_pydensecrf_on_the_cpu():
    image, scores, _ = scene()
    scores = torch.from_numpy(scores)
    few = {"num_iterations": 1, "bilateral_sxy": 10.0}
    auto = dense_crf(image, scores, **few)
    assert torch.equal(auto, dense_crf(image, scores, backend="pydensecrf", **few))
    assert not torch.equal(auto, dense_crf(image, scores, backend="torch", **few))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "backend must be one of auto, pydensecrf, torch, got 'cuda'"),
        ({"gaussian_sxy": 0}, "gaussian_sxy must be positive and finite, got 0"),
        ({"bilateral_sxy": -1.0}, r"bilateral_sxy must be positive and finite, got -1\.0"),
        ({"bilateral_srgb": float("nan")}, "bilateral_srgb must be positive and finite, got nan"),
        ({"bilateral_srgb": float("inf")}, "bilateral_srgb must be positive and finite, got inf"),
        ({"gaussian_compat": -3}, "gaussian_compat must be at least 0 and finite, got -3"),
        ({"bilateral_compat": float("nan")}, "compat must be at least 0 and finite, got nan"),
        ({"bilateral_compat": float("inf")}, "compat must be at least 0 and finite, got inf"),
        ({"num_iterations": -1}, "num_iterations must be a whole number of at least 0, got -1"),
        ({"num_iterations": 1.0}, r"num_iterations must be a whole number .*, got 1\.0"),
        ({"num_iterations": True}, "num_iterations must be a whole number .*, got True"),
    ],
)
def test_parameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**options)
    with pytest.raises(ValueError, match=message):
        dense_crf(np.zeros((4, 5, 3), np.uint8), torch.rand(2, 4, 5), **options)


@pytest.mark.parametrize("iterations", [[], [-1], [3, -2], [1.5], [True]])
@pytest.mark.parametrize("labels", [1, 2])
def test_numbers_of_iterations_are_checked(iterations, labels):
    message = re.escape(f"whole numbers of at least 0, got {iterations}")
    with pytest.raises(ValueError, match=message):
        DenseCRF().snapshots(np.zeros((4, 5, 3), np.uint8), [torch.rand(labels, 4, 5)], iterations)


def test_no_stack_is_an_error():
    with pytest.raises(ValueError, match="at least one tensor of scores, got none"):
        DenseCRF().snapshots(np.zeros((4, 5, 3), np.uint8), [], [1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize(("batch", "size"), [((), (0, 5)), ((), (4, 0)), ((0,), (4, 5))])
def test_without_pixels_the_result_is_empty(backend, labels, batch, size):
    image, scores = np.zeros((*batch, *size, 3), np.uint8), torch.rand(*batch, labels, *size)
    result = dense_crf(image, scores, backend=backend)
    assert (result.shape, result.dtype) == (scores.shape, torch.float32)


def test_stacks_of_different_shape_are_refused():
    image, scores, _ = scene()
    stacks = [torch.from_numpy(scores), torch.from_numpy(scores[:2])]
    with pytest.raises(ValueError, match=r"one shape, got \(3, 20, 24\) and \(2, 20, 24\)"):
        DenseCRF().snapshots(image, stacks, [1])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((3, 4, 5), np.uint8),
        torch.zeros(4, 5, 3),
    ],
)
def test_image_is_checked(image):
    message = r"image must be \(H, W, 3\) uint8 or a batch .*, got (u?int8|float32) \("
    with pytest.raises(ValueError, match=message):
        dense_crf(image, torch.rand(2, 4, 5))


@pytest.mark.parametrize("shape", [(2, 5, 4), (4, 5), (1, 2, 4, 5), (1, 4, 6)])
def test_scores_are_checked(shape):
    with pytest.raises(ValueError, match=r"\(L, H, W\) must have the image's size \(4, 5\)") as e:
        dense_crf(np.zeros((4, 5, 3), np.uint8), torch.rand(shape))
    assert str(shape) in str(e.value)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 2, 4, 5), (2, 2, 5, 4)])
def test_scores_of_a_batch_are_checked(shape):
    with pytest.raises(ValueError, match=r"\(B, L, H, W\) must .* size \(2, 4, 5\)") as error:
        dense_crf(np.zeros((2, 4, 5, 3), np.uint8), torch.rand(shape))
    assert str(shape) in str(error.value)


def test_no_label_is_an_error():
    with pytest.raises(ValueError, match="at least one label"):
        dense_crf(np.zeros((4, 5, 3), np.uint8), torch.rand(0, 4, 5))


def test_missing_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    inputs = np.zeros((4, 5, 3), np.uint8), torch.rand(2, 4, 5)
    with pytest.raises(WSSSError, match="pip install pydensecrf2"):
        dense_crf(*inputs)
    assert dense_crf(*inputs, backend="torch").shape == (2, 4, 5)


def photograph(height, width, labels, seed=0):
    """Shaded, noisy regions of some colours each, and a blurred, noisy guess at them."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels, cells):
        values = torch.randn(1, channels, cells, cells, generator=generator)
        return torch.nn.functional.interpolate(values, (height, width), mode="bicubic")[0]

    truth = smooth(labels, 4).argmax(0)
    colours = torch.randint(20, 236, (labels, 3), generator=generator)[truth]
    grain = 6 * torch.randn(height, width, 3, generator=generator)
    image = (colours + 12 * smooth(3, 8).permute(1, 2, 0) + grain).clamp(0, 255).byte()
    hard = torch.nn.functional.one_hot(truth, labels).permute(2, 0, 1).float()
    cells = (max(height // 8, 1), max(width // 8, 1))
    coarse = torch.nn.functional.adaptive_avg_pool2d(hard, cells)[None]
    soft = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return image, (3 * soft + 0.5 * smooth(labels, 8)).softmax(0)


def test_backends_agree_on_labels():
    image, scores = photograph(60, 80, 4)
    crf = DenseCRF()
    lattice = crf(image, scores).argmax(0)
    exact = dense_crf(image, scores, backend="torch").argmax(0)
    # 99.8 % was seen
    assert (lattice == exact).float().mean() > 0.97
    assert exact.unique().numel() == 4
    # neither leaves the guess as it was
    assert (exact != scores.argmax(0)).float().mean() > 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_on_a_gpu_is_exact(seed):
    image, scores = photograph(40, 52, 5, seed)
    result = dense_crf(image, scores.cuda())
    assert result.device.type == "cuda"
    expected = mean_field(image.numpy(), scores.double().numpy())
    np.testing.assert_allclose(result.cpu().numpy(), expected, atol=1e-3)


@pytest.mark.gpu
def test_full_size_batch_on_a_gpu_agrees_with_pydensecrf():
    pairs = [photograph(375, 500, 21, seed) for seed in (0, 1)]
    images = torch.stack([image for image, _ in pairs])
    scores = torch.stack([scores for _, scores in pairs])
    torch.cuda.reset_peak_memory_stats()
    result = dense_crf(images, scores.cuda()).argmax(1).cpu()
    # all pairs would be 281 GB
    assert torch.cuda.max_memory_allocated() < 2e9
    assert (result == dense_crf(images, scores).argmax(1)).float().mean() > 0.97
