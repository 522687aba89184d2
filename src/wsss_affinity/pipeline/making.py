"""The making of one artefact: its lock, its unfinished directory, its completion."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from wsss_affinity import interrupt
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import make_directory, write_bytes, write_error
from wsss_affinity.pipeline.attempts import Attempts
from wsss_affinity.pipeline.checksums import (
    MANIFEST,
    UNFINISHED,
    damaged_files,
    read_manifest,
    remove_leftovers,
    write_record,
)
from wsss_affinity.pipeline.lock import Lock, locked
from wsss_affinity.pipeline.storage import remove_half_shards


class Making:
    """One process's turn at an artefact, as a context; the lock is let go at its end.

    Args:
        final: The artefact's directory when complete.
        force: Make it anew even if it is there.
        say: Told who is waited for, and of damage.
    """

    def __init__(self, final: Path, *, force: bool, say: Callable[[str], None]) -> None:
        self._final = final
        self._force = force
        self._say = say
        self._plain = final.with_name(f"{final.name}.partial")
        self._forced = final.with_name(f"{final.name}.forced.partial")
        self._stack = ExitStack()
        self._lock: Lock | None = None
        self._attempts: Attempts | None = None

    def __enter__(self) -> Making:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            if self._lock is None or self._attempts is None or error is None:
                return
            if isinstance(error, interrupt.Interrupted):
                self._lock.check()  # its loss may be what asked for the stop
            if not self._lock.lost.is_set():
                self._attempts.note()

    def prepare(self) -> Path | dict[str, Any]:
        """Take the lock, unless the artefact is there and sound.

        Returns:
            The directory to work in; the artefact's manifest if there is nothing to do.
        """
        if (manifest := self._sound()) is not None:
            return manifest
        make_directory(self._final.parent)
        path = self._final.with_name(f"{self._final.name}.lock")
        self._lock = self._stack.enter_context(locked(path, str(self._final), self._say))
        if (manifest := self._sound()) is not None:
            return manifest  # another process made it meanwhile
        for finished in (self._forced, self._plain):
            if (finished / MANIFEST).is_file():  # killed just before it got its name
                manifest = read_manifest(finished)
                self._commit(finished)
                return manifest
        if self._force:
            work = make_directory(self._forced)
        else:
            if self._final.exists():
                self._put_back()
            work = make_directory(self._plain)
        self._attempts = Attempts(work)
        self._lock.on_beat = self._attempts.note
        self._stack.enter_context(interrupt.stop_when(self._lock.lost))
        return work

    def complete(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """Give the artefact its checksums, its manifest, which is returned, and its name."""
        assert self._lock is not None
        assert self._attempts is not None
        work = self._attempts.work
        remove_leftovers(work)
        remove_half_shards(work)
        manifest = {
            **description,
            "versions": versions(),
            "git_commit": git_commit(),
            "content": write_record(work),
            "resumed": self._attempts.resumed,
            "attempts": self._attempts.number,
            "wall_time_s": self._attempts.seconds,
        }
        self._lock.check()
        write_bytes(work / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        self._attempts.finish()
        manifest = read_manifest(work)
        self._commit(work)
        return manifest

    def _sound(self) -> dict[str, Any] | None:
        """The manifest of an artefact that is there and sound."""
        if self._force or not (self._final / MANIFEST).is_file():
            return None
        try:
            return None if damaged_files(self._final) else read_manifest(self._final)
        except (OSError, WSSSError):
            return None  # it is being replaced

    def _put_back(self) -> None:
        """Turn the damaged artefact into an unfinished one that lacks what is damaged."""
        damaged = damaged_files(self._final)
        rest = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        self._say(
            f"{self._final} is damaged ({', '.join(damaged[:3])}{rest} missing or changed since "
            "it was made); making that again"
        )
        try:
            shutil.rmtree(self._plain, ignore_errors=True)
            # killed in between, it is still found damaged
            for name in (*damaged, MANIFEST):
                (self._final / name).unlink(missing_ok=True)
            os.replace(self._final, self._plain)
        except OSError as error:
            raise write_error(self._final, error) from error

    def _commit(self, work: Path) -> None:
        old = self._final.with_name(f"{self._final.name}.old")
        try:
            for name in UNFINISHED:
                (work / name).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
            if self._final.exists():
                os.replace(self._final, old)
            os.replace(work, self._final)
        except OSError as error:
            raise write_error(self._final, error) from error
        for past in (old, self._plain):
            shutil.rmtree(past, ignore_errors=True)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("wsss-affinity", "torch", "torchvision", "pytorch-lightning", "numpy", "pydensecrf2")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, None where it is not one."""
    here = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
