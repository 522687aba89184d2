"""Image-level labels read off ground-truth masks, for data sets that have no others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsss_affinity.data.images import load_mask
from wsss_affinity.data.prepare import for_each
from wsss_affinity.data.source import Problem, Sample, check_values
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.losses.affinity import UNSURE


def labels_from_masks(
    samples: Sequence[Sample], mask_values: Sequence[int], cache: Path
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    """Give every sample the classes that cover at least one pixel of its mask.

    Which values a mask holds is kept in ``cache``, a JSON file, beside the mask's name, size and
    time of change, so that only new and changed masks are read again. A damaged cache is made
    anew.

    Args:
        samples: Samples of a data set without background.
        mask_values: The label of each value in a mask file, as in
            :class:`~wsss_affinity.data.source.Source`.
        cache: The JSON file.

    Returns:
        The samples with their labels, and those left out because their mask is missing, cannot
        be read or holds an unknown value.

    Raises:
        WSSSError: If the cache cannot be written.
    """
    known = _read_cache(cache)
    stamps = {sample.id: _stamp(sample) for sample in samples}
    unread = [s for s in samples if s.id not in known or known[s.id][0] != stamps[s.id]]
    failed: dict[str, str] = {}
    read: dict[str, tuple[str, list[int]]] = {}
    try:
        for sample, values in for_each("labels from masks", unread, _read_values):
            if isinstance(values, WSSSError):
                failed[sample.id] = str(values)
            else:
                read[sample.id] = (stamps[sample.id], values)
    finally:
        # an interrupted pass over thousands of large masks is not lost
        if read:
            known.update(read)
            write_bytes(cache, json.dumps(known).encode())

    labelled, problems = [], []
    for sample in samples:
        message = failed.get(sample.id)
        if message is None and sample.mask is not None:
            present = known[sample.id][1]
            try:
                check_values(present, mask_values, sample.mask, background=False)
            except WSSSError as error:
                message = str(error)
        if message is not None:
            problems.append(Problem(sample.id, message))
            continue
        labels = sorted({mask_values[value] for value in present} - {UNSURE})
        labelled.append(replace(sample, labels=tuple(label - 1 for label in labels)))
    return tuple(labelled), tuple(problems)


def _read_values(sample: Sample) -> list[int]:
    if sample.mask is None:
        raise WSSSError(f"image {sample.id} has no mask to read its labels from; add one")
    counts = np.bincount(load_mask(sample.mask).ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts)]


def _stamp(sample: Sample) -> str:
    """Tells a mask from another one that takes its place; empty where there is none."""
    try:
        stat = sample.mask.stat() if sample.mask is not None else None
    except OSError:
        stat = None  # reading it says what is wrong
    if stat is None or sample.mask is None:
        return ""
    return f"{sample.mask.name}|{stat.st_size}|{stat.st_mtime_ns}"


def _read_cache(cache: Path) -> dict[str, tuple[str, list[int]]]:
    """Stamp and values by id; nothing is taken from a file that has not the expected form."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or not all(map(_is_entry, content.values())):
        return {}
    return {name: (stamp, values) for name, (stamp, values) in content.items()}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and entry[0] != ""
        and isinstance(entry[1], list)
        and all(type(value) is int and 0 <= value <= UNSURE for value in entry[1])
    )
