"""What a run shows on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from wsss_affinity.pipeline.runner import RunResult


def print_report(result: RunResult, *, per_class: bool = False) -> None:
    """Print what each stage took and gained.

    Args:
        result: Of a run.
        per_class: Whether to print the IoU of every class too.
    """
    console = Console()
    if result.stages:
        console.print(_stage_table(result))
    scores = result.scores
    if scores:
        console.print(_score_table(scores))
        if per_class:
            console.print(_class_table(scores))
    elif "evaluate" in result.stages:
        console.print("There are no masks to score with (data.masks, data.mask_folder).")
    if result.skipped:
        console.print(f"{len(result.skipped)} images were left out:")
        for problem in result.skipped[:5]:
            console.print(f"  {problem.id}: {problem.message}", highlight=False)


def _stage_table(result: RunResult) -> Table:
    table = Table("stage", "", "time", "images/s", title="Stages")
    for stage in result.stages.values():
        seconds = float(stage.manifest["wall_time_s"])
        images = stage.manifest["metrics"].get("images")
        speed = f"{images / seconds:.1f}" if images and seconds > 0 else ""
        state = "made" if stage.made else "reused"
        table.add_row(stage.name, state, _duration(seconds), speed)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes else f"{seconds:.1f} s"


def _score_table(scores: list[dict[str, Any]]) -> Table:
    table = Table("result", "mIoU", "on", "remarks", title="Scores")
    for score in scores:
        where = "training images" if score["split"] == "score" else "unseen images"
        row = score["name"], f"{score['miou']:.3f}", f"{score['images']} {where}"
        table.add_row(*row, ", ".join(_remarks(score)))
    return table


def _remarks(score: Mapping[str, Any]) -> list[str]:
    remarks = []
    if score["threshold"] is not None:
        how = "chosen with masks" if score["saw_masks"] else "chosen without masks"
        remarks.append(f"threshold {score['threshold']:.2f} {how}")
    if score["coverage"] is not None:
        remarks.append(f"{score['coverage']:.0%} of the pixels labelled")
    if score["crf"]:
        remarks.append("dense CRF")
    if not score["labels_given"]:
        remarks.append("no image-level labels given")
    return remarks


def _class_table(scores: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for score in scores for name in score["iou"]))
    table = Table("IoU", *(score["name"] for score in scores))
    for name in names:
        values = (score["iou"].get(name) for score in scores)
        table.add_row(name, *("" if v is None else f"{v:.3f}" for v in values))
    return table
