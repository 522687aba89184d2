import math

import numpy as np
import pytest

from wsss_affinity.metrics import (
    Tally,
    bootstrap_interval,
    class_counts,
    class_iou,
    class_precision,
    class_recall,
    confusion_matrix,
    count_maps,
    count_thresholds,
    mean_iou,
)


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


def test_precision_and_recall_by_hand():
    # 10 pixels are label 0, of which 2 were called 1; 5 are label 1, of which 1 was called 0;
    # label 2 is only given, label 3 is only true
    matrix = np.array([[7, 2, 1, 0], [1, 4, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]])
    np.testing.assert_allclose(class_precision(matrix), [7 / 11, 4 / 7, 0, np.nan])
    np.testing.assert_allclose(class_recall(matrix), [7 / 10, 4 / 5, np.nan, 0])
    np.testing.assert_allclose(class_iou(matrix), [7 / 14, 4 / 8, 0, 0])
    assert class_counts(matrix).tolist() == [[7, 4, 0, 0], [4, 3, 1, 0], [3, 1, 0, 4]]


def iou_of_sum(counts):
    hits, wrong, missed = (int(c) for c in counts)
    union = hits + wrong + missed
    return hits / union if union else None


def test_bootstrap_interval_equals_loops():
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 50, (9, 3, 4)) * (rng.random((9, 1, 4)) < 0.5)
    counts[:, :, 2] = 0  # a label that occurs nowhere
    random = np.random.default_rng(0)
    means = []
    for _ in range(300):
        drawn = random.integers(9, size=9)
        total = np.zeros((3, 4), dtype=np.int64)
        for image in drawn:
            total += counts[image]
        values = [iou_of_sum(total[:, label]) for label in range(4)]
        values = [v for v in values if v is not None]
        means.append(sum(values) / len(values))
    means.sort()

    def percentile(share):
        place = share * 299
        low = int(place)
        return means[low] + (place - low) * (means[low + 1] - means[low])

    low, high = bootstrap_interval(counts, resamples=300)
    assert low == pytest.approx(percentile(0.025), abs=1e-12)
    assert high == pytest.approx(percentile(0.975), abs=1e-12)
    assert high - low > 0.01


def test_bootstrap_in_blocks_draws_the_same(monkeypatch):
    counts = np.random.default_rng(6).integers(0, 50, (30, 3, 3))
    whole = bootstrap_interval(counts, resamples=50)
    monkeypatch.setattr("wsss_affinity.metrics._BLOCK", 3 * 30)  # three resamples at a time
    assert bootstrap_interval(counts, resamples=50) == whole


