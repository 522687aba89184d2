import sys

import numpy as np
import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.layers import DenseCRF, dense_crf


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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_all_pairs_at_convergence(seed):
    image, scores, truth = scene(seed)
    result = dense_crf(image, torch.from_numpy(scores)).numpy()
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
    result = dense_crf(image, torch.from_numpy(scores), num_iterations=1, **options).numpy()
    expected = mean_field(image, scores, num_iterations=1, **options)
    # the lattice errs by up to 0.025 for a pixel, and by 0.003 on average
    np.testing.assert_allclose(result, expected, atol=0.05)
    assert np.abs(result - expected).mean() < 0.005
    # an ignored or misread option would be far off
    assert np.abs(mean_field(image, scores, num_iterations=1) - expected).mean() > 0.01


def test_no_iteration_returns_clipped_scores_normalised():
    image, scores, _ = scene()
    scores[0, :3] = 0
    scores[:, 4] *= 0.5  # not a distribution
    result = dense_crf(image, torch.from_numpy(scores), num_iterations=0).numpy()
    clipped = scores.clip(1e-5, 1)
    np.testing.assert_allclose(result, clipped / clipped.sum(0), atol=1e-6)


def test_scores_are_not_renormalised():
    """Halving all scores adds a constant to the energy, unless the clip cuts in."""
    image, scores, _ = scene()
    whole = dense_crf(image, torch.from_numpy(scores))
    half = dense_crf(image, torch.from_numpy(scores / 2))
    torch.testing.assert_close(whole, half, rtol=0, atol=1e-4)


def test_one_label_has_probability_1():
    image, scores, _ = scene()
    result = dense_crf(image, torch.from_numpy(scores[:1]))
    assert torch.equal(result, torch.ones(1, 20, 24))
    assert result.dtype == torch.float32


def test_many_labels_and_a_single_pixel():
    scores = torch.rand(30, 1, 1)
    result = dense_crf(np.zeros((1, 1, 3), np.uint8), scores)
    assert result.sum().item() == pytest.approx(1, abs=1e-5)
    assert result.argmax() == scores.argmax()


def test_tensor_numpy_and_read_only_images_agree():
    image, scores, _ = scene()
    scores = torch.from_numpy(scores)
    expected = dense_crf(image, scores)
    frozen = image.copy()
    frozen.flags.writeable = False
    assert torch.equal(dense_crf(frozen, scores), expected)
    assert torch.equal(dense_crf(torch.from_numpy(image), scores), expected)
    turned = np.ascontiguousarray(image.transpose(2, 1, 0)).transpose(2, 1, 0)
    assert torch.equal(dense_crf(turned, scores), expected)


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
    }
    scores = torch.from_numpy(scores)
    assert torch.equal(DenseCRF(**options)(image, scores), dense_crf(image, scores, **options))
    assert torch.equal(DenseCRF()(image, scores), dense_crf(image, scores))


def test_snapshots_equal_separate_inferences():
    image, scores, _ = scene()
    first = torch.from_numpy(scores)
    second = first.flip(0).sqrt()
    crf = DenseCRF(num_iterations=99, gaussian_compat=2.0, bilateral_sxy=40.0)
    found = crf.snapshots(image, [first, second], [7, 0, 1, 3])
    assert [len(row) for row in found] == [4, 4]
    for stack, row in zip((first, second), found, strict=True):
        for steps, result in zip((7, 0, 1, 3), row, strict=True):
            alone = DenseCRF(num_iterations=steps, gaussian_compat=2.0, bilateral_sxy=40.0)
            assert torch.equal(result, alone(image, stack))
    # they differ, so a mix-up would show
    assert not torch.equal(found[0][0], found[0][3])
    assert not torch.equal(found[0][0], found[1][0])


def test_stacks_of_different_shape_are_refused():
    image, scores, _ = scene()
    stacks = [torch.from_numpy(scores), torch.from_numpy(scores[:2])]
    with pytest.raises(ValueError, match=r"got \(2, 20, 24\)"):
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
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got (u?int|float)"):
        dense_crf(image, torch.rand(2, 4, 5))


@pytest.mark.parametrize("shape", [(2, 5, 4), (4, 5), (1, 2, 4, 5), (1, 4, 6)])
def test_scores_are_checked(shape):
    with pytest.raises(ValueError, match=r"\(L, H, W\) must have the image's size \(4, 5\)") as e:
        dense_crf(np.zeros((4, 5, 3), np.uint8), torch.rand(shape))
    assert str(shape) in str(e.value)


def test_no_label_is_an_error():
    with pytest.raises(ValueError, match="at least one label"):
        dense_crf(np.zeros((4, 5, 3), np.uint8), torch.rand(0, 4, 5))


def test_missing_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(WSSSError, match="pip install pydensecrf2"):
        dense_crf(np.zeros((4, 5, 3), np.uint8), torch.rand(2, 4, 5))
