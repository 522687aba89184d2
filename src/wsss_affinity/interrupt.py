"""A request to stop, noticed where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: exit status of a run that was asked to stop and goes on when started again (EX_TEMPFAIL)
RESUMABLE = 75
#: Ctrl-C and Slurm reach the whole group of processes, and a launcher passes it on to them again;
#: within this time that counts as one request
_ECHO_S = 2.0
#: seconds that workers go on after SIGTERM where stops are handled
_GRACE_S = 30

#: what Python does by itself; the command line ends on SIGTERM as on Ctrl-C while no job runs
_BY_DEFAULT: tuple[Any, ...] = (signal.SIG_DFL, signal.default_int_handler)
_requested = threading.Event()
_events: list[threading.Event] = []
_first = 0.0


class Interrupted(BaseException):
    """Raised at a safe point after SIGINT or SIGTERM; not an error of the work itself."""


def requested() -> bool:
    """Whether a stop was asked for; work in hand should be finished and saved."""
    return _requested.is_set() or any(event.is_set() for event in _events)


@contextmanager
def stop_when(event: threading.Event) -> Iterator[None]:
    """Count an event as a request, while this lasts."""
    _events.append(event)
    try:
        yield
    finally:
        _events.remove(event)


def check() -> None:
    """Stop here if that was asked for.

    Raises:
        Interrupted: If so.
    """
    if requested():
        raise Interrupted


def _request(number: int, frame: FrameType | None) -> None:
    global _first
    if not _requested.is_set():
        _first = time.monotonic()
        _requested.set()
    elif time.monotonic() - _first > _ECHO_S:
        # whatever is being written is not there yet: dying loses only the item in hand
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request, a later one into the end at once.

    A signal that somebody else handles or ignores is left to them: submitit answers SIGTERM and
    puts its job into the queue again, ``nohup`` ignores SIGINT. Outside the main thread signals
    cannot be handled, and nothing happens.
    """
    taken: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in _BY_DEFAULT:
                taken[number] = signal.signal(number, _request)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if taken:
            _requested.clear()


def spare_worker(_: int) -> None:
    """Leave stopping to the parent: a ``worker_init_fn`` for DataLoader.

    Ctrl-C and Slurm's signals reach workers too; these end when their parent asks them to, or is
    gone. SIGUSR1 and SIGUSR2 are submitit's, whose handler a worker would inherit.
    """
    if callable(signal.getsignal(signal.SIGTERM)):
        # ignored, a worker that is still there at the end of its parent would never end
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
