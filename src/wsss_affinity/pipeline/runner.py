"""Runs the stages in order, reusing what is there."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from wsss_affinity import interrupt, world
from wsss_affinity.data.source import Problem, Source
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.files import write_bytes
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.artifact import ArtifactStore, led
from wsss_affinity.pipeline.context import Context, leave_out, with_backbone
from wsss_affinity.pipeline.evaluate import hands_in
from wsss_affinity.pipeline.in_use import in_use, run_folder
from wsss_affinity.pipeline.plan import (
    chosen_stages,
    describe,
    fingerprints,
    forced_stages,
    reads,
    stage_graph,
)
from wsss_affinity.pipeline.predict import load_own_network
from wsss_affinity.pipeline.scores import read_labels, read_scores
from wsss_affinity.pipeline.settings import check_settings
from wsss_affinity.pipeline.source import check_data, load_source
from wsss_affinity.pipeline.stages import STAGES
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.val_cam import check_val_cam

if TYPE_CHECKING:
    from torch import nn

    from wsss_affinity.pipeline.objective import Objective

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

    @property
    def failed(self) -> tuple[Problem, ...]:
        """Images that it holds nothing of, since they failed in this stage or before."""
        return tuple(Problem(*known) for known in self.manifest["metrics"].get("failed", ()))


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        stages: Each stage of the graph that was run or reused, in order.
        skipped: Photographs that were left out from the start, and why.
        source: The data set without these; None after a dry run.
        cfg: The configuration that was run; None after a dry run.
    """

    stages: dict[str, StageResult]
    skipped: tuple[Problem, ...] = ()
    source: Source | None = None
    cfg: DictConfig | None = field(default=None, repr=False)

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The scores of ``evaluate``, empty where it was not run."""
        result = self.stages.get("evaluate")
        return [] if result is None else list(result.manifest["metrics"]["scores"])

    def score(self, name: str) -> dict[str, Any]:
        """One of :attr:`scores`, e.g. ``result.score("pseudo-masks")["miou"]``.

        Raises:
            WSSSError: If there is none of that name.
        """
        by_name = {score["name"]: score for score in self.scores}
        if name not in by_name:
            hint = did_you_mean(name, by_name) if by_name else "evaluate found no masks to score"
            raise WSSSError(f"there is no score {name!r}; {hint}")
        return by_name[name]

    def mask(self, id: str) -> NDArray[np.uint8]:
        """Pseudo-mask of a training image, ``(H, W)``: 0 background, 1… classes, 255 unsure.

        Raises:
            WSSSError: If there is none.
        """
        return read_labels(_with(id, self._masks), id)

    def cam(self, id: str) -> dict[str, Tensor]:
        """Activation maps ``(h, w)`` of a training image, by class.

        Raises:
            WSSSError: If there are none.
        """
        classes, scores, _ = read_scores(_with(id, self._cams), id)
        assert self.source is not None  # there is no stage without it
        return {self.source.classes[k]: s for k, s in zip(classes.tolist(), scores, strict=True)}

    def segmentation_net(self) -> SegmentationNet:
        """The trained segmentation network, on the CPU and in evaluation mode.

        Raises:
            WSSSError: If there is none.
        """
        folder = self._stage("train_segmentation")
        assert self.cfg is not None  # there is no stage without it
        return load_own_network(self.cfg, folder)[0]

    @cached_property
    def _masks(self) -> Records:
        return Records(self._stage("random_walk") / "masks", ".png")

    @cached_property
    def _cams(self) -> Records:
        return Records(self._stage("make_cam"), ".npz")

    def _stage(self, name: str) -> Path:
        if name not in self.stages:
            raise WSSSError(f"{name} was neither run nor reused; add it to pipeline.stages")
        return self.stages[name].path

    @property
    def failed(self) -> tuple[Problem, ...]:
        """Photographs that were left out because a stage failed on them, and why."""
        return tuple(dict.fromkeys(p for stage in self.stages.values() for p in stage.failed))

    @property
    def sweeps(self) -> dict[str, list[dict[str, Any]]]:
        """What other thresholds, α and CRF iterations score, by what they are of."""
        result = self.stages.get("evaluate")
        return {} if result is None else dict(result.manifest["metrics"]["sweeps"])


def run_pipeline(
    cfg: DictConfig,
    *,
    backbone: nn.Module | None = None,
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Run the stages that the configuration asks for.

    Args:
        cfg: As composed from ``conf/config.yaml``.
        backbone: A network in place of the one the configuration names; it is not changed.
        tell: Called with the name of each stage before it is run or reused.

    Returns:
        The stages' artefacts and scores; with ``pipeline.dry_run`` an empty result, after printing
        what would be reused and what run.

    Raises:
        WSSSError: For bad input, with one sentence that says what to do.
        Interrupted: If a stop was asked for, by Ctrl-C or SIGTERM.
    """
    if backbone is not None:
        cfg = with_backbone(cfg, backbone)
    graph = stage_graph(cfg)
    chosen = chosen_stages(cfg, graph)
    forced = forced_stages(cfg, chosen)
    store = artifact_store(cfg)
    source, skipped, lists = check_data(cfg, load_source(cfg), store)
    keys = led(partial(fingerprints, cfg, source, lists, graph))
    with in_use(Path(cfg.output_dir), run_folder()) as note:
        if not cfg.pipeline.dry_run:
            note(keys)
        found = led(partial(_found, store, keys))
        there = [name for name in graph if name in chosen or name in found]
        keys = led(partial(fingerprints, cfg, source, lists, graph, there))

        found = led(partial(_found, store, keys))
        to_run = [n for n in chosen if n in forced or n not in found]
        check_settings(cfg, to_run, source.classes)
        if "evaluate" in to_run:
            hands_in(cfg, source)
            check_val_cam(cfg, source)
        if cfg.pipeline.dry_run:
            for name in graph:
                reuse = name in found and name not in forced
                action = "reuse" if reuse else "run" if name in chosen else "missing, not chosen"
                print(f"{name:<20} {keys[name]}  {action}")
            return RunResult({}, skipped)

        for name in to_run:
            absent = [n for n in reads(STAGES[name], cfg) if n in graph and n not in there]
            if absent and name != "evaluate":
                raise WSSSError(
                    f"stage {absent[0]} has not been run with this configuration, and {name} reads "
                    f"it; add {absent[0]} to pipeline.only, or start earlier with pipeline.from"
                )

        note(keys)
        results: dict[str, StageResult] = {}
        for name in graph:
            # one process alone may have been told to stop
            if any(world.either(interrupt.requested())):
                raise interrupt.Interrupted
            if tell is not None:
                tell(name)
            stage = STAGES[name]
            inputs = {n: results[n] for n in reads(stage, cfg) if n in results}
            paths = {n: result.path for n, result in inputs.items()}
            if name in chosen:
                failed = {n: result.failed for n, result in inputs.items()}
                left = leave_out(source.train, (p for known in failed.values() for p in known))
                context = Context(cfg, replace(source, train=left), paths, failed)
                path, made, manifest = store.make(
                    name,
                    keys[name],
                    partial(stage.run, context),
                    describe(cfg, source, stage, paths),
                    force=name in forced,
                    say=log.warning,
                )
            elif name in found:
                path, made = store.path(name, keys[name]), False
                manifest = led(partial(store.manifest, name, keys[name]))
            else:
                continue
            results[name] = StageResult(name, path, made, manifest)
            if cfg.data.on_error == "stop" and results[name].failed:
                _refuse(results[name])
    return RunResult(results, skipped, source, copy.deepcopy(cfg))


def _with(id: str, records: Records) -> Records:
    if id not in records:
        raise WSSSError(f"{records.file(id)} does not exist; give the id of a training image")
    return records


def _found(store: ArtifactStore, keys: dict[str, str]) -> list[str]:
    return [name for name, key in keys.items() if store.has(name, key)]


def _refuse(result: StageResult) -> None:
    first = result.failed[0]
    raise WSSSError(
        f"{result.name} was made without images that failed ({len(result.failed)}, e.g. "
        f"{first.id} in {first.message}); make it and what follows anew with "
        f"pipeline.from={result.name} pipeline.force=true, or go on without them with "
        "data.on_error=skip"
    )


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
    source, _, lists = check_data(cfg, load_source(cfg), store)
    return store.path(stage, fingerprints(cfg, source, lists, graph)[stage])


def write_metrics(result: RunResult, path: Path, objective: Objective | None = None) -> None:
    """Write scores, sweeps, times and skipped images of a run as JSON, and what it is worth."""
    content = {
        "objective": None if objective is None else asdict(objective),
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
        "skipped": [{"id": p.id, "reason": p.message} for p in (*result.skipped, *result.failed)],
    }
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
