"""The data set of a configuration, listed and looked through before anything is trained."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.source import Problem, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.artifact import ArtifactStore, fingerprint, samples_fingerprint
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


def check_data(
    cfg: DictConfig, source: Source, store: ArtifactStore
) -> tuple[Source, tuple[Problem, ...]]:
    """Open every image and mask once, and leave out those that cannot be used.

    The outcome is kept, so that the next run on the same files does not look again.

    Raises:
        WSSSError: With ``data.on_error=stop``, if there is any; or if none is left.
    """
    if cfg.data.on_error not in ("stop", "skip"):
        raise WSSSError(f"data.on_error must be 'stop' or 'skip', got {cfg.data.on_error!r}")
    samples = tuple({s.image: s for s in (*source.train, *source.val, *source.test)}.values())
    key = fingerprint([samples_fingerprint(samples, masks=True), source.mask_values])

    def look(work: Path) -> dict[str, Any]:
        results = map_samples(
            "check images",
            samples,
            SampleChecker(source),
            num_workers=resolve_workers(cfg.data.num_workers),
        )
        found = [
            [index, problem.message]
            for index, (_, problem) in enumerate(results)
            if problem is not None
        ]
        return {"images": len(samples), "problems": found}

    _, made = store.make("check_data", key, look, {}, say=log.warning)
    if not made and store.manifest("check_data", key)["metrics"]["problems"]:
        # they may have been mended since
        store.make("check_data", key, look, {}, force=True, say=log.warning)
    found = store.manifest("check_data", key)["metrics"]["problems"]
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
    return kept, problems
