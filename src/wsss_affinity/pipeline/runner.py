"""Runs the stages in order, reusing what is there."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wsss_affinity.data.source import Problem
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.artifact import ArtifactStore
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.evaluate import hands_in
from wsss_affinity.pipeline.plan import (
    chosen_stages,
    describe,
    fingerprints,
    forced_stages,
    reads,
    stage_graph,
)
from wsss_affinity.pipeline.settings import check_settings
from wsss_affinity.pipeline.source import check_data, load_source
from wsss_affinity.pipeline.stages import STAGES
from wsss_affinity.pipeline.val_cam import check_val_cam

log = logging.getLogger(__name__)


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

    @property
    def sweeps(self) -> dict[str, list[dict[str, Any]]]:
        """What other thresholds, α and CRF iterations score, by what they are of."""
        result = self.stages.get("evaluate")
        return {} if result is None else dict(result.manifest["metrics"]["sweeps"])


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
    graph = stage_graph(cfg)
    chosen = chosen_stages(cfg, graph)
    forced = forced_stages(cfg, chosen)
    store = artifact_store(cfg)
    source, skipped = check_data(cfg, load_source(cfg), store)
    keys = fingerprints(cfg, source, graph)
    there = [name for name in graph if name in chosen or store.has(name, keys[name])]
    keys = fingerprints(cfg, source, graph, there)

    to_run = [n for n in chosen if n in forced or not store.has(n, keys[n])]
    check_settings(cfg, to_run, source.classes)
    if "evaluate" in to_run:
        hands_in(cfg, source)
        check_val_cam(cfg, source)
    if cfg.pipeline.dry_run:
        for name in graph:
            reuse = store.has(name, keys[name]) and name not in forced
            action = "reuse" if reuse else "run" if name in chosen else "missing, not chosen"
            print(f"{name:<20} {keys[name]}  {action}")
        return RunResult({}, skipped)

    for name in to_run:
        absent = [n for n in reads(STAGES[name], cfg) if n in graph and n not in there]
        if absent and name != "evaluate":
            raise WSSSError(
                f"stage {absent[0]} has not been run with this configuration, and {name} reads it; "
                f"add {absent[0]} to pipeline.only, or start earlier with pipeline.from"
            )

    results: dict[str, StageResult] = {}
    for name in graph:
        stage = STAGES[name]
        inputs = {n: store.path(n, keys[n]) for n in reads(stage, cfg) if n in results}
        if name in chosen:
            path, made = store.make(
                name,
                keys[name],
                partial(stage.run, Context(cfg=cfg, source=source, inputs=inputs)),
                describe(cfg, source, stage, inputs),
                force=name in forced,
                say=log.warning,
            )
        elif store.has(name, keys[name]):
            path, made = store.path(name, keys[name]), False
        else:
            continue
        results[name] = StageResult(name, path, made, store.manifest(name, keys[name]))
    return RunResult(results, skipped)


def artifact_store(cfg: DictConfig) -> ArtifactStore:
    """Where the artefacts of a configuration are kept."""
    return ArtifactStore(Path(cfg.output_dir) / "artifacts")


def artifact_path(cfg: DictConfig, stage: str) -> Path:
    """Directory of the artefact that a configuration makes at a stage, made or not.

    Raises:
        WSSSError: If the stage is not part of the pipeline, or for bad data.
    """
    graph = stage_graph(cfg)
    if stage not in graph:
        raise WSSSError(f"{stage} is not among pipeline.stages; add it, or name its artefact")
    store = artifact_store(cfg)
    source, _ = check_data(cfg, load_source(cfg), store)
    return store.path(stage, fingerprints(cfg, source, graph)[stage])


def write_metrics(result: RunResult, path: Path) -> None:
    """Write scores, sweeps, times and skipped images of a run as JSON."""
    content = {
        "scores": result.scores,
        "sweeps": result.sweeps,
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
