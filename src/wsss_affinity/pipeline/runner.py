"""Runs the stages in order, reusing what is there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.source import Problem, Source
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.artifact import (
    ArtifactStore,
    file_fingerprint,
    fingerprint,
    samples_fingerprint,
)
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.mapping import map_samples
from wsss_affinity.pipeline.stages import STAGES, Stage

log = logging.getLogger(__name__)

#: Settings of the trainer that change where the work is done, not what comes out
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy")
_DATA_OPTIONS = ("on_error", "max_side", "num_workers")


@dataclass(frozen=True)
class StageResult:
    """What became of a stage.

    Attributes:
        name: Of the stage.
        path: Its artefact.
        made: Whether this run made it; otherwise it was reused.
        manifest: What the artefact says of itself.
    """

    name: str
    path: Path
    made: bool
    manifest: dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        stages: Each stage of the graph that was run or reused, in order.
        skipped: Photographs that were left out, and why.
    """

    stages: dict[str, StageResult]
    skipped: tuple[Problem, ...] = ()

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The scores of ``evaluate``, empty where it was not run."""
        result = self.stages.get("evaluate")
        return [] if result is None else list(result.manifest["metrics"]["scores"])


def run_pipeline(cfg: DictConfig) -> RunResult:
    """Run the stages that the configuration asks for.

    Args:
        cfg: As composed from ``conf/config.yaml``.

    Returns:
        The stages' artefacts and scores; with ``pipeline.dry_run`` an empty result, after printing
        what would be reused and what run.

    Raises:
        WSSSError: For bad input, with one sentence that says what to do.
    """
    graph = _graph(cfg)
    chosen, forced = _chosen(cfg, graph), _names(cfg.pipeline.force, graph, "pipeline.force")
    store = artifact_store(cfg)
    source, skipped = check_data(cfg, load_source(cfg), store)
    keys = plan(cfg, source, graph)
    # evaluate scores what there is, so its name follows from that
    there = [name for name in graph if name in chosen or store.has(name, keys[name])]
    keys = plan(cfg, source, there) | {n: k for n, k in keys.items() if n not in there}

    if cfg.pipeline.dry_run:
        for name in graph:
            reuse = store.has(name, keys[name]) and name not in forced
            action = "reuse" if reuse else "run" if name in chosen else "missing, not chosen"
            print(f"{name:<20} {keys[name]}  {action}")
        return RunResult({}, skipped)

    results: dict[str, StageResult] = {}
    for name in graph:
        stage = STAGES[name]
        inputs = {n: store.path(n, keys[n]) for n in reads(stage, cfg) if n in results}
        if name in chosen:
            path, made = store.make(
                name,
                keys[name],
                partial(stage.run, Context(cfg=cfg, source=source, inputs=inputs)),
                _describe(cfg, stage, keys, graph),
                force=name in forced,
                say=log.warning,
            )
        elif store.has(name, keys[name]):
            path, made = store.path(name, keys[name]), False
        elif any(name in reads(STAGES[n], cfg) for n in chosen if n != "evaluate"):
            raise WSSSError(
                f"stage {name} has not been run with this configuration, and "
                f"{next(n for n in chosen if name in reads(STAGES[n], cfg))} reads it; "
                f"add {name} to pipeline.only, or start earlier with pipeline.from"
            )
        else:
            continue
        results[name] = StageResult(name, path, made, store.manifest(name, keys[name]))
    return RunResult(results, skipped)


def artifact_store(cfg: DictConfig) -> ArtifactStore:
    """Where the artefacts of a configuration are kept."""
    return ArtifactStore(Path(cfg.output_dir) / "artifacts")


def artifact_path(cfg: DictConfig, stage: str) -> Path:
    """Directory of the artefact that a configuration makes at a stage, made or not."""
    store = artifact_store(cfg)
    source, _ = check_data(cfg, load_source(cfg), store)
    return store.path(stage, plan(cfg, source, _graph(cfg))[stage])


def load_source(cfg: DictConfig) -> Source:
    """List the data set of the configuration.

    Raises:
        WSSSError: If a mandatory key is not set or the data set is not as expected.
    """
    missing = sorted(OmegaConf.missing_keys(cfg.data))
    if missing:
        raise WSSSError(
            f"data.{missing[0]} is not set; give it on the command line, "
            f"e.g. data.{missing[0]}=/path/to/photographs"
        )
    section = _settings(cfg, "data")
    arguments = {k: v for k, v in section.items() if k not in _DATA_OPTIONS}
    source: Source = instantiate(arguments, _convert_="all")
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
    samples = tuple({s.image: s for s in (*source.train, *source.val)}.values())
    key = fingerprint([samples_fingerprint(samples, masks=True), source.mask_values])

    def look(work: Path) -> dict[str, Any]:
        found = [
            problem
            for _, problem in map_samples(
                "check images",
                samples,
                SampleChecker(source),
                num_workers=resolve_workers(cfg.data.num_workers),
            )
            if problem is not None
        ]
        return {"images": len(samples), "problems": [[p.id, p.message] for p in found]}

    _, made = store.make("check_data", key, look, {}, say=log.warning)
    if not made and store.manifest("check_data", key)["metrics"]["problems"]:
        # they may have been mended since
        store.make("check_data", key, look, {}, force=True, say=log.warning)
    found = store.manifest("check_data", key)["metrics"]["problems"]
    problems = (*source.problems, *(Problem(*entry) for entry in found))
    if problems and cfg.data.on_error == "stop":
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise WSSSError(
            f"{problems[0].message}{more}; mend this, or leave such images out with "
            "data.on_error=skip"
        )
    bad = {p.id for p in problems}
    kept = replace(
        source,
        train=tuple(s for s in source.train if s.id not in bad),
        score=tuple(s for s in source.score if s.id not in bad),
        val=tuple(s for s in source.val if s.id not in bad),
    )
    if not kept.train:
        raise WSSSError(f"no usable training image is left: {problems[0].message}")
    empty = sum(not s.labels for s in kept.train)
    if empty:
        log.warning(
            "%d of %d training images have no label of these classes; they count as background",
            empty,
            len(kept.train),
        )
    return kept, problems


def plan(cfg: DictConfig, source: Source, graph: Sequence[str]) -> dict[str, str]:
    """Fingerprint of every stage of the graph."""
    train = [list(source.classes), samples_fingerprint(source.train)]
    scored = [samples_fingerprint(s, masks=True) for s in (source.score, source.val)]
    sheet = _settings(cfg, "backbone")
    keys: dict[str, str] = {}
    for name in graph:
        stage = STAGES[name]
        keys[name] = fingerprint(
            {
                "stage": name,
                "schema": stage.schema,
                "config": {section: _settings(cfg, section) for section in stage.config},
                "reads": {n: keys[n] for n in reads(stage, cfg) if n in keys},
                "data": [train, scored, sheet] if name == "evaluate" else train,
            }
        )
    return keys


def reads(stage: Stage, cfg: DictConfig) -> tuple[str, ...]:
    """Stages whose artefacts a stage needs under this configuration."""
    real = stage.name == "train_segmentation"
    if real and cfg.train_segmentation.target == "ground_truth":
        return ()
    return stage.reads


def _settings(cfg: DictConfig, section: str) -> Any:
    """A section as plain data, without what only concerns the machine."""
    node = OmegaConf.select(cfg, section)
    content = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(content, dict):
        if section == "trainer":
            content = {k: v for k, v in content.items() if k not in _MACHINE}
        weights = content.get("weights")
        if weights not in (None, "imagenet"):
            # the file counts, not where it lies
            content = {**content, "weights": file_fingerprint(Path(str(weights)))}
    return content


def _describe(
    cfg: DictConfig, stage: Stage, keys: Mapping[str, str], graph: Sequence[str]
) -> dict[str, Any]:
    return {
        "config": {section: _settings(cfg, section) for section in stage.config},
        "inputs": {n: keys[n] for n in reads(stage, cfg) if n in graph},
    }


def _graph(cfg: DictConfig) -> list[str]:
    graph = _names(cfg.pipeline.stages, list(STAGES), "pipeline.stages")
    for name in graph:
        absent = [n for n in reads(STAGES[name], cfg) if n not in graph]
        if absent and name != "evaluate":
            raise WSSSError(f"pipeline.stages: {name} reads {absent[0]}, which is not among them")
    return graph


def _chosen(cfg: DictConfig, graph: Sequence[str]) -> list[str]:
    only = _names(cfg.pipeline.only, graph, "pipeline.only")
    start = _names(cfg.pipeline["from"], graph, "pipeline.from")
    if only and start:
        raise WSSSError("pipeline.only and pipeline.from exclude each other; give one of them")
    if start:
        return list(graph)[graph.index(start[0]) :]
    return only or list(graph)


def _names(value: Any, known: Sequence[str], key: str) -> list[str]:
    """Stage names as a list in the order of the pipeline; True means all of them."""
    if value is None or value is False:
        return []
    if value is True:
        return list(known)
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if name not in known:
            raise WSSSError(f"{key}: {name!r} is no stage; {did_you_mean(str(name), known)}")
    return [name for name in known if name in names]


def write_metrics(result: RunResult, path: Path) -> None:
    """Write scores, times and skipped images of a run as JSON."""
    content = {
        "scores": result.scores,
        "stages": {
            name: {
                "artifact": str(stage.path),
                "made": stage.made,
                "wall_time_s": stage.manifest["wall_time_s"],
                "images": stage.manifest["metrics"].get("images"),
            }
            for name, stage in result.stages.items()
        },
        "skipped": [{"id": p.id, "reason": p.message} for p in result.skipped],
    }
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
