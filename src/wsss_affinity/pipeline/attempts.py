"""How long an artefact has been worked on, over all the attempts it took."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.checksums import ATTEMPTS


class Attempts:
    """Counts attempts and adds up their seconds in a small file in the unfinished artefact.

    Attributes:
        work: The directory.
        resumed: Whether an earlier attempt left something there.
        number: Of this attempt, from 1.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.resumed = any(path.name != ATTEMPTS for path in work.iterdir())
        self._path = work / ATTEMPTS
        self._start = time.monotonic()  # a wall clock that is set back would give negative times
        self._earlier, self.number = 0.0, 1
        self._finished = False
        self._turn = threading.Lock()
        with suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(self._path.read_bytes())
            self._earlier, self.number = float(before["seconds"]), int(before["attempts"]) + 1
        self.note()

    @property
    def seconds(self) -> float:
        """Of all attempts so far."""
        return round(self._earlier + time.monotonic() - self._start, 2)

    def note(self) -> None:
        """Write down the time so far; a full disk is no reason to stop here."""
        content = {"attempts": self.number, "seconds": self.seconds}
        with self._turn, suppress(WSSSError):
            if not self._finished:
                write_bytes(self._path, json.dumps(content).encode())

    def finish(self) -> None:
        """Remove the file."""
        with self._turn:
            self._finished = True
            self._path.unlink(missing_ok=True)
