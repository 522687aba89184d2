import numpy as np
import pytest
import torch

from wsss_affinity.layers import Neighborhood, pairwise_affinity
from wsss_affinity.losses import affinity_loss

DTYPES = [torch.float32, torch.float64]
SIZES = [(6, 9), (13, 7), (16, 24), (47, 63)]
BORDERS = ["full", "psa"]


def some_labels(batch, size):
    values = torch.tensor([0, 0, 0, 2, 2, 7, 255])
    return values[torch.randint(len(values), (batch, *size))]


@pytest.mark.parametrize("radius", [2, 3, 5, 8])
def test_offsets(psa, radius):
    assert Neighborhood(radius).offsets.tolist() == [list(o) for o in psa.offsets(radius)]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("radius", [3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_pairs(psa, size, radius, border):
    k, source, _ = psa.pairs(*size, radius, border)
    expected = np.zeros((len(psa.offsets(radius)), size[0] * size[1]), bool)
    expected[k, source] = True
    valid = Neighborhood(radius).valid(*size, border)
    np.testing.assert_array_equal(valid.flatten(1).numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES[:3])
def test_affinities(psa, agree, size, dtype):
    features = torch.randn(2, 24, *size, dtype=dtype)
    features[1] /= 10
    expected = np.stack([psa.affinities(one) for one in features.numpy()])
    agree(pairwise_affinity(features), expected)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", SIZES)
def test_pair_labels(psa, size, border):
    labels = some_labels(1, size)
    affinity = torch.full((1, 34, *size), 0.5, requires_grad=True)
    terms = affinity_loss(affinity, labels, border=border)
    sets = psa.pair_sets(labels[0].numpy(), border=border)
    assert any(sets.values()) == (border == "full" or size != (13, 7))
    for name, found in sets.items():
        expected = np.zeros((34, size[0] * size[1]), bool)
        for k, source in found:
            expected[k, source] = True
        # a term has a slope at the pairs of its own set, and nowhere else
        (grad,) = torch.autograd.grad(terms[name], affinity, retain_graph=True)
        np.testing.assert_array_equal(grad[0].flatten(1).numpy() != 0, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", SIZES)
def test_loss(psa, agree, size, border, dtype):
    labels = some_labels(2, size)
    affinity = torch.rand(2, 34, *size, dtype=dtype)
    terms = affinity_loss(affinity, labels, border=border)
    expected = psa.loss(affinity.numpy(), labels.numpy(), border=border)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        agree(terms[name], value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_where_affinities_are_1(psa, agree, dtype):
    labels = some_labels(1, (13, 17))
    affinity = (torch.rand(1, 34, 13, 17) > 0.5).to(dtype)
    expected = psa.loss(affinity.numpy(), labels.numpy())
    agree(affinity_loss(affinity, labels)["loss"], expected["loss"])
