import json
import logging
import os

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.interrupt import Interrupted
from wsss_affinity.pipeline.owner import Owner
from wsss_affinity.pipeline.status import Status, job_status, sentence, write_traceback


def read(folder):
    return json.loads((folder / "status.json").read_text())


def run(folder, error):
    def work():
        with job_status(folder) as status:
            status.stage("make_cam")
            raise error

    with pytest.raises(type(error)):
        work()
    return read(folder)


def test_running_then_done(tmp_path):
    with job_status(tmp_path) as status:
        assert read(tmp_path)["state"] == "running"
        assert read(tmp_path)["pid"] == os.getpid()
        assert read(tmp_path)["resumable"]  # should it be killed now
        status.stage("make_cam")
        assert read(tmp_path)["stage"] == "make_cam"
        assert read(tmp_path)["ended"] is None
    end = read(tmp_path)
    assert (end["state"], end["exit_status"], end["error"]) == ("done", 0, None)
    assert end["started"] <= end["ended"]
    assert os.listdir(tmp_path) == ["status.json"]


@pytest.mark.parametrize(
    ("error", "state", "status", "text", "resumable"),
    [
        (WSSSError("x.jpg is broken; replace it"), "failed", 2, "x.jpg is broken; replace it", 0),
        (KeyError("cat"), "failed", 1, "KeyError: 'cat'", 0),
        (Interrupted(), "interrupted", 75, None, 1),
        (KeyboardInterrupt(), "interrupted", 75, None, 1),
    ],
)
def test_how_it_ended(tmp_path, error, state, status, text, resumable):
    end = run(tmp_path, error)
    assert (end["state"], end["exit_status"], end["error"]) == (state, status, text)
    assert end["resumable"] == bool(resumable)
    assert end["stage"] == "make_cam"


def test_traceback_goes_to_the_log_file_alone(tmp_path, capsys):
    file = logging.FileHandler(tmp_path / "job.log")
    terminal = logging.StreamHandler()
    root = logging.getLogger()
    root.addHandler(file)
    root.addHandler(terminal)
    try:
        run(tmp_path, WSSSError("x.jpg is broken"))
    finally:
        root.removeHandler(file)
        root.removeHandler(terminal)
        file.close()
    text = (tmp_path / "job.log").read_text()
    assert text.startswith("x.jpg is broken\nTraceback (most recent call last):\n")
    assert "raise error\nwsss_affinity.errors.WSSSError: x.jpg is broken" in text
    assert capsys.readouterr().err == ""


def test_without_a_log_file_nothing_is_written(capsys):
    write_traceback("x", ValueError("y"))
    assert capsys.readouterr() == ("", "")


def test_of_several_processes_the_one_that_failed_is_heard(tmp_path, monkeypatch):
    monkeypatch.setattr("wsss_affinity.world.size", lambda: 2)
    leader = Status(tmp_path)
    monkeypatch.setattr("wsss_affinity.world.rank", lambda: 1)
    other = Status(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    other.path = leader.path
    other.end("failed", 2, "image x failed in make_cam")
    monkeypatch.setattr("wsss_affinity.world.rank", lambda: 0)
    leader.end("interrupted", 75)
    assert read(tmp_path)["error"] == "image x failed in make_cam"


def test_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    def work():
        monkeypatch.setattr("os.replace", refuse)
        raise WSSSError("the work itself")

    with pytest.raises(WSSSError, match=r"^the work itself$"), job_status(tmp_path):
        work()
    assert read(tmp_path)["state"] == "running"


def test_sentence_is_one_line():
    assert sentence(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert sentence(ValueError()) == "ValueError"
    crossed = "Caught WSSSError in DataLoader worker process 0.\n…\nWSSSError: x is broken\n"
    assert sentence(WSSSError(crossed)) == "x is broken"


@pytest.mark.parametrize("asked", [True, False])
def test_connection_that_broke_is_told_as_the_exit_status_tells_it(tmp_path, monkeypatch, asked):
    """Of processes that are all asked to stop one may leave while another waits for it."""
    monkeypatch.setattr("wsss_affinity.world.joined", lambda: True)
    monkeypatch.setattr("wsss_affinity.world.rank", lambda: 0)
    monkeypatch.setattr("wsss_affinity.world.size", lambda: 2)
    monkeypatch.setattr("wsss_affinity.interrupt.requested", lambda: asked)
    with pytest.raises(Interrupted if asked else WSSSError), job_status(tmp_path):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:554] Connection closed by peer")
    end = read(tmp_path)
    found = end["state"], end["exit_status"], end["resumable"]
    assert found == (("interrupted", 75, True) if asked else ("failed", 2, False))
    if not asked:
        assert end["error"].startswith("another process of this run has ended early;")


def test_owner_can_be_looked_up(tmp_path):
    with job_status(tmp_path):
        assert Owner(**read(tmp_path)["owner"]).runs()
