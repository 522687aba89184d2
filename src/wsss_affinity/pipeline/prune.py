"""Removing artefacts that nobody refers to, and nothing else.

An artefact stays if

* the folder of a run refers to it: by its ``metrics.json``, or by the record of what the run uses
  or was about to make (:mod:`wsss_affinity.pipeline.in_use`), however the run ended,
* a run in progress uses it, also one that has no folder, or has it elsewhere,
* it is unfinished, or a run that left something unfinished uses it, or its lock is held,
* one that stays was made from it,
* or it is what the images were found to be (``check_data``): a few bytes that any run may read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.checksums import MANIFEST
from wsss_affinity.pipeline.in_use import Use, uses
from wsss_affinity.pipeline.inventory import Artifact, Inventory
from wsss_affinity.pipeline.lock import locked
from wsss_affinity.pipeline.runs import read_runs

_SHARED = "check_data"


@dataclass(frozen=True)
class Pruning:
    """What goes, what stays, and why.

    Attributes:
        delete: Each before what it was made from: if this is killed half-way, none is left
            without its inputs.
        keep: The reason for each other, by name.
    """

    delete: tuple[Artifact, ...]
    keep: Mapping[str, str]


def plan_pruning(output: Path, inventory: Inventory) -> Pruning:
    """Choose what nobody refers to.

    Args:
        output: The folder that holds ``artifacts``.
        inventory: Of it.

    Raises:
        WSSSError: If a file is damaged that tells who uses what.
    """
    users = users_of_artifacts(output)
    artifacts = inventory.artifacts
    keep: dict[str, str] = {}
    for name, artifact in artifacts.items():
        if artifact.manifest is None:
            raise WSSSError(
                f"{artifact.path / MANIFEST} is damaged, so it is not known what it was made from; "
                "run again what made it, or remove its folder"
            )
        reason = f"used by {users[name][0]}" if name in users else artifact.busy
        if reason is None and artifact.stage == _SHARED:
            reason = "any run may read it"
        if reason is not None:
            keep[name] = reason
    left = list(keep)
    while left:
        user = left.pop()
        for name in artifacts[user].inputs.values():
            if name in artifacts and name not in keep:
                keep[name] = f"{user} was made from it"
                left.append(name)

    delete: dict[str, Artifact] = {}

    def add(artifact: Artifact) -> None:
        for name in artifact.needed_by:  # those that stay would have kept it
            add(artifacts[name])
        delete[artifact.name] = artifact

    for name, artifact in artifacts.items():
        if name not in keep and name not in delete:
            add(artifact)
    return Pruning(tuple(delete.values()), keep)


def users_of_artifacts(output: Path) -> dict[str, list[str]]:
    """Names of the runs that refer to an artefact, by its name; see the module.

    Raises:
        WSSSError: If a file is damaged that tells it.
    """
    found: dict[str, list[str]] = {}
    for run in read_runs(output):
        for name in run.artifacts:
            found.setdefault(name, []).append(run.name)
    for name, users in _recorded(output).items():
        known = found.setdefault(name, [])
        known += [user for user in users if user not in known]
    return found


def prune(
    output: Path, artifacts: Sequence[Artifact], say: Callable[[str], None]
) -> dict[str, str]:
    """Delete artefacts, unless someone has come to need one meanwhile.

    Args:
        output: The folder that holds ``artifacts``.
        artifacts: As :func:`plan_pruning` gave them.
        say: Told of dead processes' locks.

    Returns:
        Why some were not deleted, by name.

    Raises:
        WSSSError: If one cannot be deleted.
    """
    kept: dict[str, str] = {}
    for artifact in artifacts:
        user = next((name for name in artifact.needed_by if name in kept), None)
        reason = f"{user} was made from it" if user else _remove(output, artifact, say)
        if reason is not None:
            kept[artifact.name] = reason
    for use in uses(output):
        if not _counts(output, use):
            use.file.unlink(missing_ok=True)
    return kept


def _remove(output: Path, artifact: Artifact, say: Callable[[str], None]) -> str | None:
    """Delete one artefact; the reason if not."""
    if artifact.busy is not None:
        return artifact.busy
    old = artifact.path.with_name(f"{artifact.key}.old")
    try:
        with locked(artifact.lock, str(artifact.path), say) as lock:
            if artifact.path.is_dir():
                shutil.rmtree(old, ignore_errors=True)
                lock.check()
                os.replace(artifact.path, old)
            elif not old.is_dir():
                return None  # another pruning was quicker
            # who looks from here on finds it gone, and who looked before has noted that
            users = _recorded(output).get(artifact.name)
            if users:
                os.replace(old, artifact.path)
                return f"used by {users[0]}, which has started meanwhile"
            shutil.rmtree(old)
    except OSError as error:
        raise WSSSError(
            f"{artifact.path} cannot be deleted ({error.strerror or error}); mend that and prune "
            "again"
        ) from error
    return None


def _recorded(output: Path) -> dict[str, list[str]]:
    """Names of the runs that have noted an artefact, by its name."""
    found: dict[str, list[str]] = {}
    for use in uses(output):
        if _counts(output, use):
            for name in use.artifacts:
                found.setdefault(name, []).append(_user(output, use))
    return found


def _counts(output: Path, use: Use) -> bool:
    """Whether a run may go on, or its folder is there."""
    if use.running or (use.folder is not None and use.folder.is_dir()):
        return True
    root = output / "artifacts"
    return any(next(root.glob(f"{name}.*partial"), None) for name in use.artifacts)


def _user(output: Path, use: Use) -> str:
    if use.folder is None:
        return str(use.owner)
    inside = use.folder.is_relative_to(output.resolve())
    return (use.folder.relative_to(output.resolve()) if inside else use.folder).as_posix()
