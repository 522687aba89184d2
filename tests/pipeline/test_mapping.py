import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from wsss_affinity import interrupt
from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.errors import WriteError, WSSSError
from wsss_affinity.pipeline.mapping import map_images, map_samples
from wsss_affinity.pipeline.storage import FORMATS, Records, RecordWriter, record_writer

SAMPLES = [Sample(f"s{i}", Path("x"), (i,)) for i in range(7)]
RANK = Path(__file__).with_name("map_rank.py")


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


def test_no_samples():
    assert list(map_samples("test", [], square, num_workers=2)) == []


@dataclass(frozen=True)
class Noted:
    """Notes each call in a folder, and fails for some images, the first times."""

    folder: Path
    step: str
    bad: tuple[int, ...] = ()
    times: int = 99
    error: type[Exception] = ValueError

    def __call__(self, sample, before=None):
        calls = len(list(self.folder.glob(f"{self.step}-{sample.id}-*")))
        (self.folder / f"{self.step}-{sample.id}-{calls}-{os.getpid()}").touch()
        if sample.labels[0] in self.bad and calls < self.times:
            raise self.error(f"{self.step} of {sample.id}")
        return {} if self.step == "finish" else (before or ()) + (self.step,)

    def calls(self, sample_id):
        return len(list(self.folder.glob(f"{self.step}-{sample_id}-*")))


def stages(folder, **bad):
    return [Noted(folder, name, **bad.get(name, {})) for name in ("load", "work", "finish")]


def make(steps, workers=0, skip=False, samples=SAMPLES, done=()):
    """Run the steps; images that are done have a record."""
    writer = RecordWriter(steps[0].folder / "records", ".txt")
    for index in done:
        writer.write(samples[index].id, b"")
    output = {"": writer}
    return map_images("stage", samples, *steps, output=output, num_workers=workers, skip=skip)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_image_goes_through_each_step_once(tmp_path, workers):
    steps = stages(tmp_path)
    assert make(steps, workers) == []
    assert [[s.calls(i.id) for s in steps] for i in SAMPLES] == [[1, 1, 1]] * 7
    pids = {
        step: {p.name.split("-")[3] for p in tmp_path.glob(f"{step}-*")}
        for step in ("load", "work", "finish")
    }
    assert pids["work"] == {str(os.getpid())}
    assert (pids["work"] in (pids["load"], pids["finish"])) == (workers == 0)
    assert len(pids["load"]) == max(1, workers)


class Doubled(Noted):
    """Ends with two records of an image."""

    def __call__(self, sample, before=None):
        super().__call__(sample, before)
        return {name: f"{name} of {sample.id}".encode() for name in ("one", "two")}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("workers", [0, 2])
def test_records_are_stored_and_an_image_that_lacks_one_is_made_again(tmp_path, workers, format):
    steps = [*stages(tmp_path)[:2], Doubled(tmp_path, "finish")]

    def run():
        writers = {n: record_writer(tmp_path / n, ".txt", format) for n in ("one", "two")}
        return map_images("stage", SAMPLES, *steps, output=writers, num_workers=workers, skip=False)

    writer = record_writer(tmp_path / "one", ".txt", format)
    with writer:
        writer.write("s0", b"one of s0")
    assert run() == []
    for name in ("one", "two"):
        records = Records(tmp_path / name, ".txt")
        assert [records.read(s.id) for s in SAMPLES] == [
            f"{name} of {s.id}".encode() for s in SAMPLES
        ]
    assert run() == []
    assert [steps[2].calls(s.id) for s in SAMPLES] == [1] * 7


@pytest.mark.parametrize("workers", [0, 2])
def test_finished_images_are_passed_over(tmp_path, workers):
    steps = stages(tmp_path)
    make(steps, workers, done=(0, 2, 4, 6))
    assert [steps[2].calls(s.id) for s in SAMPLES] == [0, 1, 0, 1, 0, 1, 0]
    assert make(steps, workers, done=range(7)) == []


def test_later_images_are_worked_on_while_earlier_ones_are_finished(tmp_path):
    class Slow(Noted):
        def __call__(self, sample, before=None):
            time.sleep(0.1)
            return super().__call__(sample, before)

    load, _, _ = stages(tmp_path)
    make([load, Slow(tmp_path, "work"), Slow(tmp_path, "finish")], workers=1)
    times = [
        (tmp_path / p.name).stat().st_mtime
        for step in ("work", "finish")
        for p in sorted(tmp_path.glob(f"{step}-*"))
    ]
    assert times[7] < times[3]  # the first was finished before the fourth was worked on


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", ["load", "work", "finish"])
def test_image_that_fails_once_is_done_again(tmp_path, workers, step, caplog):
    steps = stages(tmp_path, **{step: {"bad": (3,), "times": 1}})
    with caplog.at_level(logging.WARNING):
        assert make(steps, workers) == []
    assert steps[2].calls("s3") == (2 if step == "finish" else 1)
    assert steps[0].calls("s3") == 2
    assert f"stage: image s3 is tried again (ValueError: {step} of s3)" in caplog.text
    assert [steps[2].calls(s.id) for s in SAMPLES if s.id != "s3"] == [1] * 6


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", ["load", "work", "finish"])
def test_image_that_fails_twice_stops_the_stage_or_is_left_out(tmp_path, workers, step):
    steps = stages(tmp_path, **{step: {"bad": (3, 5)}})
    with pytest.raises(WSSSError) as caught:
        make(steps, workers)
    assert str(caught.value) == (
        f"image s3 failed in stage: ValueError: {step} of s3; what is finished is kept, and "
        "data.on_error=skip leaves out images that fail twice"
    )
    assert isinstance(caught.value.__cause__, ValueError)  # for the log
    assert [steps[1].calls(s.id) for s in SAMPLES][:3] == [1, 1, 1]
    index = ("load", "work", "finish").index(step)
    assert steps[index].calls("s3") == 2

    (tmp_path / "skip").mkdir()
    steps = stages(tmp_path / "skip", **{step: {"bad": (3, 5)}})
    assert make(steps, workers, skip=True) == [
        Problem("s3", f"stage: ValueError: {step} of s3"),
        Problem("s5", f"stage: ValueError: {step} of s5"),
    ]
    assert [steps[2].calls(s.id) for s in SAMPLES if s.id not in ("s3", "s5")] == [1] * 5


