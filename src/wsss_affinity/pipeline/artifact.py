"""Artefacts: directories named by a fingerprint, whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wsss_affinity import world
from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.interrupt import Interrupted
from wsss_affinity.pipeline.checksums import MANIFEST, read_manifest
from wsss_affinity.pipeline.making import Making

T = TypeVar("T")


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


def samples_fingerprint(samples: Iterable[Sample]) -> tuple[str, str]:
    """Hash a data list: ids, image-level labels and file sizes, but not where the files are.

    Args:
        samples: The list, in order.

    Returns:
        The hash without and with the masks, which count for scores alone.
    """
    without, with_masks = hashlib.sha256(), hashlib.sha256()
    for sample in samples:
        sizes = [_size(sample.image)]
        without.update(f"{sample.id}|{sample.labels}|{sizes}\n".encode())
        if sample.mask is not None:
            sizes.append(_size(sample.mask))
        with_masks.update(f"{sample.id}|{sample.labels}|{sizes}\n".encode())
    return without.hexdigest()[:16], with_masks.hexdigest()[:16]


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
        return read_manifest(self.path(stage, key))

    def make(
        self,
        stage: str,
        key: str,
        build: Callable[[Path], Mapping[str, Any]],
        describe: Mapping[str, Any],
        *,
        force: bool = False,
        say: Callable[[str], None] = print,
    ) -> tuple[Path, bool, dict[str, Any]]:
        """Make an artefact, unless it is there and sound.

        The work happens in ``<fingerprint>.partial``, which a killed process leaves behind and
        the next one goes on with; when complete it gets its manifest and its name. Of a damaged
        artefact the damaged files are made again.

        Where several processes share the run, the first alone locks, decides and commits, and all
        of them build. One that fails in ``build`` has to end; then its launcher ends the others,
        as ``torchrun`` and ``srun --kill-on-bad-exit`` do.

        Args:
            stage: Name of the stage.
            key: Fingerprint.
            build: Fills the directory given to it, reusing what is there already, and returns
                what the manifest keeps as ``metrics``.
            describe: Further entries of the manifest.
            force: Make it anew even so, in ``<fingerprint>.forced.partial``; the old one stays
                until the new one is complete.
            say: Told when another process is making the same artefact, and of damage.

        Returns:
            Its path, whether it was made now, and its manifest; the same in all processes.

        Raises:
            WSSSError: If the folder cannot be written, or the lock was lost meanwhile.
            Interrupted: If a stop is asked for while another process is making it.
        """
        final = self.path(stage, key)
        with Making(final, force=force, say=say) as making:
            work = led(making.prepare)
            if isinstance(work, dict):
                return final, False, work
            metrics = build(work)
            world.barrier()
            head = {"stage": stage, "fingerprint": key, **describe}
            manifest = led(partial(making.complete, {**head, "metrics": dict(metrics)}))
        return final, True, manifest


def led(function: Callable[[], T]) -> T:
    """Run it in the first of the processes that share the run; all get its result or error.

    Of what may change on the disk one process has to say how it is: two that ask may hear two
    answers, and then wait for each other at different places.

    Raises:
        WSSSError: If the first process raised it.
        Interrupted: If a stop was asked for there.
    """
    result, error = None, None
    if world.rank() == 0:
        try:
            result = function()
        except (WSSSError, Interrupted) as caught:
            error = caught
    result, error = world.broadcast((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
