import json
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from wsss_affinity import interrupt
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import lock as module
from wsss_affinity.pipeline import owner as owners
from wsss_affinity.pipeline.lock import Lock, locked
from wsss_affinity.pipeline.owner import Owner

fork = multiprocessing.get_context("fork")


def hold(path, ready, end):
    """A process that holds the lock until it is told to end."""
    with locked(path, "it", print):
        ready.set()
        end.wait(60)


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold the lock."""
    started = []

    def start(target=hold, *args):
        ready, end = fork.Event(), fork.Event()
        process = fork.Process(target=target, args=(tmp_path / "key.lock", ready, end, *args))
        process.start()
        started.append(process)
        assert ready.wait(30)
        return process, end

    yield start
    for process in started:
        process.kill()
        process.join()


def leave(path, **changes):
    """Leave the lock of an owner that gives no more signs of life."""
    lock = Lock(path, "it")
    owner = vars(lock._owner) | {"machine": "elsewhere", "token": str(random.random())} | changes
    lock._owner = Owner(**owner)
    assert lock._create(path)
    return lock._owner


@pytest.fixture
def quick(monkeypatch):
    """Patience and looks of a test's size: ten looks in a tenth of a second."""
    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.setattr(module, "BEAT", 0.02)


def test_file_names_its_owner_and_goes_at_the_end(tmp_path):
    path = tmp_path / "key.lock"
    with locked(path, "it", pytest.fail) as lock:
        record = json.loads(path.read_text())
        assert record["pid"] == os.getpid()
        assert lock.held()
        lock.check()
    assert list(tmp_path.iterdir()) == []
    assert not lock.held()


def test_live_owner_is_waited_for_and_named_once(tmp_path, holder, quick):
    process, end = holder()
    said = []
    threading.Timer(0.5, end.set).start()
    start = time.monotonic()
    with locked(tmp_path / "key.lock", "it", said.append):
        assert time.monotonic() - start > 0.4  # four times the patience: it is known to be alive
    (message,) = said
    assert message.startswith(f"another process is making it: process {process.pid} on ")
    assert "(since 20" in message


@pytest.mark.parametrize("reaped", [True, False])
def test_killed_owner_is_noticed_at_once(tmp_path, holder, reaped):
    process, _ = holder()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its number is still taken
    if reaped:
        process.join()
    said = []
    start = time.monotonic()
    with locked(tmp_path / "key.lock", "it", said.append):
        assert time.monotonic() - start < 5 < module.PATIENCE
    assert len(said) == 1
    assert said[0].startswith(f"process {process.pid} on ")
    assert said[0].endswith("left it unfinished; going on")
    assert list(tmp_path.iterdir()) == []


def test_lock_that_this_process_could_not_release_does_not_stop_it(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    lock = Lock(tmp_path / "key.lock", "it")
    lock.acquire(print)
    monkeypatch.setattr(Lock, "_chain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock.release()
    monkeypatch.undo()
    assert (tmp_path / "key.lock").exists()
    with locked(tmp_path / "key.lock", "it", print) as lock:
        assert lock.held()


def test_owner_elsewhere_is_judged_by_signs_of_life_alone(tmp_path, quick, monkeypatch):
    path = tmp_path / "key.lock"
    leave(path)
    signs = 0

    def beat():
        nonlocal signs
        while signs < 40:
            # a clock that jumps: years ahead and back
            os.utime(path, ns=(0, random.choice([1, 2**61]) + signs))
            signs += 1
            time.sleep(0.02)

    other = threading.Thread(target=beat)
    other.start()
    monkeypatch.setattr(time, "time", lambda: random.uniform(0, 1e10))
    said = []
    with locked(path, "it", said.append) as lock:
        assert signs == 40  # not before it fell silent
        assert lock.held()
    other.join()
    assert len(said) == 2
    assert list(tmp_path.iterdir()) == []


def test_file_of_a_process_that_died_while_it_was_made(tmp_path, quick):
    (tmp_path / "key.lock").touch()
    (tmp_path / "key.lock.unreadable-1").touch()
    with locked(tmp_path / "key.lock", "it", print) as lock:
        assert lock.held()
    assert list(tmp_path.iterdir()) == []


def visit(path, number, failures):
    """Take the lock, be alone with it for a moment, and let go of it or die."""
    with locked(path, "it", lambda message: None):
        try:
            (path.parent / "inside").touch(exist_ok=False)
        except FileExistsError:
            failures.put(number)
        time.sleep(0.002)
        (path.parent / "inside").unlink()
        with (path.parent / "visits").open("a") as file:
            file.write("x")
        if number % 3:
            os._exit(0)


def test_of_many_waiters_one_at_a_time_gets_in(tmp_path, quick):
    path = tmp_path / "key.lock"
    leave(path, machine=owners._machine(), pid=2**22 + 1)  # beyond the largest number of a process
    failures = fork.Queue()
    processes = [fork.Process(target=visit, args=(path, n, failures)) for n in range(30)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert failures.empty()
    assert (tmp_path / "visits").read_text() == "x" * 30


def test_who_acts_on_an_old_observation_sees_it(tmp_path, quick, monkeypatch):
    path = tmp_path / "key.lock"
    dead = leave(path)
    create = Lock._create
    between = []

    def late(self, file):
        if file.name.endswith(dead.token) and not between:
            # meanwhile others: one takes over and lets go, the next takes the lock afresh
            between.append(True)
            with locked(path, "it", print):
                pass
            between.append(locked(path, "it", print))
            between.append(between[-1].__enter__())
            threading.Timer(0.3, between[1].__exit__, (None, None, None)).start()
        return create(self, file)

    monkeypatch.setattr(Lock, "_create", late)
    start = time.monotonic()
    with locked(path, "it", print) as lock:
        assert time.monotonic() - start > 0.25
        assert lock.held()
        assert not between[2].held()
    assert len(between) == 3
    assert list(tmp_path.iterdir()) == []


def hold_elsewhere(path, ready, end, answers):
    owners._machine = lambda: "elsewhere"
    with locked(path, "it", print) as lock:
        ready.set()
        answers.put(lock.lost.wait(30))
        try:
            lock.check()
        except WSSSError as error:
            answers.put(str(error))


def test_suspended_owner_notices_that_it_was_replaced(tmp_path, holder, quick):
    answers = fork.Queue()
    process, _ = holder(hold_elsewhere, answers)
    os.kill(process.pid, signal.SIGSTOP)
    with locked(tmp_path / "key.lock", "it", print) as lock:
        os.kill(process.pid, signal.SIGCONT)
        assert answers.get(timeout=30) is True
        assert "it was taken over by another process" in answers.get(timeout=30)
        process.join()
        lock.check()  # what the other let go of was not this
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_a_stop_is_asked_for(tmp_path, holder):
    holder()
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with (
        interrupt.stop_when(stop),
        pytest.raises(interrupt.Interrupted),
        locked(tmp_path / "key.lock", "it", print),
    ):
        pytest.fail("not to be reached")
    assert (tmp_path / "key.lock").exists()


def test_folder_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(WSSSError, match=r"cannot write .*key\.lock"),
        locked(tmp_path / "absent" / "key.lock", "it", print),
    ):
        pytest.fail("not to be reached")
