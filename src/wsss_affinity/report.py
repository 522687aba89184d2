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
        per_class: Whether to print IoU, precision and recall of every class too.
    """
    console = Console()
    if result.stages:
        console.print(_stage_table(result))
    scores = result.scores
    if scores:
        console.print(_score_table(scores))
        if result.sweeps:
            console.print(_sweep_table(result.sweeps))
        if per_class:
            for title in ("IoU", "precision", "recall"):
                console.print(_class_table(scores, title))
    elif "evaluate" in result.stages:
        console.print("There are no masks to score with (data.masks, data.mask_folder).")
    left_out = (*result.skipped, *result.failed)
    if left_out:
        console.print(f"{len(left_out)} images were left out:")
        for problem in left_out[:5]:
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
    table = Table("result", "mIoU", "95 %", "on", "remarks", title="Scores")
    for score in scores:
        where = "training images" if score["split"] == "score" else "unseen images"
        name = f" ({score['split_name']})" if score["split_name"] else ""
        interval = score["interval"]
        table.add_row(
            score["name"],
            _share(score["miou"]),
            "" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}",
            f"{score['images']} {where}{name}",
            ", ".join(_remarks(score)),
        )
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _remarks(score: Mapping[str, Any]) -> list[str]:
    remarks = [
        f"{what} {score[key]:{form}}"
        for what, key, form in (("threshold", "threshold", ".2f"), ("α", "alpha", "g"))
        if score[key] is not None
    ]
    if score["crf"]:
        number = score["crf_iterations"]
        remarks.append(f"dense CRF ({number} iteration{'s' if number > 1 else ''})")
    if score["saw_masks"]:
        what = "" if score["crf"] else "no dense CRF, " if score["stage"] == "random_walk" else ""
        remarks.append(f"{what}chosen with masks of {score['split_name'] or 'the training images'}")
    if score["trained_on_masks"]:
        remarks.append("trained on masks")
    if score["coverage"] is not None:
        remarks.append(f"{score['coverage']:.0%} of the pixels labelled")
    if score["missing"]:
        remarks.append(f"without {score['missing']} images that failed")
    if score["location_prior"]:
        remarks.append("location prior")
    if not score["labels_given"]:
        remarks.append("no image-level labels given")
        if score["labels_from_masks"] and not score["trained_on_masks"]:
            remarks.append("trained from labels read off masks")
    elif score["labels_from_masks"]:
        remarks.append("image-level labels read off masks given")
    else:
        remarks.append("image-level labels given")
    return remarks


def _sweep_table(sweeps: Mapping[str, list[dict[str, Any]]]) -> Table:
    table = Table("sweep", "fixed beforehand", "mIoU", "best by the masks", "mIoU", title="Sweeps")
    for name, rows in sweeps.items():
        default = next(row for row in rows if row["default"])
        best = max(rows, key=lambda row: -1.0 if row["miou"] is None else float(row["miou"]))
        cells = [c for row in (default, best) for c in (_setting(row), _share(row["miou"]))]
        table.add_row(name, *cells)
    return table


def _setting(row: Mapping[str, Any]) -> str:
    parts = ((key, row[key]) for key in row if key not in ("miou", "default"))
    return ", ".join(f"{key} {value:g}" for key, value in parts if value is not None)


def _class_table(scores: list[dict[str, Any]], title: str) -> Table:
    measure = title.lower()
    names = list(dict.fromkeys(name for score in scores for name in score[measure]))
    table = Table(title, *(score["name"] for score in scores))
    for name in names:
        table.add_row(name, *(_share(score[measure].get(name)) for score in scores))
    return table
