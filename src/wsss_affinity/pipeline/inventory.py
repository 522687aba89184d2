"""The artefacts that there are: what each is, what it came of, and who needs it."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.checksums import MANIFEST
from wsss_affinity.pipeline.lock import Lock

#: what is added to the name of an artefact that is being made
_BEING_MADE = (".partial", ".forced.partial")


@dataclass(frozen=True)
class Artifact:
    """One artefact, complete or not.

    Attributes:
        stage: That made it.
        key: Its fingerprint.
        path: Its folder when complete.
        manifest: What it says of itself; empty if it is not complete, None if that is damaged.
        unfinished: Folders in which it is, or was, being made.
        needed_by: Names of the artefacts that were made from it.
    """

    stage: str
    key: str
    path: Path
    manifest: Mapping[str, Any] | None
    unfinished: tuple[Path, ...]
    needed_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``<stage>/<fingerprint>``."""
        return f"{self.stage}/{self.key}"

    @property
    def state(self) -> str:
        """In one word."""
        if self.manifest is None:
            return "damaged"
        return "complete" if self.manifest and not self.unfinished else "unfinished"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(map(_size, (self.path, *self.unfinished, *self.leftovers)))

    @property
    def leftovers(self) -> tuple[Path, ...]:
        """Folders on their way out when the process was killed that deleted them."""
        old = self.path.with_name(f"{self.key}.old")
        return (old,) if old.is_dir() else ()

    @property
    def inputs(self) -> dict[str, str]:
        """Names of the artefacts that it was made from, by stage."""
        return {s: f"{s}/{key}" for s, key in (self.manifest or {}).get("inputs", {}).items()}

    @property
    def age(self) -> float | None:
        """Seconds since it was completed; None if it is not."""
        try:
            return max(0.0, time.time() - (self.path / MANIFEST).stat().st_mtime)
        except OSError:
            return None

    @property
    def lock(self) -> Path:
        """File of the lock that its maker holds."""
        return self.path.with_name(f"{self.key}.lock")

    @property
    def busy(self) -> str | None:
        """Why nobody may touch it: it is being made, or was, and waits to be gone on with."""
        holder = Lock(self.lock, self.name).holder()
        if holder is not None:
            return f"in the hands of {holder}"
        being_made = self.unfinished or (self.path.is_dir() and not self.manifest)
        return self.state if being_made else None

    @property
    def settings(self) -> dict[str, str]:
        """What its fingerprint is made of, apart from its inputs and the images."""
        manifest = self.manifest or {}
        told = {**manifest.get("config", {}), "data": manifest.get("data", {})}
        return dict(_flat(told))


@dataclass(frozen=True)
class Inventory:
    """All artefacts below ``<output_dir>/artifacts``, by name.

    Attributes:
        artifacts: By ``<stage>/<fingerprint>``.
    """

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Path) -> Inventory:
        """Look at all of them."""
        found = [a for stage in _folders(output / "artifacts") for a in _artifacts(stage)]
        needed = defaultdict(list)
        for artifact in found:
            for name in artifact.inputs.values():
                needed[name].append(artifact.name)
        return cls({a.name: replace(a, needed_by=tuple(needed[a.name])) for a in found})

    def find(self, prefix: str) -> Artifact:
        """The one whose fingerprint, or ``<stage>/<fingerprint>``, begins so.

        Raises:
            WSSSError: If there is none, or more than one.
        """
        found = [a for a in self.artifacts.values() if prefix in (a.name, a.key)] or [
            a
            for a in self.artifacts.values()
            if a.name.startswith(prefix) or a.key.startswith(prefix)
        ]
        if len(found) != 1:
            some = ", ".join(a.name for a in found[:5])
            what = f"begins the names of {len(found)} ({some}); give more of it"
            raise WSSSError(
                f"{prefix!r} {what if found else 'begins the name of no artefact; see --artifacts'}"
            )
        return found[0]

    def nearest(self, artifact: Artifact) -> tuple[Artifact, dict[str, tuple[str, str]]] | None:
        """The artefact of the same stage that differs least, and in what.

        Returns:
            It, and the values here and there by key; None if there is no other.
        """
        others = [
            other
            for other in self.artifacts.values()
            if other.stage == artifact.stage and other.manifest and other.key != artifact.key
        ]
        told = [(other, self.differences(artifact, other)) for other in others]
        return min(told, key=lambda pair: len(pair[1]), default=None)

    def differences(self, one: Artifact, other: Artifact) -> dict[str, tuple[str, str]]:
        """Settings in which two artefacts differ, those of what they were made from included."""
        found = {
            key: (one.settings.get(key, "—"), other.settings.get(key, "—"))
            for key in {**one.settings, **other.settings}
            if one.settings.get(key) != other.settings.get(key)
        }
        for stage in {**one.inputs, **other.inputs}:
            names = one.inputs.get(stage, "—"), other.inputs.get(stage, "—")
            if names[0] == names[1]:
                continue
            below = [self.artifacts.get(name) for name in names]
            reasons = {}
            if below[0] is not None and below[1] is not None:
                reasons = self.differences(below[0], below[1])
            found |= reasons or {f"input {stage}": names}
        return found


def _artifacts(stage: Path) -> Iterator[Artifact]:
    keys: dict[str, list[Path]] = defaultdict(list)
    for folder in _folders(stage):
        keys[folder.name.split(".")[0]].append(folder)
    for key, folders in keys.items():
        path = stage / key
        yield Artifact(
            stage.name,
            key,
            path,
            _manifest(path),
            tuple(f for f in folders if f.name.removeprefix(key) in _BEING_MADE),
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def _size(folder: Path) -> int:
    """Bytes of all files below a folder, which others may be changing."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    total += _size(Path(entry.path)) if is_folder else entry.stat().st_size
                except FileNotFoundError:
                    continue
    except FileNotFoundError:
        pass
    return total


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves by their dotted keys, as JSON."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _flat(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)
