"""Backbones by name, by import path, or as an object."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from wsss_affinity.backbones.adapt import AdaptedBackbone, adapt
from wsss_affinity.backbones.base import Backbone, load_weights
from wsss_affinity.backbones.grid import ResampledBackbone
from wsss_affinity.backbones.identity import identity
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.plugins import backbone_plugins, load_plugin

Builder = Callable[..., nn.Module]
#: A name, the import path of a class or function with its arguments, or the module itself
Spec = str | Mapping[str, Any] | nn.Module
TARGET = "_target_"
_BUILDERS: dict[str, Builder] = {}


def register_backbone(name: str) -> Callable[[Builder], Builder]:
    """Decorator: make a function or class available as ``create_backbone(name)``.

    An installed package need not be imported for that, if it names what it offers as an entry point
    of the group ``wsss_affinity.backbones``.

    Raises:
        ValueError: If the name is taken or holds a colon.

    Example:
        >>> @register_backbone("doctest_net")
        ... class Net(nn.Module): ...
        >>> "doctest_net" in list_backbones()
        True
    """

    def register(builder: Builder) -> Builder:
        if ":" in name or name in _BUILDERS:
            raise ValueError(f"backbone name {name!r} is taken or holds a colon; choose another")
        _BUILDERS[name] = builder
        return builder

    return register


class _Copies:
    """Builder of copies of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).cpu()

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)


def register_object(module: nn.Module) -> str:
    """Make copies of a module available by a name, for the rest of this process.

    Args:
        module: A backbone, for :func:`create_backbone`.

    Returns:
        The name, made of its class and a digest of its layers, weights, attributes and code (as
        this version of Python compiles it), so that it stands for them.

    Raises:
        WSSSError: If it has parameters without values.
    """
    kind = type(module)
    for value in chain(module.parameters(), module.buffers()):
        if is_lazy(value) or value.is_meta:
            raise WSSSError(
                f"the backbone {kind.__qualname__} has parameters without values (lazy ones, or on "
                "the meta device); make it on the CPU and run it once before it is passed"
            )
    digest = hashlib.sha256()
    for line in identity(module):
        digest.update(line.encode(errors="backslashreplace") + b"\n")
    name = f"{kind.__module__}.{kind.__qualname__}@{digest.hexdigest()[:16]}"
    if name not in _BUILDERS:
        _BUILDERS[name] = _Copies(module)
    return name


def list_backbones() -> list[str]:
    """Registered names and those of installed plug-ins, sorted."""
    return sorted({*_BUILDERS, *backbone_plugins()})


def create_backbone(
    spec: Spec,
    *,
    freeze_batchnorm: bool = False,
    freeze_stages: int = 0,
    **options: Any,
) -> Backbone:
    """Make a backbone from a name or an import path, or take the one given.

    Args:
        spec: A registered name or an installed plug-in's, ``"torchvision:<model>"``,
            ``"timm:<model>"``, ``{"_target_": "my_pkg.MyNet", …}`` with the arguments of the class
            or function, or a module that keeps the contract of
            :class:`~wsss_affinity.backbones.Backbone` (or comes near to it: a network that
            returns a dict, a tuple or a single map is adapted).
        freeze_batchnorm: Keep every BatchNorm as loaded.
        freeze_stages: Keep the first so many stages as loaded.
        **options: For the builder: ``output_stride`` (8, 16 or 32) and ``weights``
            (``"imagenet"``, a path, or None). A network that has another stride than
            ``output_stride`` gets its last map resized to that grid. Builders that do not take
            ``weights`` are loaded from the path afterwards.

    Raises:
        WSSSError: If the name is unknown (the message lists near names) or cannot be imported, an
            option does not fit, or the module does not keep the contract.

    Example:
        >>> create_backbone("resnet18", output_stride=16).feature_info.strides
        (4, 8, 16, 16)
    """
    stride = options.get("output_stride")
    if stride is not None and (type(stride) is not int or stride < 1):
        raise WSSSError(f"output_stride must be a whole number of at least 1, got {stride!r}")
    if not isinstance(spec, (str, Mapping, nn.Module)):
        raise WSSSError(
            f"a backbone is a name, a mapping with {TARGET} or a torch.nn.Module, got {spec!r}"
        )
    if isinstance(spec, nn.Module):
        useless = sorted(options.keys() - {"output_stride"})
        if useless:
            raise WSSSError(
                f"options {', '.join(useless)} have no effect on a backbone that is "
                "already a module; set them where it is made"
            )
        module = spec
    else:
        module = _build(spec, options)
    backbone = adapt(module)
    if freeze_batchnorm or freeze_stages:
        if not isinstance(backbone, Backbone):
            backbone = AdaptedBackbone(backbone, backbone.feature_info)
        backbone.freeze(batchnorm=freeze_batchnorm, num_stages=freeze_stages)
    if stride is not None and stride != backbone.feature_info.strides[-1]:
        if not isinstance(backbone, Backbone):
            backbone = AdaptedBackbone(backbone, backbone.feature_info)
        backbone = ResampledBackbone(backbone, stride)
    return backbone


