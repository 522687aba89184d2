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
        WSSSError: If that fails; the message names the package.
    """
    try:
        return entry.load()
    except Exception as error:  # whatever a foreign module raises when it is imported
        package = entry.dist.name if entry.dist is not None else entry.module
        raise WSSSError(
            f"backbone {entry.name!r} of the installed package {package!r} cannot be imported "
            f"({type(error).__name__}: {error}); mend the package, or uninstall it"
        ) from error
