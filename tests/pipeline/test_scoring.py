import json
from dataclasses import asdict

import numpy as np
import pytest

from wsss_affinity.data.source import Source
from wsss_affinity.metrics import Tally, bootstrap_interval, class_counts, count_maps
from wsss_affinity.pipeline.scoring import make_score, rounded, sweep_rows


def tally_of(*pairs, num_labels=3):
    tally = Tally(num_labels)
    for prediction, target in pairs:
        maps = (np.array([m], dtype=np.uint8) for m in (prediction, target))
        tally.add(count_maps([next(maps)], next(maps)))
    return tally


SOURCE = Source(("cat", "dog"), ())


def test_numbers_by_hand():
    tally = tally_of(([0, 0, 1, 1], [0, 1, 1, 0]), ([1, 1, 0, 1], [1, 1, 0, 255]))
    score = make_score("x", tally, source=SOURCE, split="score", stage="make_cam")
    assert score.confusion == [[2, 1, 0], [1, 3, 0], [0, 0, 0]]
    assert score.iou == {"background": 0.5, "cat": 0.6}
    assert score.precision == {"background": 0.6667, "cat": 0.75}
    assert score.recall == {"background": 0.6667, "cat": 0.75}
    assert score.miou == 0.55
    assert score.images == 2
    assert score.coverage is None
    each = np.stack([class_counts(np.array(m)) for m in ([[1, 1], [1, 1]], [[1, 0], [0, 2]])])
    assert score.interval == pytest.approx(bootstrap_interval(each), abs=5e-5)


def test_undefined_values_are_none_and_the_line_is_json():
    # dog is in the picture and never found; cat is found and not there
    tally = tally_of(([0, 1, 0], [0, 0, 2]))
    score = make_score("x", tally, source=SOURCE, split="val", stage="y")
    assert score.iou == {"background": 0.3333, "cat": 0.0, "dog": 0.0}
    assert score.precision == {"background": 0.5, "cat": 0.0, "dog": None}
    assert score.recall == {"background": 0.5, "cat": None, "dog": 0.0}
    nothing = make_score("x", tally_of(([0], [255])), source=SOURCE, split="val", stage="y")
    assert (nothing.miou, nothing.interval, nothing.iou) == (None, None, {})
    for line in (score, nothing):
        assert json.loads(json.dumps(asdict(line), allow_nan=False))["miou"] == line.miou


def test_coverage_counts_known_pixels_only():
    tally = tally_of(([0, 255, 255, 1], [0, 1, 255, 1]))
    score = make_score("x", tally, source=SOURCE, split="score", stage="y")
    assert score.coverage == 0.6667
    assert score.miou == 1.0


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        ({"train": "train_aug", "score": "train", "val": "val"}, "score", "train"),
        ({"train": "train_aug", "val": "val"}, "score", "train_aug"),
        ({"train": "train_aug", "val": "minival"}, "val", "minival"),
        ({"train": "train_aug"}, "val", None),
        ({}, "score", None),
    ],
)
def test_split_is_called_as_the_data_set_does(names, split, expected):
    source = Source(("cat", "dog"), (), split_names=names, labels_from_masks=True)
    tally = tally_of(([0], [0]))
    score = make_score("x", tally, source=source, split=split, stage="y", saw_masks=True)
    assert (score.split, score.split_name) == (split, expected)
    assert score.chosen_on == (expected or split)
    assert score.labels_from_masks


def test_crf_is_told_with_its_iterations():
    tally = tally_of(([0], [0]))
    for number in (0, 5):
        score = make_score("x", tally, source=SOURCE, split="val", stage="y", crf_iterations=number)
        assert (score.crf, score.crf_iterations) == (number > 0, number)


def test_rows_of_a_sweep():
    tally = Tally(2, 2)
    target = np.array([[0, 1]], dtype=np.uint8)
    tally.add(count_maps([target, np.zeros_like(target)], target))
    rows = sweep_rows(tally, [{"alpha": 1.0}, {"alpha": 2.0}], 1)
    assert rows == [
        {"alpha": 1.0, "miou": 1.0, "default": False},
        {"alpha": 2.0, "miou": 0.25, "default": True},
    ]
    assert rounded(float("nan")) is None
