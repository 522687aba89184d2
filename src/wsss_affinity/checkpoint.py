"""Weights under the names of the published code, for the networks of the paper."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsss_affinity.errors import WSSSError
from wsss_affinity.mxnet import read_params

log = logging.getLogger(__name__)

#: Published name of a layer of a head → ours
_HEADS = {
    "fc8": "head.classifier",
    "f8_3": "levels.0",
    "f8_4": "levels.1",
    "f8_5": "levels.2",
    "gn8_3": "norms.0",
    "gn8_4": "norms.1",
    "gn8_5": "norms.2",
    "f9": "fuse",
}
#: Name for create_backbone → a layer that only it has, and what people call it
_BACKBONES = {
    "resnet38d": ("b4_5.", "ResNet38d"),
    "vgg16_largefov": ("conv5_3.", "VGG16 LargeFOV"),
}
_MXNET_NAME = re.compile(
    r"(?:arg:|aux:)?"
    r"(?:(?P<kind>res|bn)(?P<group>\d)(?:a|b(?P<unit>\d))_(?P<branch>branch\w+?)|(?P<plain>\w+?))"
    r"_(?P<what>weight|bias|gamma|beta|moving_mean|moving_var)"
)
_MXNET_WHAT = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}


@dataclass(frozen=True)
class LoadReport:
    """What did not meet its counterpart.

    Attributes:
        missing: Entries of the model that the file lacks, by the model's names; they keep the
            values they had.
        unexpected: Entries of the file that the model has no place for, by the file's names.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_published(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Load weights saved by the published code, or ImageNet weights under the same names.

    Nothing is copied before all of it was checked. What the two sides do not share is reported,
    and logged as a warning: a new head has no counterpart in ImageNet weights, say. The model's
    backbone counts as pretrained afterwards.

    Args:
        model: ``CAMNet`` or ``AffinityNet`` with backbone ``"resnet38d"`` or
            ``"vgg16_largefov"``, or such a backbone alone.
        source: Path of a state dict (``res38_cls.pth``, ``res38_aff.pth``, …, with or without
            the prefix ``module.``) or of MXNet's ``.params``; or a state dict.

    Raises:
        WSSSError: If the file cannot be read safely; if it is of another network (the message
            says which one it looks like, and what to build); if a shape or the number of classes
            differs; or if entries of the backbone are missing.

    Example:
        >>> from wsss_affinity.backbones import create_backbone
        >>> backbone = create_backbone("vgg16_largefov")
        >>> load_published(backbone, {**backbone.state_dict(), "fc8.weight": torch.zeros(20)})
        LoadReport(missing=(), unexpected=('fc8.weight',))
    """
    if isinstance(source, Mapping):
        origin, state = "the state dict", _without_prefix(source, "the state dict")
    else:
        origin, state = str(source), read_state_dict(source)
    own = model.state_dict()
    slots = {_published_name(name): name for name in own}
    found, wanted = _identify(state), _identify({n: own[slots[n]] for n in slots})
    heads_differ = None not in (found.head, wanted.head) and found.head != wanted.head
    if wanted.backbone is None or found.backbone != wanted.backbone or heads_differ:
        raise WSSSError(
            f"{origin} looks like {found.text}, but the model is {_title(model)}; {found.advice}"
        )
    for name in slots.keys() & state.keys():
        here, there = tuple(own[slots[name]].shape), tuple(state[name].shape)
        if here == there:
            continue
        if name == "fc8.weight" and here[1:] == there[1:]:
            raise WSSSError(
                f"{origin} is of {there[0]} classes, the model of {here[0]}; {found.advice}"
            )
        raise WSSSError(
            f"{origin}: {name} has shape {there}, {_title(model)} expects {here}; it is of another "
            "variant of the network"
        )
    absent = [n for n in slots if n not in state and not _is_counter(n) and not _is_head(n)]
    if absent:
        raise WSSSError(
            f"{origin} lacks {len(absent)} entries of the backbone ({_short(absent)}); "
            "give a whole file"
        )
    model.load_state_dict({slots[n]: v for n, v in state.items() if n in slots}, strict=False)
    getattr(model, "backbone", model).pretrained = True
    report = LoadReport(
        missing=tuple(slots[n] for n in slots if n not in state and not _is_counter(n)),
        unexpected=tuple(n for n in state if n not in slots and not _is_counter(n)),
    )
    if report.missing:
        log.warning("%s lacks %s; kept as they were", origin, _short(report.missing))
    if report.unexpected:
        log.warning("%s: no place for %s; left out", origin, _short(report.unexpected))
    return report


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict of tensors, running no code that the file may hold.

    The prefix ``module.`` (data-parallel training) is taken off; names in MXNet's ``.params`` are
    turned into those of the published code.

    Raises:
        WSSSError: If the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix == ".params":
        return {_from_mxnet(name): value for name, value in read_params(path).items()}
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WSSSError(f"weights file {path} {what}; give the path of a .pth or .params file")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WSSSError(
            f"weights file {path} cannot be read as a state dict ({type(error).__name__}): it is "
            "damaged, or holds pickled objects, which are refused because they can run code; save "
            "it with torch.save(model.state_dict(), path)"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    return _without_prefix(state, f"weights file {path}")


def _without_prefix(state: Any, origin: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WSSSError(
            f"{origin} holds no mapping of names to tensors; save or pass model.state_dict() itself"
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _from_mxnet(name: str) -> str:
    """Published name of an array of Wu et al.'s files; others are left as they are.

    >>> _from_mxnet("arg:res2b1_branch2a_weight"), _from_mxnet("aux:bn7_moving_var")
    ('b2_1.conv_branch2a.weight', 'bn7.running_var')
    """
    match = _MXNET_NAME.fullmatch(name)
    if match is None:
        return name
    kind, group, unit, branch, plain, what = match.groups()
    layer = plain
    if kind:
        block = f"b{group}_{unit}" if unit else f"b{group}"
        layer = f"{block}.{'conv' if kind == 'res' else 'bn'}_{branch}"
    return f"{layer}.{_MXNET_WHAT.get(what, what)}"


def _is_head(name: str) -> bool:
    return name.rpartition(".")[0] in _HEADS


def _published_name(name: str) -> str:
    layer, _, what = name.rpartition(".")
    published = {ours: theirs for theirs, ours in _HEADS.items()}.get(layer)
    return f"{published}.{what}" if published else name.removeprefix("backbone.")


@dataclass(frozen=True)
class _Look:
    """What the names of a state dict tell about its network.

    Attributes:
        text: What it looks like.
        advice: What to do with it.
        backbone: Name for create_backbone, if it is of the paper.
        head: ``"CAMNet"`` or ``"AffinityNet"``, if it is whole.
    """

    text: str
    advice: str
    backbone: str | None = None
    head: str | None = None


def _identify(state: Mapping[str, Tensor]) -> _Look:
    def has(start: str) -> bool:
        return any(name.startswith(start) for name in state)

    for backbone, (layer, title) in _BACKBONES.items():
        if not has(layer):
            continue
        alone = f"or give it as weights of backbone {backbone!r}, which takes nothing else of it"
        if "f9.weight" in state:
            build = f"build AffinityNet({backbone!r}), {alone}"
            return _Look(f"the affinity network of {title}", build, backbone, "AffinityNet")
        if "fc8.weight" in state:
            classes = "".join(f"{n}" for n in state["fc8.weight"].shape[:1])
            build = f"build CAMNet({backbone!r}, num_classes={classes}), {alone}"
            return _Look(f"the CAM network of {title}", build, backbone, "CAMNet")
        return _Look(f"ImageNet weights of {title}", f"build on backbone {backbone!r}", backbone)
    if has("backbone.") or has("network."):
        return _Look(
            "a network of this library", "build the same network and use its load_state_dict"
        )
    if has("layer4.0.conv1."):
        return _Look(
            "a ResNet of torchvision", "give it as weights of backbone 'resnet18', … 'resnet101'"
        )
    if has("features.28."):
        return _Look("torchvision's VGG16", "give it as weights of backbone 'vgg16'")
    titles = " and ".join(title for _, title in _BACKBONES.values())
    return _Look(
        f"none of the networks known here ({_short(tuple(state))})",
        f"published weights are of {titles}",
    )


def _title(model: nn.Module) -> str:
    backbone = getattr(model, "backbone", None)
    name = type(model).__name__
    return name if backbone is None else f"{name} with {type(backbone).__name__}"


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # older files have none, and nothing reads it


def _short(names: Sequence[str], limit: int = 4) -> str:
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "no entries") + more
