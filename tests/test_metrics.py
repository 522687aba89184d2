import math

import numpy as np
import pytest

from wsss_affinity.metrics import ThresholdSweep, class_iou, confusion_matrix, mean_iou


def count_with_loops(prediction, target, num_labels):
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    for p, t in zip(prediction.flat, target.flat, strict=True):
        if p != 255 and t != 255:
            matrix[t, p] += 1
    return matrix


def label_map(rng, shape, num_labels, void=0.2):
    labels = rng.integers(0, num_labels, shape)
    return np.where(rng.random(shape) < void, 255, labels).astype(np.uint8)


@pytest.mark.parametrize("num_labels", [2, 5, 21])
def test_confusion_matrix_counts_as_loops_do(num_labels):
    rng = np.random.default_rng(num_labels)
    prediction, target = (label_map(rng, (23, 17), num_labels) for _ in range(2))
    matrix = confusion_matrix(prediction, target, num_labels)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, count_with_loops(prediction, target, num_labels))
    assert matrix.sum() == ((prediction != 255) & (target != 255)).sum()


def test_confusion_matrix_rows_are_true_labels():
    prediction = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    target = np.array([[1, 1, 1, 1]], dtype=np.uint8)
    assert confusion_matrix(prediction, target, 2).tolist() == [[0, 0], [2, 1]]


def test_confusion_matrix_of_nothing_but_void_is_zero():
    void = np.full((4, 4), 255, dtype=np.uint8)
    labels = np.ones((4, 4), dtype=np.uint8)
    assert confusion_matrix(void, labels, 3).tolist() == np.zeros((3, 3)).tolist()
    assert confusion_matrix(labels, void, 3).tolist() == np.zeros((3, 3)).tolist()


def test_absent_labels_are_left_out_of_the_mean():
    matrix = np.zeros((4, 4), dtype=np.int64)
    matrix[0, 0], matrix[0, 2], matrix[2, 2] = 6, 2, 2
    np.testing.assert_array_equal(class_iou(matrix), [0.75, np.nan, 0.5, np.nan])
    assert mean_iou(matrix) == 0.625


def test_label_that_is_only_predicted_counts_as_zero():
    matrix = np.array([[2, 2], [0, 0]])
    assert class_iou(matrix).tolist() == [0.5, 0.0]
    assert mean_iou(matrix) == 0.25


def test_mean_iou_of_nothing_is_nan():
    assert math.isnan(mean_iou(np.zeros((3, 3), dtype=np.int64)))


def thresholded(score, best, target, threshold, num_labels):
    prediction = np.where(score.astype(np.float64) > threshold, best + 1, 0).astype(np.uint8)
    return count_with_loops(prediction, target, num_labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bins", [10, 100])
def test_sweep_equals_direct_thresholding(dtype, bins):
    rng = np.random.default_rng(bins)
    # every threshold itself, its neighbours, the ends, and some in between
    edges = (np.arange(bins + 1) / bins).astype(dtype)
    score = np.concatenate(
        [
            edges,
            np.nextafter(edges, dtype(0)),
            np.nextafter(edges, dtype(1)),
            rng.random(bins).astype(dtype),
        ]
    ).reshape(1, -1)
    best = rng.integers(0, 3, score.shape)
    target = label_map(rng, score.shape, 4)
    sweep = ThresholdSweep(3, bins)
    sweep.update(score, best, target)
    for step in range(bins):
        threshold = step / bins
        np.testing.assert_array_equal(
            sweep.confusion(threshold), thresholded(score, best, target, threshold, 4)
        )


@pytest.mark.parametrize("threshold", [0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58])
def test_score_at_the_threshold_is_background(threshold):
    # threshold * 100 is not whole in floating point
    sweep = ThresholdSweep(1)
    score = np.array([[threshold, np.nextafter(threshold, 1)]])
    sweep.update(score, np.zeros((1, 2), dtype=np.int64), np.array([[0, 1]], dtype=np.uint8))
    assert sweep.confusion(threshold).tolist() == [[1, 0], [0, 1]]


def test_sweep_adds_images_and_returns_each():
    rng = np.random.default_rng(3)
    sweep = ThresholdSweep(2)
    total = np.zeros((3, 3), dtype=np.int64)
    parts = []
    for _ in range(3):
        score, best = rng.random((5, 7)), rng.integers(0, 2, (5, 7))
        target = label_map(rng, (5, 7), 3)
        parts.append(sweep.update(score, best, target))
        total += thresholded(score, best, target, 0.4, 3)
    np.testing.assert_array_equal(sweep.confusion(0.4), total)
    np.testing.assert_array_equal(sum(parts), sweep.counts)


def test_zero_score_is_never_an_object():
    sweep = ThresholdSweep(2)
    zero = np.zeros((3, 3))
    sweep.update(zero, zero.astype(np.int64), np.zeros((3, 3), dtype=np.uint8))
    assert sweep.confusion(0.0).tolist() == [[9, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_best_threshold():
    sweep = ThresholdSweep(1)
    score = np.array([[0.1, 0.2, 0.355, 0.6]])
    target = np.array([[0, 0, 0, 1]], dtype=np.uint8)
    sweep.update(score, np.zeros(score.shape, dtype=np.int64), target)
    assert sweep.best() == (0.36, 1.0)
    assert mean_iou(sweep.confusion(0.35)) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_best_of_nothing_but_void_is_nan():
    sweep = ThresholdSweep(1)
    void = np.full((2, 2), 255, dtype=np.uint8)
    sweep.update(np.ones((2, 2)), np.zeros((2, 2), dtype=np.int64), void)
    threshold, score = sweep.best()
    assert threshold == 0.01
    assert math.isnan(score)
