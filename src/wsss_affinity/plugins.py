"""Backbones that installed packages offer through an entry point; nothing is imported to list them.

A package offers one by these lines of its ``pyproject.toml``::

    [project.entry-points."wsss_affinity.backbones"]
    theirs = "their_package:TheirNet"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from wsss_affinity.errors import WSSSError

GROUP = "wsss_affinity.backbones"


def backbone_plugins() -> dict[str, EntryPoint]:
    """Entry points of installed packages by the names they give their backbones."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load_plugin(entry: EntryPoint) -> Any:
    """Import what an entry point refers to.

    Raises:
        WSSSError: If that fails, or another package offers something else by the same name; the
            message names the packages.
    """
    for other in entry_points(group=entry.group, name=entry.name):
        if other.value != entry.value:
            one, two = sorted((_package(entry), _package(other)))
            raise WSSSError(
                f"backbone {entry.name!r} is offered by two installed packages, {one!r} and "
                f"{two!r}; uninstall one of them, or name the class by its import path"
            )
    try:
        return entry.load()
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise WSSSError(
            f"backbone {entry.name!r} of the installed package {_package(entry)!r} cannot be "
            f"imported ({type(error).__name__}: {error}); mend the package, or uninstall it"
        ) from error


def _package(entry: EntryPoint) -> str:
    return entry.module if entry.dist is None else entry.dist.name
