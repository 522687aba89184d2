import os

import pytest

from wsss_affinity.data.prepare import for_each, outdated
from wsss_affinity.errors import WSSSError


def test_for_each_keeps_order_and_hands_errors_back():
    def work(item):
        if item == 3:
            raise WSSSError("three is bad")
        return 10 * item

    results = list(for_each("numbers", [5, 3, 1], work))
    assert [item for item, _ in results] == [5, 3, 1]
    assert results[0][1] == 50
    assert results[2][1] == 10
    assert isinstance(results[1][1], WSSSError)
    assert str(results[1][1]) == "three is bad"


def test_for_each_raises_what_is_a_bug():
    with pytest.raises(ZeroDivisionError):
        list(for_each("numbers", [1, 0], lambda item: 1 / item))


def test_nothing_to_do_shows_no_bar(capsys):
    assert list(for_each("nothing", [], str)) == []
    assert capsys.readouterr().err == ""


def test_outdated(tmp_path):
    origin, made = tmp_path / "origin", tmp_path / "made"
    origin.touch()
    assert outdated(made, origin)
    made.touch()
    os.utime(origin, ns=(0, 2_000))
    os.utime(made, ns=(0, 1_999))
    assert outdated(made, origin)
    os.utime(made, ns=(0, 2_000))
    assert not outdated(made, origin)
    origin.unlink()
    assert outdated(made, origin)  # so that making it says what is missing