def test_error_of_bad_input_keeps_its_sentence(tmp_path):
    steps = stages(tmp_path, load={"bad": (0,), "error": WSSSError})
    assert make(steps, 1, skip=True) == [Problem("s0", "stage: load of s0")]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", ["load", "work", "finish"])
def test_full_disk_is_no_fault_of_the_image(tmp_path, workers, step):
    steps = stages(tmp_path, **{step: {"bad": (0,), "error": WriteError}})
    with pytest.raises(WriteError, match=f"^{step} of s0$"):
        make(steps, workers, skip=True)
    index = ("load", "work", "finish").index(step)
    assert steps[index].calls("s0") == 1


def test_a_stage_of_failures_stops_though_they_are_to_be_skipped(tmp_path):
    steps = stages(tmp_path, work={"bad": tuple(range(99))})
    with pytest.raises(WSSSError, match=r"^no image is left of 7: image s0 failed in stage: Value"):
        make(steps, skip=True)
    many = [Sample(f"t{i}", Path("x"), (i,)) for i in range(30)]
    with pytest.raises(
        WSSSError, match=r"^each of the first 20 images failed, the last: image t19 failed in stage"
    ):
        make(steps, skip=True, samples=many)
    assert not list(tmp_path.glob("*t20*"))
    # those that an earlier run has finished speak for the stage
    problems = make(steps, skip=True, samples=many, done=[0])
    assert len(problems) == 29


@pytest.mark.parametrize("workers", [0, 2])
def test_request_to_stop_is_met_after_the_image_in_hand(tmp_path, workers, monkeypatch):
    load, _, finish = stages(tmp_path)
    asked = []

    class Stopping(Noted):
        def __call__(self, sample, before=None):
            if sample.id == "s2":
                asked.append(sample)
            return super().__call__(sample, before)

    monkeypatch.setattr(interrupt, "requested", lambda: bool(asked))
    work = Stopping(tmp_path, "work")
    with pytest.raises(interrupt.Interrupted):
        make([load, work, finish], workers)
    assert [work.calls(s.id) for s in SAMPLES] == [1, 1, 1, 0, 0, 0, 0]
    # what was begun is finished
    assert [finish.calls(s.id) for s in SAMPLES] == [1, 1, 1, 0, 0, 0, 0]
    results = map_samples("test", SAMPLES, square, num_workers=workers)
    next(results)
    with pytest.raises(interrupt.Interrupted):
        next(results)


@pytest.mark.parametrize(("workers", "number"), [(0, 1), (1, 3)])
def test_what_worker_processes_have_made_is_stored_when_a_stop_is_asked_for(
    tmp_path, workers, number, monkeypatch
):
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    output = {"one": RecordWriter(tmp_path, ".txt"), "two": RecordWriter(tmp_path, ".txt")}
    step, options = Doubled(tmp_path, "load"), {"num_workers": workers, "skip": False}
    with pytest.raises(interrupt.Interrupted):
        map_images("stage", SAMPLES, step, output=output, **options)
    calls = [step.calls(s.id) for s in SAMPLES]
    assert calls == [1] * number + [0] * (7 - number)
    records = Records(tmp_path, ".txt")
    assert [int(s.id in records) for s in SAMPLES] == calls


def test_workers_leave_stopping_to_this_process(tmp_path, capfd):
    class Signalling(Noted):
        def __call__(self, sample, before=None):
            if sample.id == "s1":
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().__call__(sample, before)

    steps = [Signalling(tmp_path, "load"), Noted(tmp_path, "work"), Noted(tmp_path, "finish")]
    assert make(steps, workers=2) == []
    assert "Traceback" not in capfd.readouterr().err


def test_processes_of_a_run_share_the_images(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(tmp_path)],
            env={**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    # told to stop at its first image, the first of them; both do
    assert [p.returncode for p in processes] == [75, 75], outputs
    # s3 fails twice, and both processes know; of a single image too
    expected = "[('s3', 'stage: ValueError: s3 is bad')] [0, 1, 4, 9, 16]\n[] [0]\n"
    expected += "[b'0', b'1', b'2', b'4']\n"
    assert [out for out, _ in outputs] == [expected, expected]

    def made(name):
        return {path.name for path in (tmp_path / name).iterdir()}

    assert made("five") == {"s0-0", "s1-1", "s2-0", "s4-0"}  # image and process
    assert made("one") == {"s0-0"}
    assert {p.name for p in (tmp_path / "sharded" / "shards").glob("*.tar")} == {
        "0-000000.tar",
        "1-000000.tar",
    }
    assert {"s0-0"} <= made("stopped") <= {"s0-0", "s1-1", "s3-1"}