def _build(spec: str | Mapping[str, Any], options: dict[str, Any]) -> nn.Module:
    """Call the builder with those of the options that it takes; load weights that it does not."""
    builder, label = _find(spec)
    ours = not isinstance(builder, _Copies) and getattr(
        builder, "func", builder
    ).__module__.startswith("wsss_affinity.")
    parameters = _signature(builder, label).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    given = dict(options)
    weights = None
    if not ours and not takes_any:
        if "output_stride" not in parameters:
            given.pop("output_stride", None)
        if "weights" not in parameters:
            weights = given.pop("weights", None)
            if weights == "imagenet":
                raise WSSSError(
                    f"{label} takes no `weights`, so there are no ImageNet weights of it; "
                    "give the path of a state dict, or null"
                )
    try:
        _signature(builder, label).bind(**given)
    except TypeError as error:
        raise WSSSError(f"{label}: {error}; its options are {', '.join(parameters)}") from error
    # a network from elsewhere leaves the random numbers as they were, so that what is built on it
    # starts the same whether it comes by name, by import path or as an object
    if ours:
        module = builder(**given)
    else:
        with torch.random.fork_rng(devices=[]):
            module = _call(partial(builder, **given), label)
    if not isinstance(module, nn.Module):
        raise WSSSError(
            f"{label} gives {type(module).__name__}; a torch.nn.Module was expected, so name its "
            "class or a function that returns it"
        )
    if weights is not None:
        load_weights(module, weights)
        cast(Any, module).pretrained = True
    return module


def _call(builder: Callable[[], Any], label: str) -> Any:
    """Run code from elsewhere, on the CPU where the caller wants no more than a description.

    Such code may look at numbers, which the meta device does not have.
    """
    blank = torch.empty(0).is_meta
    with torch.device("cpu") if blank else nullcontext():
        try:
            return builder()
        except WSSSError:
            raise
        except Exception as error:
            raise WSSSError(
                f"{label} cannot be built ({type(error).__name__}: {error}); see its arguments"
            ) from error


def _signature(builder: Builder, label: str) -> inspect.Signature:
    try:
        return inspect.signature(builder)
    except ValueError as error:  # those of C have none
        raise WSSSError(
            f"{label} does not tell its arguments; name a class or function written in Python"
        ) from error


def _find(spec: str | Mapping[str, Any]) -> tuple[Builder, str]:
    """The builder, and what to call it in messages."""
    if not isinstance(spec, str):
        return _target(spec)
    label = f"backbone {spec!r}"
    library, _, model = spec.rpartition(":")
    if library == "timm":
        from wsss_affinity.backbones.timm import timm_backbone

        return partial(timm_backbone, model), label
    if library not in ("", "torchvision"):
        raise WSSSError(
            f"{label}: unknown library {library!r}; use 'timm:<model>', "
            "'torchvision:<model>' or a registered name"
        )
    if model in _BUILDERS:
        return _BUILDERS[model], label
    if library == "torchvision":
        from wsss_affinity.backbones.torchvision_chain import torchvision_backbone

        return partial(torchvision_backbone, model), label
    plugins = backbone_plugins()
    if model in plugins:
        builder = load_plugin(plugins[model])
        if not callable(builder) or isinstance(builder, nn.Module):
            raise WSSSError(
                f"{label}: the entry point {plugins[model].value!r} is no class or function; let "
                "it name what makes the network"
            )
        return builder, label
    hint = did_you_mean(model, list_backbones())
    raise WSSSError(f"{label} is not known; {hint}")


def _target(spec: Mapping[str, Any]) -> tuple[Builder, str]:
    path = spec.get(TARGET)
    if not isinstance(path, str) or not path:
        raise WSSSError(
            f"a backbone given as a mapping needs {TARGET}, the import path of a class or "
            f"function, e.g. my_pkg.MyNet; got {dict(spec)}"
        )
    label = f"backbone {TARGET}={path}"
    builder = _import(path, label)
    arguments = {key: _made(value) for key, value in spec.items() if key != TARGET}
    try:
        _signature(builder, label).bind_partial(**arguments)
    except TypeError as error:
        known = ", ".join(_signature(builder, label).parameters)
        raise WSSSError(f"{label}: {error}; its arguments are {known}") from error
    return partial(builder, **arguments), label


def _made(value: Any) -> Any:
    """Arguments, with what they say by an import path made, too."""
    if isinstance(value, Mapping):
        if TARGET in value:
            return _call(*_target(value))
        return {key: _made(item) for key, item in value.items()}
    return [_made(item) for item in value] if isinstance(value, list) else value


def _import(path: str, label: str) -> Builder:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise WSSSError(f"{label}: an import path has a module and a name, e.g. my_pkg.MyNet")
    try:
        found = getattr(import_module(module_name), name)
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise WSSSError(
            f"{label} cannot be imported ({type(error).__name__}: {error}); check the spelling, "
            "and that the package is installed or its folder is in PYTHONPATH"
        ) from error
    if not callable(found) or isinstance(found, nn.Module):
        raise WSSSError(f"{label} is no class or function but {type(found).__name__}")
    builder: Builder = found
    return builder
