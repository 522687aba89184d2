"""Which stages run, and the fingerprint that names each one's artefact."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wsss_affinity.data.source import Source
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.pipeline.artifact import file_fingerprint, fingerprint
from wsss_affinity.pipeline.foreign_cams import cams_fingerprint
from wsss_affinity.pipeline.source import ListKeys
from wsss_affinity.pipeline.stages import STAGES, Stage

_AFFINITIES = ("network", "attention")
_TARGETS = ("pseudo_masks", "ground_truth")
#: Sections whose key `weights` may be a path
_WITH_WEIGHTS = ("backbone", "train_cam", "train_affinity", "train_segmentation")
#: Settings of make_cam that count for ready-made maps, too
_CAM_OF_MAPS = ("height_prior", "store_dtype")
#: Settings of the trainer that change where the work is done, not what comes out
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy")


def fingerprints(
    cfg: DictConfig,
    source: Source,
    lists: ListKeys,
    graph: Sequence[str],
    there: Collection[str] | None = None,
) -> dict[str, str]:
    """Fingerprint of every stage of the graph.

    Args:
        cfg: The whole configuration.
        source: The data set.
        lists: Fingerprints of its lists.
        graph: Names of the stages, in order.
        there: Those whose artefacts ``evaluate`` will find; it scores what there is, so its name
            follows from that. None is all of them.
    """
    train: list[Any] = [list(source.classes), source.background, lists.train]
    keys: dict[str, str] = {}
    for name in graph:
        stage = STAGES[name]
        data = train
        if name == "evaluate":
            scored = [lists.score, lists.val, lists.test]
            meaning = [source.mask_values, source.labels_from_masks, dict(source.split_names)]
            data = [*train, *scored, *meaning, _settings(cfg, "backbone")]
            if cfg.evaluate.val_cam:
                data += [_settings(cfg, section) for section in ("cam", "data.max_side")]
        elif name == "make_cam" and cfg.cams_from is not None:
            data = [*train, cams_fingerprint(cfg, source), _settings(cfg, "data.max_side")]
        elif _learns_from_masks(stage, cfg):
            data = [*train, lists.train_masks]
        inputs = [n for n in reads(stage, cfg) if n in keys]
        if name == "evaluate" and there is not None:
            inputs = [n for n in inputs if n in there]
        keys[name] = fingerprint(
            {
                "stage": name,
                "schema": stage.schema,
                "config": {section: _settings(cfg, section) for section in stage.config},
                "reads": {n: keys[n] for n in inputs},
                "data": data,
            }
        )
    return keys


def reads(stage: Stage, cfg: DictConfig) -> tuple[str, ...]:
    """Stages whose artefacts a stage needs under this configuration."""
    if _learns_from_masks(stage, cfg):
        return ()
    unread = _left_out(cfg)
    if stage.name == "evaluate" and not cfg.evaluate.val_cam:
        unread |= {"train_cam"}
    return tuple(name for name in stage.reads if name not in unread)


def _left_out(cfg: DictConfig) -> set[str]:
    """Stages that there is no need of, since something else stands in for what they make."""
    if cfg.walk.affinity not in _AFFINITIES:
        hint = did_you_mean(str(cfg.walk.affinity), _AFFINITIES)
        raise WSSSError(f"walk.affinity is {cfg.walk.affinity!r}; {hint}")
    attention = cfg.walk.affinity == "attention"
    unread = {"affinity_labels", "train_affinity"} if attention else set()
    return unread if cfg.cams_from is None else unread | {"train_cam"}


def _learns_from_masks(stage: Stage, cfg: DictConfig) -> bool:
    target = str(cfg.train_segmentation.target)
    if target not in _TARGETS:
        raise WSSSError(
            f"train_segmentation.target is {target!r}; {did_you_mean(target, _TARGETS)}"
        )
    return stage.name == "train_segmentation" and target == "ground_truth"


def _settings(cfg: DictConfig, section: str) -> Any:
    """A section as plain data, without what is not in use or only concerns the machine."""
    node = OmegaConf.select(cfg, section)
    content = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(content, dict):
        if section == "trainer":
            # to Lightning a limit of 1 is one batch, and one of 1.0 is all of them
            return {k: v for k, v in content.items() if k not in _MACHINE}
        if section == "cam" and cfg.cams_from is not None:
            content = {k: content[k] for k in _CAM_OF_MAPS}
        elif section == "walk" and cfg.walk.affinity == "attention":
            content["attention"] = _without_path(content["attention"])
        elif section == "walk":
            content.pop("attention", None)
        elif section in _WITH_WEIGHTS:
            content = _without_path(content)
    return _one_spelling(content)


def _without_path(content: dict[Any, Any]) -> dict[Any, Any]:
    """Name weights by what is in their file, not by where it lies."""
    weights = content.get("weights")
    if weights in (None, "imagenet"):
        return content
    # a class may take as weights what is no file
    of_class = any(isinstance(content.get(key), dict) for key in ("name", "encoder"))
    if of_class and not Path(str(weights)).is_file():
        return content
    return content | {"weights": file_fingerprint(Path(str(weights)))}


def _one_spelling(value: Any) -> Any:
    """Whole floats as integers: 8.0 is the same setting as 8."""
    if isinstance(value, dict):
        return {key: _one_spelling(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_one_spelling(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def describe(
    cfg: DictConfig, source: Source, stage: Stage, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """What the manifest of a stage says of its origin."""
    return {
        "data": {
            "classes": list(source.classes),
            "background": source.background,
            "labels_from_masks": source.labels_from_masks,
            "split_names": dict(source.split_names),
        },
        "config": {section: _settings(cfg, section) for section in stage.config},
        "inputs": {name: path.name for name, path in inputs.items()},
    }


def stage_graph(cfg: DictConfig) -> list[str]:
    """Stages that the configuration is about, in order.

    Raises:
        WSSSError: If a name is no stage, or a stage's input is not among them.
    """
    unread = _left_out(cfg)
    if "train_cam" in unread and cfg.evaluate.val_cam:
        raise WSSSError(
            "evaluate.val_cam needs the classifier, which cams_from leaves out; set "
            "evaluate.val_cam=false"
        )
    graph = _names(cfg.pipeline.stages, list(STAGES), "pipeline.stages")
    graph = [name for name in graph if name not in unread]
    for name in graph:
        absent = [n for n in reads(STAGES[name], cfg) if n not in graph]
        if absent and name != "evaluate":
            raise WSSSError(f"pipeline.stages: {name} reads {absent[0]}, which is not among them")
    return graph


def chosen_stages(cfg: DictConfig, graph: Sequence[str]) -> list[str]:
    """Stages that may be run, by ``pipeline.only`` and ``pipeline.from``.

    Raises:
        WSSSError: If a name is no stage of the graph, or both are given.
    """
    only = _names(cfg.pipeline.only, graph, "pipeline.only")
    start = _names(cfg.pipeline["from"], graph, "pipeline.from")
    if only and start:
        raise WSSSError("pipeline.only and pipeline.from exclude each other; give one of them")
    if start:
        return list(graph)[graph.index(start[0]) :]
    return only or list(graph)


def forced_stages(cfg: DictConfig, graph: Sequence[str]) -> list[str]:
    """Stages to make anew, by ``pipeline.force``.

    Raises:
        WSSSError: If a name is no stage of the graph.
    """
    return _names(cfg.pipeline.force, graph, "pipeline.force")


def _names(value: Any, known: Sequence[str], key: str) -> list[str]:
    """Stage names as a list in the order of the pipeline; True means all of them."""
    if value is None or value is False:
        return []
    if value is True:
        return list(known)
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if name not in known:
            if name in STAGES:
                raise WSSSError(
                    f"{key}: {name} is not run with this configuration; it is not in "
                    "pipeline.stages, or cams_from or walk.affinity leave it out"
                )
            raise WSSSError(f"{key}: {name!r} is no stage; {did_you_mean(str(name), known)}")
    return [name for name in known if name in names]
