"""What makes a network passed as an object what it is: its layers, weights, attributes and code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

#: Packages whose code is known by their version
_LIBRARIES = frozenset({"torch", "torchvision", "timm", "wsss_affinity"})


def identity(module: nn.Module) -> Iterator[str]:
    """All that makes a module what it is, but for training mode, the same in every process."""
    seen: set[int] = set()
    tensors = module.state_dict()
    # not all buffers are in the state dict, and no parameter knows there whether it is trained
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    tensors |= dict(module.named_parameters(remove_duplicate=False))
    yield _without_addresses(repr(module))
    for key, value in tensors.items():
        yield f"{key}: {_told(value, seen)}"
    usual = vars(nn.Module()).keys()
    for path, part in module.named_modules():
        own = {k: v for k, v in vars(part).items() if k not in usual}
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        yield f"{path}: {_told(own, seen)} {_told(hooks, seen)}"
        for kind in type(part).__mro__:
            for key, value in {} if _is_library(kind) else vars(kind).items():
                # Python's own notes on a class, line numbers say, change where it does not
                if not key.startswith("__") or isinstance(value, FunctionType):
                    yield f"{path}: {kind.__qualname__}.{key} {_told(value, seen)}"


def _told(value: Any, seen: set[int]) -> str:
    """A value in words that hold no address and do not hang on the order of a set.

    Args:
        value: Anything.
        seen: Functions and objects already told; those may refer to themselves.
    """

    def told(part: Any) -> str:
        return _told(part, seen)

    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        content = hashlib.sha256(array.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        return f"{array.dtype} {tuple(array.shape)} {value.requires_grad} {content}"
    if isinstance(value, Mapping):
        return f"{{{sorted((told(k), told(v)) for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[told(v) for v in value]}"
    if isinstance(value, (set, frozenset)):
        return f"{{{sorted(map(told, value))}}}"
    if isinstance(value, partial):
        return told((value.func, value.args, value.keywords))
    if isinstance(value, (MethodType, staticmethod, classmethod)):
        return told(value.__func__)
    if isinstance(value, property):
        return told(value.fget)
    if isinstance(value, CodeType):
        # what runs, not its source: that may have changed on the disk since
        return told((value.co_code.hex(), value.co_names, value.co_consts))
    foreign = not _is_library(value if isinstance(value, FunctionType) else type(value))
    if isinstance(value, FunctionType):
        name = f"{value.__module__}.{value.__qualname__}"
        if not foreign or id(value) in seen:
            return name
        seen.add(id(value))
        used = (value.__globals__.get(n) for n in value.__code__.co_names)
        helpers = [v for v in used if isinstance(v, (FunctionType, int, float, str, tuple))]
        closure = [_content(cell) for cell in value.__closure__ or ()]
        defaults = (value.__defaults__, value.__kwdefaults__)
        return told((name, value.__code__, defaults, closure, helpers))
    if foreign and " at 0x" in repr(value) and hasattr(value, "__dict__"):
        if id(value) in seen:
            return type(value).__qualname__
        seen.add(id(value))
        return f"{type(value).__qualname__} {told(vars(value))}"
    return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _is_library(thing: Any) -> bool:
    """Whether a class or function is of a package that is known by its version."""
    return str(thing.__module__).partition(".")[0] in _LIBRARIES | {"builtins"}
