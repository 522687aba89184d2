"""Weakly supervised semantic segmentation with AffinityNet.

The names here are loaded when they are first used, so that importing the layers brings in neither
Lightning nor Hydra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_affinity.backbones import create_backbone, list_backbones, register_backbone
    from wsss_affinity.checkpoint import load_published
    from wsss_affinity.config import load_config
    from wsss_affinity.data import WSSSDataModule
    from wsss_affinity.errors import WSSSError
    from wsss_affinity.layers import DenseCRF, RandomWalk, pairwise_affinity, random_walk
    from wsss_affinity.losses import affinity_loss
    from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet
    from wsss_affinity.pipeline import run_pipeline
    from wsss_affinity.tasks import AffinityTask, CAMTask, SegmentationTask

__version__ = "0.1.0"

_HOME = {
    "AffinityNet": "models",
    "AffinityTask": "tasks",
    "CAMNet": "models",
    "CAMTask": "tasks",
    "DenseCRF": "layers",
    "RandomWalk": "layers",
    "SegmentationNet": "models",
    "SegmentationTask": "tasks",
    "WSSSDataModule": "data",
    "WSSSError": "errors",
    "affinity_loss": "losses",
    "create_backbone": "backbones",
    "list_backbones": "backbones",
    "load_config": "config",
    "load_published": "checkpoint",
    "pairwise_affinity": "layers",
    "random_walk": "layers",
    "register_backbone": "backbones",
    "run_pipeline": "pipeline",
}
__all__ = [
    "AffinityNet",
    "AffinityTask",
    "CAMNet",
    "CAMTask",
    "DenseCRF",
    "RandomWalk",
    "SegmentationNet",
    "SegmentationTask",
    "WSSSDataModule",
    "WSSSError",
    "affinity_loss",
    "create_backbone",
    "list_backbones",
    "load_config",
    "load_published",
    "pairwise_affinity",
    "random_walk",
    "register_backbone",
    "run_pipeline",
]


if not TYPE_CHECKING:  # or a checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
