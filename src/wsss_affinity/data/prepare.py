"""Work over all files of a data set, done once: in threads, with a bar, going on where it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

from wsss_affinity.callbacks import progress_bar
from wsss_affinity.errors import WSSSError

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4  # decoding and writing PNGs overlap; more wait for each other


def for_each(
    name: str, items: Sequence[T], work: Callable[[T], R]
) -> Iterator[tuple[T, R | WSSSError]]:
    """Run ``work`` on every item and yield the results in order.

    A :class:`~wsss_affinity.errors.WSSSError` comes back as a value, so that the caller decides
    whether one bad file stops the whole.

    Args:
        name: For the bar.
        items: What is to be done; no bar is shown when there is nothing.
        work: What to do with one.
    """
    if not items:
        return

    def attempt(item: T) -> R | WSSSError:
        try:
            return work(item)
        except WSSSError as error:
            return error

    with ThreadPool(_THREADS) as pool, progress_bar(name, len(items)) as bar:
        for item, result in zip(items, pool.imap(attempt, items), strict=True):
            bar.update()
            yield item, result


def origin_key(*origins: Path) -> str:
    """Names a folder for what is made of some files or folders, so that none is taken for another.

    Args:
        origins: What it is made of; of files the size and the time of change count too.

    Returns:
        Eight hexadecimal digits.
    """
    parts = []
    for origin in origins:
        stat = origin.stat()
        change = f"{stat.st_size}|{stat.st_mtime_ns}" if origin.is_file() else ""
        parts.append(f"{origin.resolve()}|{change}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def outdated(made: Path, origin: Path) -> bool:
    """Whether a file made from ``origin`` is missing or older than it, or ``origin`` is missing.

    Files are written whole or not at all, so one that is there is whole.
    """
    try:
        return made.stat().st_mtime_ns < origin.stat().st_mtime_ns
    except FileNotFoundError:
        return True
