import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsss_affinity import interrupt


@pytest.fixture(autouse=True)
def default_handlers():
    # in a shell's background Python is started with SIGINT ignored
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_becomes_a_request_and_its_echo_changes_nothing(number):
    with interrupt.stop_on_signals():
        interrupt.check()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes on what the group got already
        assert interrupt.requested()
        with pytest.raises(interrupt.Interrupted):
            interrupt.check()
    assert not interrupt.requested()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_later_signal_ends_at_once():
    code = (
        "import os, signal, sys, time\n"
        "from wsss_affinity import interrupt\n"
        "interrupt._ECHO_S = 0.05\n"
        "with interrupt.stop_on_signals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.1)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('not here')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == -signal.SIGTERM
    assert result.stdout == "still here\n"
    assert result.stderr == ""


def test_handlers_of_others_stay():
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupt.stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM]
        assert not interrupt.requested()


def test_inner_use_leaves_the_request_to_the_outer_one():
    with interrupt.stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with interrupt.stop_on_signals():
            assert interrupt.requested()
        assert interrupt.requested()


def test_in_a_thread_nothing_happens():
    seen = []

    def use():
        with interrupt.stop_on_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_spared_worker_outlives_the_signals_of_its_group():
    reader, writer = os.pipe()
    with interrupt.stop_on_signals():
        pid = os.fork()
        if pid == 0:
            interrupt.spare_worker(0)
            os.write(writer, b"ready")
            time.sleep(0.5)
            os._exit(7)
        assert os.read(reader, 5) == b"ready"
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    os.close(reader)
    os.close(writer)
