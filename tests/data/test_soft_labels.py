import pytest
import torch

from wsss_affinity.data.soft_labels import affinity_labels_of, pool_soft_labels


def one_hot(labels, count):
    return torch.nn.functional.one_hot(torch.tensor(labels), count).permute(2, 0, 1).float()


def test_background_wins():
    # columns: sure object, unsure, sure background, conflict (low says object, high background)
    low = one_hot([[1, 0, 0, 2]], 3)
    high = one_hot([[1, 2, 0, 0]], 3)
    labels = affinity_labels_of(low, high, torch.tensor([4, 7]))
    assert labels.tolist() == [[5, 255, 0, 0]]


def test_without_background_nothing_is_background():
    low = one_hot([[1, 0, 2, 0]], 3)
    assert affinity_labels_of(low, None, torch.tensor([4, 7])).tolist() == [[5, 255, 8, 255]]


def stacks():
    """One 2 × 2 cell: three pixels barely background, one surely class 3."""
    low = torch.tensor([[0.6, 0.6], [0.6, 0.0]])
    high = torch.tensor([[0.3, 0.3], [0.3, 0.0]])
    return torch.stack([low, 1 - low]), torch.stack([high, 1 - high])


def test_probabilities_are_averaged_before_a_label_is_chosen():
    low, high = stacks()
    classes = torch.tensor([2])
    # mean background 0.45: object; by pixels three of four would be unsure
    assert pool_soft_labels(low, high, classes, 2).tolist() == [[3]]
    assert affinity_labels_of(low, high, classes).tolist() == [[255, 255], [255, 3]]


def test_cells_outside_the_image_are_unsure():
    low, high = (torch.zeros(2, 4, 4) for _ in range(2))
    # the left half lies outside; without the rule it would count as background of `high`
    low[0, :, 2:], high[0, :, 2:] = 1, 1
    labels = pool_soft_labels(low, high, torch.tensor([0]), 2)
    assert labels.tolist() == [[255, 0], [255, 0]]


@pytest.mark.parametrize("classes", [[], [1, 3]])
def test_any_number_of_classes(classes):
    low = torch.zeros(len(classes) + 1, 8, 16)
    low[0] = 1
    labels = pool_soft_labels(low, low, torch.tensor(classes, dtype=torch.int64), 8)
    assert labels.tolist() == [[0, 0]]