def test_bootstrap_of_equal_images_is_a_point_and_of_nothing_none():
    counts = np.tile([[[3, 4]], [[1, 0]], [[0, 1]]], (1, 1, 1)).reshape(1, 3, 2)
    same = np.repeat(counts, 7, axis=0)
    low, high = bootstrap_interval(same)
    assert low == high == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert bootstrap_interval(np.zeros((5, 3, 2), dtype=np.int64)) is None
    assert bootstrap_interval(np.zeros((0, 3, 2), dtype=np.int64)) is None


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """Images drawn from a known distribution: the interval holds its mean IoU in about 95 %."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        hits = rng.binomial(100, 0.7, 60)
        counts = np.stack([hits, np.zeros_like(hits), 100 - hits], axis=1)[..., None]
        low, high = bootstrap_interval(counts, resamples=200)
        inside += low <= 0.7 <= high
    assert 180 <= inside <= 198


def scattered(image, num_labels):
    """The counts of an image as ``(S, L, L)``."""
    tally = Tally(num_labels, len(image.confusion))
    tally.add(image)
    return tally.confusion


def thresholded(score, best, target, threshold, num_labels):
    prediction = np.where(score.astype(np.float64) > threshold, best, 0).astype(np.uint8)
    return count_with_loops(prediction, target, num_labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bins", [10, 100])
def test_thresholds_equal_direct_thresholding(dtype, bins):
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
    best = rng.integers(1, 4, score.shape).astype(np.uint8)
    target = label_map(rng, score.shape, 6)
    thresholds = [step / bins for step in range(bins)]
    image = count_thresholds(score, best, target, thresholds)
    assert image.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert image.known == (target != 255).sum()
    for threshold, matrix in zip(thresholds, scattered(image, 6), strict=True):
        np.testing.assert_array_equal(matrix, thresholded(score, best, target, threshold, 6))


@pytest.mark.parametrize("threshold", [0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58])
def test_score_at_the_threshold_is_background(threshold):
    # threshold * 100 is not whole in floating point
    score = np.array([[threshold, np.nextafter(threshold, 1)]])
    target = np.array([[0, 1]], dtype=np.uint8)
    image = count_thresholds(score, np.ones((1, 2), dtype=np.uint8), target, [threshold])
    assert image.confusion.tolist() == [[[1, 0], [0, 1]]]


def test_zero_score_is_never_an_object():
    target = np.zeros((3, 3), dtype=np.uint8)
    image = count_thresholds(np.zeros((3, 3)), target, target, [0.0, 0.5])
    assert image.labels.tolist() == [0]
    assert image.confusion.tolist() == [[[9]], [[9]]]


def test_maps_are_counted_over_the_labels_they_hold():
    rng = np.random.default_rng(8)
    target, one, two = (label_map(rng, (9, 11), 3) for _ in range(3))
    target[target == 1], one[one == 2] = 7, 20
    image = count_maps([one, two], target)
    assert image.labels.tolist() == [0, 1, 2, 7, 20]
    full = scattered(image, 21)
    for matrix, prediction in zip(full, (one, two), strict=True):
        np.testing.assert_array_equal(matrix, count_with_loops(prediction, target, 21))


def test_tally_adds_images_and_keeps_each():
    rng = np.random.default_rng(3)
    tally = Tally(5, 2)
    total = np.zeros((2, 5, 5), dtype=np.int64)
    singles, known = [], 0
    for _ in range(4):
        target, *maps = (label_map(rng, (5, 7), int(rng.integers(2, 6))) for _ in range(3))
        tally.add(count_maps(maps, target))
        each = np.stack([count_with_loops(m, target, 5) for m in maps])
        total += each
        singles.append(class_counts(each))
        known += (target != 255).sum()
    np.testing.assert_array_equal(tally.confusion, total)
    assert tally.known == known
    for setting in range(2):
        np.testing.assert_array_equal(tally.images(setting), [s[setting] for s in singles])
    np.testing.assert_allclose(tally.mean_ious(), [mean_iou(m) for m in total])
    assert tally.best() == int(mean_iou(total[1]) > mean_iou(total[0]))


def test_best_is_the_first_of_equals():
    target = np.array([[0, 0, 0, 1]], dtype=np.uint8)
    score = np.array([[0.1, 0.2, 0.355, 0.6]])
    thresholds = [step / 100 for step in range(1, 100)]
    tally = Tally(2, 99)
    tally.add(count_thresholds(score, np.ones((1, 4), dtype=np.uint8), target, thresholds))
    assert thresholds[tally.best()] == 0.36
    assert tally.mean_ious()[tally.best()] == 1.0
    assert tally.mean_ious()[34] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_nothing_but_void_is_nan():
    void = np.full((2, 2), 255, dtype=np.uint8)
    tally = Tally(2, 3)
    ones = np.ones((2, 2), dtype=np.uint8)
    tally.add(count_thresholds(np.ones((2, 2)), ones, void, [0.1, 0.2, 0.3]))
    assert tally.best() == 0
    assert np.isnan(tally.mean_ious()).all()
    assert (tally.known, tally.confusion.sum()) == (0, 0)
    tally = Tally(2)
    tally.add(count_maps([void], void))
    assert tally.images(0).tolist() == [[[0, 0]] * 3]
