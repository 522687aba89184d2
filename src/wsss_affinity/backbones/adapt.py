"""Modules that are not quite backbones: measured, adapted, or refused with what to add."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsss_affinity.backbones.base import Backbone, FeatureInfo, HeadStyle
from wsss_affinity.backbones.grid import padded_maps
from wsss_affinity.errors import WSSSError

#: Height and width of the blank image that a network without feature_info is measured with
_PROBE = (224, 320)
_ADD = (
    "subclass wsss_affinity.backbones.Backbone, or set mean and std (of RGB in [0, 1]) on it, "
    "feature_info=FeatureInfo(channels, strides), and let forward return the list of feature maps"
)


class AdaptedBackbone(Backbone):
    """A module that returns a dict, a tuple or a single map, as a backbone.

    Args:
        network: The module, with ``mean`` and ``std``. Its ``stages``, ``heads`` and ``pretrained``
            are taken over; without ``stages`` its children are what can be frozen.
        feature_info: What it returns, finest first.
    """

    def __init__(self, network: nn.Module, feature_info: FeatureInfo) -> None:
        super().__init__()
        self.network = network
        self.feature_info = feature_info
        self.mean, self.std = _statistics(network)
        self.heads = getattr(network, "heads", HeadStyle())
        self.pretrained = bool(getattr(network, "pretrained", False))

    @property
    def stages(self) -> list[nn.Module]:
        """What the network calls its stages, or its children in order."""
        return list(getattr(self.network, "stages", None) or self.network.children())

    def for_affinity(self) -> None:
        """Change the network, if it knows how to."""
        getattr(self.network, "for_affinity", lambda: None)()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, finest first."""
        return padded_maps(
            lambda x: _maps(self.network, self.network(x)), images, self.feature_info.strides
        )


def adapt(module: nn.Module) -> Backbone:
    """Return a module that keeps the contract as it is, another one in a backbone around it.

    A network from elsewhere is run once on a small blank image, to see what it returns.

    Raises:
        WSSSError: If it cannot be used; the message says what to add.
    """
    name = type(module).__name__
    info: Any = getattr(module, "feature_info", None)
    if callable(getattr(info, "reduction", None)) and not isinstance(module, Backbone):
        from wsss_affinity.backbones.timm import TimmBackbone, only_size

        backbone = TimmBackbone(module, only_size(module))
        # timm does not note it; who has loaded weights may have
        backbone.pretrained = bool(getattr(module, "pretrained", False))
        return backbone
    missing = [n for n in ("mean", "std") if not hasattr(module, n)]
    if missing or (isinstance(module, Backbone) and info is None):
        lacks = ", ".join(["feature_info"] * (info is None) + missing)
        raise WSSSError(f"{name} is no backbone yet: it lacks {lacks}; {_ADD}")
    _statistics(module)
    if info is not None and not isinstance(info, FeatureInfo):
        raise WSSSError(f"{name}.feature_info must be a FeatureInfo, got {info!r}; {_ADD}")
    if type(module).__module__.startswith("wsss_affinity."):
        return cast(Backbone, module)  # they have tests of their own
    size = _PROBE if info is None else (2 * max(info.strides), 3 * max(info.strides))
    device = next(chain(module.parameters(), module.buffers()), torch.zeros(0, device="cpu")).device
    try:
        # its own device also for what it makes on the way, whatever the caller's default is
        with aside(module), torch.no_grad(), device:
            output = module(torch.zeros(1, 3, *size))
    except Exception as error:
        if info is not None and device.type == "meta":
            return cast(Backbone, module)  # not every layer knows that device; looked at later
        if device.type == "meta":
            return AdaptedBackbone(module, adapt(_on_cpu(module)).feature_info)
        raise WSSSError(
            f"{name} is no backbone yet: an image of shape (1, 3, {size[0]}, {size[1]}) makes it "
            f"fail ({type(error).__name__}: {error}); it must accept images of any size"
        ) from error
    maps = _maps(module, output)
    for feature_map in maps:
        rows, columns = (n / m for n, m in zip(size, feature_map.shape[2:], strict=True))
        if max(rows, columns) > 1.5 * min(rows, columns):  # more than rounding makes of few cells
            raise WSSSError(
                f"{name} is no backbone yet: of an image of shape (1, 3, {size[0]}, {size[1]}) it "
                f"makes a map of shape {tuple(feature_map.shape)}; return maps (B, C, h, w) of one "
                "stride in both directions, rows before columns"
            )
    found = FeatureInfo(
        tuple(m.shape[1] for m in maps), tuple(round(size[0] / m.shape[2]) for m in maps)
    )
    if info is not None and found != FeatureInfo(tuple(info.channels), tuple(info.strides)):
        raise WSSSError(
            f"{name}.feature_info says {info}, but it returns {found}; mend the one or the other"
        )
    in_order = isinstance(output, (list, tuple)) and all(map(operator.is_, output, maps))
    others = [n for n in ("mean", "std") if not isinstance(getattr(module, n), tuple)]
    if info is not None and in_order and not others:
        return cast(Backbone, module)  # it need not be a subclass
    if isinstance(module, Backbone) and others:
        raise WSSSError(
            f"{name}.{others[0]} is {type(getattr(module, others[0])).__name__}; make it a tuple "
            "of three numbers"
        )
    if isinstance(module, Backbone):
        raise WSSSError(
            f"{name}.forward returns {type(output).__name__}; let it return the list of feature "
            "maps, finest first"
        )
    return AdaptedBackbone(module, found)


