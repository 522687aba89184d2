"""Artefacts: directories named by a fingerprint, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import make_directory, write_bytes, write_error

MANIFEST = "manifest.json"


def fingerprint(content: Any) -> str:
    """Hash of plain data, independent of the order of keys; 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Hash of a file's bytes.

    Raises:
        WSSSError: If it cannot be read.
    """
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise WSSSError(f"file {path} cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()[:16]


def samples_fingerprint(samples: Iterable[Sample], *, masks: bool = False) -> str:
    """Hash of a data list: ids, image-level labels and file sizes, but not where the files are.

    Args:
        samples: The list, in order.
        masks: Whether the masks count too; they do for scores alone.
    """
    digest = hashlib.sha256()
    for sample in samples:
        files = [sample.image] + ([sample.mask] if masks and sample.mask else [])
        sizes = [_size(path) for path in files]
        digest.update(f"{sample.id}|{sample.labels}|{sizes}\n".encode())
    return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # reported by the check of the data, with a reason


@dataclass(frozen=True)
class ArtifactStore:
    """All artefacts below one folder: ``<root>/<stage>/<fingerprint>/``.

    Attributes:
        root: The folder.
    """

    root: Path

    def path(self, stage: str, key: str) -> Path:
        """Where an artefact is, or would be."""
        return self.root / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Whether it is complete."""
        return (self.path(stage, key) / MANIFEST).is_file()

    def manifest(self, stage: str, key: str) -> dict[str, Any]:
        """Read its manifest.

        Raises:
            WSSSError: If it is missing or damaged.
        """
        path = self.path(stage, key) / MANIFEST
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise WSSSError(
                f"{path} cannot be read ({error}); remove its folder and run again"
            ) from error
        return content

    def make(
        self,
        stage: str,
        key: str,
        build: Callable[[Path], Mapping[str, Any]],
        describe: Mapping[str, Any],
        *,
        force: bool = False,
        say: Callable[[str], None] = print,
    ) -> tuple[Path, bool]:
        """Make an artefact, unless it is there.

        The work happens in ``<fingerprint>.partial``, which a killed process leaves behind and
        the next one goes on with; when complete it gets its manifest and its name.

        Args:
            stage: Name of the stage.
            key: Fingerprint.
            build: Fills the directory given to it, reusing what is there already, and returns
                what the manifest keeps as ``metrics``.
            describe: Further entries of the manifest.
            force: Make it anew even so; the old one stays until the new one is complete.
            say: Told when another process is making the same artefact.

        Returns:
            Its path, and whether it was made now.

        Raises:
            WSSSError: If the folder cannot be written.
        """
        final = self.path(stage, key)
        make_directory(final.parent)
        with self._locked(final, say):
            if self.has(stage, key) and not force:
                return final, False
            work = make_directory(final.with_name(f"{key}.partial"))
            if not (work / MANIFEST).is_file():
                start = time.perf_counter()
                resumed = any(work.iterdir())
                metrics = build(work)
                for leftover in work.rglob(".*.tmp"):  # of a process killed while it wrote
                    leftover.unlink(missing_ok=True)
                manifest = {
                    "stage": stage,
                    "fingerprint": key,
                    **describe,
                    "metrics": dict(metrics),
                    "versions": versions(),
                    "git_commit": git_commit(),
                    "resumed": resumed,
                    "wall_time_s": round(time.perf_counter() - start, 2),
                }
                write_bytes(work / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
            self._commit(work, final)
        return final, True

    @contextmanager
    def _locked(self, final: Path, say: Callable[[str], None]) -> Iterator[None]:
        # the operating system lets go of the lock when its owner dies, however it dies
        lock = FileLock(final.with_name(f"{final.name}.lock"))
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"another process is making {final}; waiting for it")
                lock.acquire()
        except OSError as error:
            raise write_error(final, error) from error
        try:
            yield
        finally:
            lock.release()

    def _commit(self, work: Path, final: Path) -> None:
        try:
            if final.exists():
                old = final.with_name(f"{final.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                os.replace(final, old)
                os.replace(work, final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(work, final)
        except OSError as error:
            raise write_error(final, error) from error


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
