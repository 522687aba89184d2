"""Errors that a user can act on, and the near-miss suggestions inside them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: exit status of the command line after bad input
BAD_INPUT = 2


class WSSSError(Exception):
    """Bad input, told in one sentence: what is wrong, what was expected, what to do.

    The command line prints the message alone; anything else that escapes is a bug and keeps its
    traceback.
    """


class WriteError(WSSSError):
    """The disk is full or read-only: the work goes on when that is mended, and not before."""


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Suggest the nearest valid names, or list them all when nothing is near.

    >>> did_you_mean("resnet8", ["resnet18", "resnet50", "vgg16"])
    "did you mean 'resnet18' or 'resnet50'?"
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "valid names: " + ", ".join(names)
