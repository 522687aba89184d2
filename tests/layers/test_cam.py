import math

import numpy as np
import pytest
import torch

from wsss_affinity.layers import CAMHead, add_background, normalize_cam
from wsss_affinity.layers.cam import height_prior


def test_head_equals_numpy():
    head = CAMHead(6, 3, dropout=0.5).eval()
    features = torch.randn(2, 6, 4, 5)
    weight = head.classifier.weight.detach().double().numpy()[:, :, 0, 0]
    maps = np.einsum("cd,bdhw->bchw", weight, features.double().numpy())
    with torch.no_grad():
        logits, cam = head(features).double(), head.cam(features).double()
    np.testing.assert_allclose(logits.numpy(), maps.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(cam.numpy(), np.maximum(maps, 0), atol=1e-6)


def test_head_has_no_bias_and_drops_channels_in_training_only():
    head = CAMHead(400, 2, dropout=0.5)
    assert [name for name, _ in head.named_parameters()] == ["classifier.weight"]
    with torch.no_grad():
        head.classifier.weight.fill_(1 / 400)
    ones = torch.ones(1, 400, 3, 3)
    dropped = head.train()(ones)
    # each channel is 0 or 2, so the mean is 1 with a deviation of 0.05
    assert dropped[0, 0].item() == pytest.approx(1, abs=0.3)
    assert dropped[0, 0].item() != 1
    assert head.eval()(ones)[0, 0].item() == pytest.approx(1, abs=1e-5)
    # the maps never drop, also while training
    torch.testing.assert_close(head.train().cam(ones), torch.ones(1, 2, 3, 3))


def test_root_of_the_maps():
    head = CAMHead(6, 3, activation="sqrt").eval()
    plain = CAMHead(6, 3)
    plain.load_state_dict(head.state_dict())
    features = torch.randn(2, 6, 4, 5)
    with torch.no_grad():
        maps = plain.cam(features)
        assert (maps == 0).any()
        torch.testing.assert_close(head.cam(features), maps**0.5)
        assert torch.equal(head(features), plain(features))


def test_initialisation():
    bound = (6 / (400 + 30)) ** 0.5  # Xavier uniform
    assert CAMHead(400, 30, xavier=True).classifier.weight.abs().max().item() == pytest.approx(
        bound, rel=1e-3
    )
    bound = 400**-0.5  # torch's own
    assert CAMHead(400, 30).classifier.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)


def test_normalize_divides_each_class_by_its_maximum_over_the_image():
    cam = torch.rand(2, 3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 7.0, 300.0]).view(
        3, 1, 1
    )
    expected = np.empty(cam.shape)
    for b in range(2):
        for c in range(3):
            plane = cam[b, c].numpy()
            expected[b, c] = plane / (plane.max() + 1e-5)
    result = normalize_cam(cam)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)
    assert result.max().item() < 1


def test_normalize_keeps_zero_maps_and_accepts_no_class():
    assert torch.equal(normalize_cam(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))
    assert normalize_cam(torch.zeros(0, 3, 3)).shape == (0, 3, 3)


@pytest.mark.parametrize("alpha", [1, 4, 16.0, 32])
def test_background_is_what_the_best_class_leaves(alpha):
    cam = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    result = add_background(cam, alpha)
    expected = (1 - cam.numpy().max(1)) ** alpha
    assert result.shape == (2, 4, 4, 5)
    np.testing.assert_allclose(result[:, 0].numpy(), expected, rtol=1e-12)
    assert torch.equal(result[:, 1:], cam)


def test_background_without_batch_without_class_and_above_1():
    assert torch.equal(add_background(torch.zeros(0, 2, 3), 4), torch.ones(1, 2, 3))
    assert torch.equal(add_background(torch.zeros(2, 0, 2, 3), 4), torch.ones(2, 1, 2, 3))
    # rounding above 1 must not give the root of a negative number
    assert add_background(torch.full((1, 1, 1), 1.0001), 0.5)[0].item() == 0


def test_larger_alpha_is_more_timid():
    cam = torch.rand(3, 6, 6)
    assert bool((add_background(cam, 32)[0] <= add_background(cam, 4)[0]).all())


def test_height_prior_by_hand():
    weights = height_prior(4, centre=0.125, spread=0.25)
    assert weights.shape == (4, 1)
    expected = [math.exp(-0.5 * k**2) for k in range(4)]  # rows are a quarter apart
    assert weights.flatten().tolist() == pytest.approx(expected, rel=1e-6)
