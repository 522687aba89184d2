"""Stages, artefacts and the runner that puts them together.

The names here are loaded when they are first used: looking at artefacts needs neither torch nor
Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_affinity.pipeline.runner import RunResult, StageResult, run_pipeline

__all__ = ["RunResult", "StageResult", "run_pipeline"]


if not TYPE_CHECKING:  # or a checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.runner"), name)
