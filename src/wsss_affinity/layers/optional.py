"""Packages that make layers faster where they are installed."""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec


@lru_cache(maxsize=8)
def recent(package: str, minimum: tuple[int, int]) -> bool:
    """Whether a package is there in at least this version, as (major, minor)."""
    if find_spec(package) is None:
        return False
    major, minor = import_module(package).__version__.split(".")[:2]
    return (int(major), int(minor)) >= minimum
