from pathlib import Path

import pytest

from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.mapping import map_samples

SAMPLES = [Sample(f"s{i}", Path("x"), (i,)) for i in range(7)]


def square(sample):
    return sample.labels[0] ** 2


def refuse_three(sample):
    if sample.labels[0] == 3:
        raise WSSSError("three is broken; replace it")
    return sample.id


@pytest.mark.parametrize("workers", [0, 2])
def test_results_in_order(workers):
    pairs = list(map_samples("test", SAMPLES, square, num_workers=workers))
    assert [(s.id, r) for s, r in pairs] == [(f"s{i}", i * i) for i in range(7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_error_arrives_as_itself(workers):
    results = map_samples("test", SAMPLES, refuse_three, num_workers=workers)
    assert [next(results)[1] for _ in range(3)] == ["s0", "s1", "s2"]
    with pytest.raises(WSSSError, match=r"^three is broken; replace it$"):
        next(results)


def test_done_samples_are_passed_over():
    results = map_samples(
        "test", SAMPLES, square, num_workers=0, done=lambda s: s.labels[0] % 2 == 0
    )
    assert [r for _, r in results] == [1, 9, 25]


def test_nothing_left():
    assert list(map_samples("test", SAMPLES, square, num_workers=2, done=lambda s: True)) == []
