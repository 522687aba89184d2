"""Backbones by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from wsss_affinity.backbones.base import Backbone, check_backbone
from wsss_affinity.errors import WSSSError, did_you_mean

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, Builder] = {}


def register_backbone(name: str) -> Callable[[Builder], Builder]:
    """Decorator: make a function or class available as ``create_backbone(name)``.

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


def list_backbones() -> list[str]:
    """Registered names, sorted."""
    return sorted(_BUILDERS)


def create_backbone(
    spec: str | nn.Module,
    *,
    freeze_batchnorm: bool = False,
    freeze_stages: int = 0,
    **options: Any,
) -> Backbone:
    """Make a backbone from a name, or check the one given.

    Args:
        spec: A registered name, ``"torchvision:<model>"``, ``"timm:<model>"``, or a module that
            keeps the contract of :class:`~wsss_affinity.backbones.Backbone`.
        freeze_batchnorm: Keep every BatchNorm as loaded.
        freeze_stages: Keep the first so many stages as loaded.
        **options: For the builder: ``output_stride`` (8, 16 or 32) and ``weights``
            (``"imagenet"``, a path, or None).

    Raises:
        WSSSError: If the name is unknown (the message lists near names), an option does not fit,
            or the module does not keep the contract.

    Example:
        >>> create_backbone("resnet18", output_stride=16).feature_info.strides
        (4, 8, 16, 16)
    """
    if isinstance(spec, nn.Module):
        if options:
            raise WSSSError(
                f"options {', '.join(sorted(options))} have no effect on a backbone that is "
                "already a module; set them where it is made"
            )
        module = spec
    else:
        builder = _find(spec)
        signature = inspect.signature(builder)
        try:
            signature.bind(**options)
        except TypeError as error:
            raise WSSSError(
                f"backbone {spec!r}: {error}; its options are {', '.join(signature.parameters)}"
            ) from error
        module = builder(**options)
    backbone = check_backbone(module)
    if freeze_batchnorm or freeze_stages:
        if not isinstance(module, Backbone):
            raise WSSSError(
                f"{type(module).__name__} cannot be frozen by option; subclass "
                "wsss_affinity.backbones.Backbone and list its stages"
            )
        module.freeze(batchnorm=freeze_batchnorm, num_stages=freeze_stages)
    return backbone


def _find(spec: str) -> Builder:
    library, _, model = spec.rpartition(":")
    if library == "timm":
        from wsss_affinity.backbones.timm import timm_backbone

        return partial(timm_backbone, model)
    if library not in ("", "torchvision"):
        raise WSSSError(
            f"backbone {spec!r}: unknown library {library!r}; use 'timm:<model>', "
            "'torchvision:<model>' or a registered name"
        )
    if model not in _BUILDERS:
        hint = did_you_mean(model, list_backbones())
        raise WSSSError(f"backbone {spec!r} is not known; {hint}")
    return _BUILDERS[model]
