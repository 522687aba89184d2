"""What layers do under ``torch.compile``, ``torch.export`` and ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def outside_graphs(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """Let ``torch.compile`` call a function as it is, between two graphs.

    Not by ``torch.compiler.disable`` at once: that takes seconds to import the compiler.
    """

    @wraps(function)
    def wrapper(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        if torch.compiler.is_dynamo_compiling():
            disable: Any = torch.compiler.disable
            result: Output = disable(function)(*args, **kwargs)
            return result
        return function(*args, **kwargs)

    return wrapper


def refuse_export(function: str) -> None:
    """Say that a function has no graph to export, where ``torch.export`` calls it."""
    # told since torch 2.7; before, torch.export ends in an error of its own
    exporting = getattr(torch.compiler, "is_exporting", None)
    if exporting is not None and exporting():
        raise ValueError(
            f"{function} cannot be exported: its graph would be thousands of steps; export the "
            "network alone (AffinityNet.features, say) and call the operator on what it returns"
        )


def refuse_vmap(function: str) -> NoReturn:
    """Say that a function takes a batch itself."""
    raise ValueError(
        f"{function} cannot be mapped by torch.func.vmap: it takes a batch itself, so fold the "
        "mapped dimension into the first one of its inputs"
    )
