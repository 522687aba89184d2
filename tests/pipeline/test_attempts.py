import time

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import attempts as module
from wsss_affinity.pipeline.attempts import Attempts
from wsss_affinity.pipeline.checksums import ATTEMPTS


@pytest.fixture
def clock(monkeypatch):
    """Sets the monotonic clock; the wall clock runs backwards."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: -now[0])
    return now


def test_seconds_and_attempts_add_up(tmp_path, clock):
    first = Attempts(tmp_path)
    assert (first.number, first.resumed) == (1, False)
    clock[0] += 10
    first.note()
    clock[0] += 5  # lost: it is killed before the next note
    (tmp_path / "0.png").touch()

    clock[0] = 3.0  # another boot
    second = Attempts(tmp_path)
    clock[0] += 2.5
    assert (second.number, second.resumed, second.seconds) == (2, True, 12.5)
    second.finish()
    second.note()
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_an_attempt_that_is_killed_at_once_counts(tmp_path, clock):
    for number in (1, 2, 3):
        attempts = Attempts(tmp_path)
        assert (attempts.number, attempts.resumed) == (number, False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"attempts": 2}'])
def test_damaged_file_counts_as_none(tmp_path, content):
    (tmp_path / ATTEMPTS).write_text(content)
    assert Attempts(tmp_path).number == 1


def test_full_disk_does_not_stop_the_work(tmp_path, monkeypatch):
    def fail(path, data):
        raise WSSSError("full")

    monkeypatch.setattr(module, "write_bytes", fail)
    assert Attempts(tmp_path).number == 1
    assert list(tmp_path.iterdir()) == []
