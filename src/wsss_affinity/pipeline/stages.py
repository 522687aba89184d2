"""The seven stages: what each reads, what names it, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_affinity.pipeline import evaluate, foreign_cams, maps, train, walk
from wsss_affinity.pipeline.context import Context


@dataclass(frozen=True)
class Stage:
    """A pure function from files to files.

    Attributes:
        name: Of the stage and of its folder.
        reads: Stages whose artefacts it needs.
        config: Sections of the configuration that decide its result.
        run: Fills the artefact's directory and returns what its manifest keeps.
        schema: Raised when the same configuration comes to mean another result.
    """

    name: str
    reads: tuple[str, ...]
    config: tuple[str, ...]
    run: Callable[[Context, Path], dict[str, Any]]
    schema: int = 1


def _make_cam(context: Context, directory: Path) -> dict[str, Any]:
    ready_made = context.cfg.cams_from is not None
    return (foreign_cams.take_cams if ready_made else maps.make_cam)(context, directory)


_FIT = ("backbone", "trainer", "seed", "data.max_side")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("train_cam", (), ("train_cam", *_FIT), train.train_cam),
        # 2: the kernel of PIL where images are enlarged
        Stage("make_cam", ("train_cam",), ("cam",), _make_cam, schema=2),
        Stage("affinity_labels", ("make_cam",), ("affinity_labels",), maps.make_affinity_labels),
        Stage(
            "train_affinity",
            ("affinity_labels",),
            ("train_affinity", *_FIT),
            train.train_affinity,
        ),
        Stage("random_walk", ("make_cam", "train_affinity"), ("walk",), walk.make_random_walk),
        Stage(
            "train_segmentation",
            ("random_walk",),
            ("train_segmentation", "trainer", "seed", "data.max_side"),
            train.train_segmentation,
        ),
        Stage(
            "evaluate",
            (
                "train_cam",
                "make_cam",
                "affinity_labels",
                "train_affinity",
                "random_walk",
                "train_segmentation",
            ),
            ("evaluate",),
            evaluate.evaluate,
        ),
    )
}