def _maps(module: nn.Module, output: Any) -> list[Tensor]:
    """What a module returned as a list of maps, finest first."""
    name = type(module).__name__
    maps: Sequence[Any] = (
        list(output.values())
        if isinstance(output, Mapping)
        else list(output)
        if isinstance(output, (list, tuple))
        else [output]
    )
    for feature_map in maps:
        if not isinstance(feature_map, Tensor) or feature_map.ndim != 4:
            shape = getattr(feature_map, "shape", None)
            kind = type(feature_map).__name__ if shape is None else f"shape {tuple(shape)}"
            raise WSSSError(
                f"{name} is no backbone yet: it returns {kind} where feature maps (B, C, h, w) are "
                "expected; return the maps before pooling and classifier, tokens reshaped to them"
            )
    if not maps:
        raise WSSSError(f"{name} is no backbone yet: it returns no feature map; {_ADD}")
    # sorted() is stable: maps of one size keep their order
    return sorted(maps, key=lambda m: -m.shape[-1] * m.shape[-2])


def _statistics(module: nn.Module) -> tuple[tuple[float, float, float], ...]:
    found = []
    for key in ("mean", "std"):
        value: Any = getattr(module, key)
        if isinstance(value, Tensor):
            value = value.flatten().tolist()
        numbers: tuple[Any, ...] = ()
        with suppress(TypeError, ValueError):
            numbers = tuple(map(float, value)) if isinstance(value, (tuple, list)) else ()
        fit = len(numbers) == 3 and all(map(math.isfinite, numbers))
        if not fit or (key == "std" and min(numbers) <= 0):
            raise WSSSError(
                f"{type(module).__name__}.{key} must be three numbers for RGB in [0, 1], e.g. "
                f"(0.5, 0.5, 0.5), got {value!r}"
            )
        found.append(numbers)
    return tuple(found)


def _on_cpu(module: nn.Module) -> nn.Module:
    """A copy with zeros for the values that it does not have."""
    twin = copy.deepcopy(module).to_empty(device="cpu")
    with torch.no_grad():
        for value in chain(twin.parameters(), twin.buffers()):
            value.zero_()
    return twin


@contextmanager
def aside(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, without a trace in modes or random numbers."""
    modes = [(m, m.training) for m in module.modules()]
    for m, _ in modes:
        m.training = False
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for m, training in modes:
            m.training = training
