"""A lock in a shared folder: its owner shows signs of life, a dead owner's is taken over.

The lock is a small file that names its owner, made by exclusive creation, the one step that every
shared file system does for exactly one process. A dead owner's file stays where it is; the
successor makes ``<lock>.<token of the dead owner>``, again exclusively, so that of several who
try one succeeds. The last file of this chain is the one that holds the lock. A token is used once:
who acts on an old observation makes a file outside the chain, and sees that.

(filelock's leases take over by exchanging two names, which NFS and SMB refuse.)
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from wsss_affinity import interrupt
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_error
from wsss_affinity.pipeline.owner import OWN, Owner

#: seconds between an owner's signs of life
BEAT = 10.0
#: seconds without one after which an owner that cannot be looked up counts as dead
PATIENCE = 60.0
#: seconds between two looks of a waiter
POLL = 0.25


@dataclass(frozen=True)
class _Link:
    """One file of the chain; ``owner`` is None where its content is no record."""

    file: Path
    owner: Owner | None
    changed: int

    @property
    def token(self) -> str:
        # the maker of an empty file died between making and writing it
        return self.owner.token if self.owner else f"unreadable-{self.file.name.count('.')}"


class Lock:
    """One taking of a lock; :func:`locked` makes it.

    Args:
        path: Its file.
        what: What it keeps others from, for messages.

    Attributes:
        lost: Set when another process is seen to have taken it over.
        on_beat: Called at every sign of life.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self.lost = threading.Event()
        self.on_beat: Callable[[], None] | None = None
        self._file = path
        self._owner = Owner.here()
        self._ended = threading.Event()

    def held(self) -> bool:
        """Whether it is still this process's; another takes it after a minute without signs."""
        chain = self._chain()
        return bool(chain) and chain[-1].token == self._owner.token

    def holder(self) -> str | None:
        """Who holds it, as far as can be told from here; None if nobody who may be alive."""
        chain = self._chain()
        if not chain:
            return None
        owner = chain[-1].owner
        if owner is None:
            return "a process that has not told its name"
        return None if owner.alive() is False else str(owner)

    def check(self) -> None:
        """Stop if it was taken over.

        Raises:
            WSSSError: If so.
        """
        if not self.held():
            self.lost.set()
        if self.lost.is_set():
            raise WSSSError(
                f"{self.what} was taken over by another process, because this one gave no sign of "
                f"life for {PATIENCE:.0f} s (was the computer suspended?); nothing was "
                "overwritten, run the same command again"
            )

    def acquire(self, say: Callable[[str], None]) -> None:
        """Wait for it; see :func:`locked`."""
        seen, looks, told = None, 0, None
        while True:
            chain = self._chain()
            if not chain:
                if self._create(self.path):
                    break
                continue
            last = chain[-1]
            # looks are counted, not seconds: no clock that jumps and no suspended waiter counts
            looks = looks + 1 if seen == (last.token, last.changed) else 0
            seen = last.token, last.changed
            alive = last.owner.alive() if last.owner else None
            if alive is False or (alive is None and looks * POLL >= PATIENCE):
                successor = self._after(last)
                if self._create(successor):
                    if self.held():
                        say(f"{last.owner or 'a process'} left {self.what} unfinished; going on")
                        break
                    successor.unlink(missing_ok=True)  # what was seen is past
                continue
            if last.owner and told != last.token:
                say(f"another process is making {self.what}: {last.owner}; waiting for it")
                told = last.token
            interrupt.check()
            time.sleep(POLL)
        OWN.add(self._owner.token)
        threading.Thread(target=self._show_life, daemon=True, name="lock").start()

    def release(self) -> None:
        """Remove its files, unless it was taken over."""
        OWN.discard(self._owner.token)
        self._ended.set()
        with suppress(OSError):  # then it is taken over when this process has ended
            chain = self._chain()
            if chain and chain[-1].token == self._owner.token:
                for link in chain:  # the first first: what is left without it means nothing
                    link.file.unlink(missing_ok=True)

    def _show_life(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # of a file system that is away for a while
                if not self.held():
                    if not self._ended.is_set():
                        self.lost.set()
                    return
                os.utime(self._file)  # works on a full disk too
                if self.on_beat is not None:
                    self.on_beat()

    def _chain(self) -> list[_Link]:
        chain: list[_Link] = []
        file = self.path
        while (link := _read(file)) is not None:
            chain.append(link)
            file = self._after(link)
        return chain

    def _after(self, link: _Link) -> Path:
        return self.path.with_name(f"{self.path.name}.{link.token}")

    def _create(self, file: Path) -> bool:
        try:
            stream = file.open("xb", buffering=0)
        except FileExistsError:
            return False
        try:
            with stream:
                stream.write(json.dumps(asdict(self._owner)).encode())
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        self._file = file
        return True


@contextmanager
def locked(path: Path, what: str, say: Callable[[str], None]) -> Iterator[Lock]:
    """Hold a lock: one process at a time, on all computers that share the folder.

    A live owner is waited for. A dead one's lock is taken over: on the same computer at once, on
    another, or where processes cannot be looked up, after :data:`PATIENCE` seconds without a
    sign of life, counted by the waiter alone; clocks are never compared.

    Args:
        path: The lock's file; its folder must exist.
        what: What the lock keeps others from, for messages.
        say: Told, once for each owner, who is waited for, and of a take-over.

    Raises:
        WSSSError: If the folder cannot be written.
        Interrupted: If a stop is asked for while waiting.
    """
    lock = Lock(path, what)
    try:
        lock.acquire(say)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield lock
    finally:
        lock.release()


def _read(file: Path) -> _Link | None:
    try:
        with file.open("rb") as stream:  # opening asks the server: NFS keeps old times otherwise
            changed = os.fstat(stream.fileno()).st_mtime_ns
            content = stream.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError):
        owner = None
    return _Link(file, owner, changed)
