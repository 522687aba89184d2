"""A process that owns something in a shared folder, and whether it is alive."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

#: tokens of the locks that this process holds
OWN: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Name of its computer, for people.
        machine: What tells that computer from all others.
        boot: The start of its system that the process belongs to.
        namespace: Whose process numbers it has: containers have their own.
        pid: Number of the process.
        start: When the process started, in ticks since boot; None where that cannot be known.
        since: When it took the lock, for people.
        token: Of this one taking; never used again.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    start: int | None
    since: str
    token: str

    @classmethod
    def here(cls) -> Owner:
        """This process, with a token of its own."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            boot=_boot(),
            namespace=_namespace(),
            pid=os.getpid(),
            start=_process_start(os.getpid()),
            since=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            token=uuid.uuid4().hex,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    def alive(self) -> bool | None:
        """Whether it holds its lock still; None where that cannot be told from here."""
        if self.pid == os.getpid() and self._near():
            return self.token in OWN  # a second Ctrl-C may have kept it from being released
        return self.runs()

    def runs(self) -> bool | None:
        """Whether its process is running; None where that cannot be told from here."""
        if self.machine == _machine() and self.boot != _boot():
            return False  # nothing outlives its system
        if not self._near() or os.name != "posix":
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        start = _process_start(self.pid)
        if start is None or self.start is None:
            return None
        return start == self.start  # otherwise the number was given to a later process

    def _near(self) -> bool:
        """Whether its number means here what it means there."""
        here = _machine(), _boot(), _namespace()
        return (self.machine, self.boot, self.namespace) == here


@lru_cache(maxsize=1)
def _machine() -> str:
    # names may be given twice, and containers often have no number of their own
    try:
        number = Path("/etc/machine-id").read_text().strip()
    except OSError:
        number = ""
    return f"{socket.gethostname()} {number or _boot()}"


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{uuid.getnode():x}"


@lru_cache(maxsize=1)
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """Ticks from boot to the start of a process; 0 for one that has ended, None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat[stat.rfind(")") + 1 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
