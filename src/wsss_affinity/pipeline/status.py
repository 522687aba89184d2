"""What a job tells of itself: ``status.json``, and tracebacks in its log file."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from wsss_affinity import world
from wsss_affinity.errors import BAD_INPUT, WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.interrupt import RESUMABLE
from wsss_affinity.pipeline.owner import Owner
from wsss_affinity.pipeline.runs import STATUS

#: exit status after an error that is not bad input, as Python has it
BROKEN = 1


class Status:
    """Keeps ``status.json`` in the folder of a job.

    ``state`` is ``running``, ``done``, ``failed`` or ``interrupted``; ``resumable`` says that the
    same command goes on where this one stopped. A job that was killed stays ``running``, with an
    ``owner`` that is gone. Of several processes of a run rank 0 writes, and
    any that fails.

    Args:
        folder: Of the job.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATUS
        self._content: dict[str, Any] = {
            "state": "running",
            "stage": None,
            "error": None,
            "resumable": True,
            "exit_status": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owner": asdict(Owner.here()),
            "started": _now(),
            "ended": None,
        }
        self._write()

    def stage(self, name: str) -> None:
        """Note the stage that is now in work."""
        self._content["stage"] = name
        with suppress(WSSSError):  # the work itself says it better
            self._write()

    def end(self, state: str, exit_status: int, error: str | None = None) -> None:
        """Note how the job ended."""
        self._content |= {
            "state": state,
            "error": error,
            "resumable": state == "interrupted",
            "exit_status": exit_status,
            "ended": _now(),
        }
        if self._failed_elsewhere():
            return
        with suppress(WSSSError):  # of a full disk, say, which is the error already
            self._write()

    def _write(self) -> None:
        if world.rank() == 0 or self._content["state"] == "failed":
            write_bytes(self.path, (json.dumps(self._content, indent=2) + "\n").encode())

    def _failed_elsewhere(self) -> bool:
        """Whether another process failed and said so, which is why this one ends."""
        if world.size() == 1:
            return False
        try:
            return bool(json.loads(self.path.read_text())["state"] == "failed")
        except (OSError, ValueError):
            return False


@contextmanager
def job_status(folder: Path) -> Iterator[Status]:
    """Keep the status of what is done inside, and the traceback of what escapes from it.

    Raises:
        WSSSError: If the folder cannot be written.
    """
    status = Status(folder)
    try:
        with world.others_end():
            yield status
    except Exception as error:
        message = sentence(error)
        write_traceback(message, error)
        status.end("failed", BAD_INPUT if isinstance(error, WSSSError) else BROKEN, message)
        raise
    except BaseException:
        status.end("interrupted", RESUMABLE)
        raise
    status.end("done", 0)


def sentence(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, WSSSError):
        # a message that crossed a process boundary brings that process's traceback along
        return str(error).rsplit("WSSSError: ", 1)[-1].strip()
    first = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def write_traceback(message: str, error: BaseException) -> None:
    """Write a message and the traceback of an error to the log file, not to the terminal."""
    detail = type(error), error, error.__traceback__
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, detail)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
