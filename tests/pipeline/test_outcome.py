from pathlib import Path

import pytest

from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.errors import WriteError, WSSSError
from wsss_affinity.pipeline.outcome import Outcome, attempt
from wsss_affinity.pipeline.storage import RecordWriter

SAMPLE = Sample("x", Path("x"), ())


def outcome(folder, *steps, skip=False):
    return Outcome("stage", steps, {"maps": RecordWriter(folder, ".txt")}, skip, 0)


def test_records_are_stored(tmp_path):
    found = outcome(tmp_path, lambda s: None, None, None)
    found.settle(SAMPLE, {"maps": b"1"})
    assert (found.succeeded, found.problems) == (1, [])
    assert (tmp_path / "x.txt").read_bytes() == b"1"


def test_the_second_attempt_takes_all_steps_there_are(tmp_path):
    found = outcome(tmp_path, lambda s: s.id, None, lambda s, loaded: {"maps": loaded.encode()})
    found.settle(SAMPLE, WSSSError("a step failed"))
    assert (found.succeeded, found.problems) == (1, [])
    assert (tmp_path / "x.txt").read_bytes() == b"x"


def bad(sample):
    raise KeyError(sample.id)


def test_the_second_failure_is_kept_or_raised(tmp_path):
    found = outcome(tmp_path, bad, None, None, skip=True)
    found.settle(SAMPLE, WSSSError("bad"))
    assert (found.succeeded, found.problems) == (0, [Problem("x", "stage: KeyError: 'x'")])
    with pytest.raises(WSSSError, match=r"^image x failed in stage: KeyError: 'x'; what is fin"):
        outcome(tmp_path, bad, None, None).settle(SAMPLE, WSSSError("bad"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_tried_again(tmp_path):
    def full(sample):
        raise AssertionError

    with pytest.raises(WriteError, match=r"^the disk is full$"):
        outcome(tmp_path, full, None, None, skip=True).settle(
            SAMPLE, WriteError("the disk is full")
        )


def test_errors_come_back_without_what_they_saw():
    found = attempt(bad, SAMPLE)
    assert type(found) is WSSSError
    assert (str(found), found.__traceback__, found.__cause__) == ("KeyError: 'x'", None, None)
    assert attempt(len, "abc") == 3
