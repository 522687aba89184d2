"""The data set of a configuration, listed and looked through before anything is trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.source import Problem, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.artifact import ArtifactStore, fingerprint, led, samples_fingerprint
from wsss_affinity.pipeline.mapping import map_samples

log = logging.getLogger(__name__)

_OPTIONS = ("on_error", "max_side", "num_workers")  # of the pipeline, not of the reader


def load_source(cfg: DictConfig) -> Source:
    """List the data set of the configuration.

    Raises:
        WSSSError: If a mandatory key is not set or the data set is not as expected.
    """
    missing = sorted(OmegaConf.missing_keys(cfg.data) | OmegaConf.missing_keys(cfg.backbone))
    if missing:
        example = "/path/to/photographs" if missing[0] == "data.root" else "<value>"
        raise WSSSError(
            f"{missing[0]} is not set; give it on the command line, e.g. {missing[0]}={example}"
        )
    section = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(section, dict)
    arguments = {k: v for k, v in section.items() if k not in _OPTIONS}
    try:
        source: Source = instantiate(arguments, _convert_="all")
    except InstantiationException as error:
        # Hydra wraps whatever the reader raises
        if isinstance(error.__cause__, WSSSError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError):
            raise WSSSError(f"data: {error.__cause__}; see conf/data for its keys") from error
        raise
    if not source.train and not source.problems:
        raise WSSSError(
            "the data set holds no training image; check data.root and data.train_split"
        )
    return source


@dataclass(frozen=True)
class ListKeys:
    """Fingerprints of the lists of a data set; all but ``train`` count the masks."""

    train: str
    train_masks: str
    score: str
    val: str
    test: str

    @classmethod
    def of(cls, source: Source) -> ListKeys:
        """Ask for the size of each file; where several processes share the run, one of them does.

        That takes seconds for a million files, and on a network file system minutes.
        """

        def ask() -> ListKeys:
            train, train_masks = samples_fingerprint(source.train)
            score = train_masks
            if source.score != source.train:
                score = samples_fingerprint(source.score)[1]
            val, test = (samples_fingerprint(part)[1] for part in (source.val, source.test))
            return cls(train, train_masks, score, val, test)

        return led(ask)


def check_data(
    cfg: DictConfig, source: Source, store: ArtifactStore
) -> tuple[Source, tuple[Problem, ...], ListKeys]:
    """Open every image and mask once, and leave out those that cannot be used.

    The outcome is kept, so that the next run on the same files does not look again.

    Returns:
        The data set without them, what is wrong with them, and the fingerprints of its lists.

    Raises:
        WSSSError: With ``data.on_error=stop``, if there is any; or if none is left.
    """
    if cfg.data.on_error not in ("stop", "skip"):
        raise WSSSError(f"data.on_error must be 'stop' or 'skip', got {cfg.data.on_error!r}")
    samples = tuple({s.image: s for s in (*source.train, *source.val, *source.test)}.values())
    lists = ListKeys.of(source)
    key = fingerprint([lists.train_masks, lists.val, lists.test, source.mask_values])

    def look_at(indices: Sequence[int]) -> list[list[Any]]:
        results = map_samples(
            "check images",
            [samples[index] for index in indices],
            SampleChecker(source),
            num_workers=resolve_workers(cfg.data.num_workers),
        )
        return [
            [index, problem.message]
            for index, (_, problem) in zip(indices, results, strict=True)
            if problem is not None
        ]

    def look(work: Path) -> dict[str, Any]:
        return {"images": len(samples), "problems": look_at(range(len(samples)))}

    make = partial(store.make, "check_data", key, look, {}, say=log.warning)
    _, made, manifest = make()
    known = manifest["metrics"]["problems"]
    # they may have been mended since
    if known and not made and look_at([index for index, _ in known]) != known:
        manifest = make(force=True)[2]
    found = manifest["metrics"]["problems"]
    broken = [(samples[index], message) for index, message in found]
    problems = (*source.problems, *(Problem(s.id, message) for s, message in broken))
    if problems and cfg.data.on_error == "stop":
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise WSSSError(
            f"{problems[0].message}{more}; mend this, or leave such images out with "
            "data.on_error=skip"
        )
    bad = {sample.image for sample, _ in broken}
    kept = replace(
        source,
        train=tuple(s for s in source.train if s.image not in bad),
        score=tuple(s for s in source.score if s.image not in bad),
        val=tuple(s for s in source.val if s.image not in bad),
        test=tuple(s for s in source.test if s.image not in bad),
    )
    if not kept.train:
        raise WSSSError(f"no usable training image is left: {problems[0].message}")
    shared = len({s.image for s in kept.train} & {s.image for s in kept.val})
    if shared:
        log.warning("%d images are in the training and the validation split", shared)
    counts = Counter(label for s in kept.train for label in s.labels)
    listed = (f"{i + 1} {name} ({counts[i]})" for i, name in enumerate(kept.classes))
    log.info("classes by mask value, with images: %s", ", ".join(listed))
    empty = sum(not s.labels for s in kept.train)
    if empty:
        log.warning(
            "%d of %d training images have no label of these classes; they count as %s",
            empty,
            len(kept.train),
            "background" if kept.background else "unsure",
        )
    return kept, problems, ListKeys.of(kept) if bad else lists
