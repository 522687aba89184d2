"""Runs side by side: what differed, what it gained, what it took."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.runs import Run, read_runs, settings_that_differ
from wsss_affinity.summary import columns, short

#: what runs are compared by where no objective says it, the first that there is
_WORTH = ("segmentation.miou", "pseudo_masks.miou", "affinity_labels.miou", "cam.miou")


@dataclass(frozen=True)
class Comparison:
    """Runs and what differs between them.

    Attributes:
        runs: In order of their names.
        points: Of each run, the settings that are not the same in all.
    """

    runs: tuple[Run, ...]
    points: tuple[Mapping[str, str], ...]

    @classmethod
    def of(cls, folder: Path) -> Comparison:
        """Read the runs below a folder."""
        runs = read_runs(folder)
        return cls(tuple(runs), tuple(settings_that_differ(runs)))

    @property
    def keys(self) -> list[str]:
        """Settings that differ."""
        return columns(self.points)

    @property
    def metrics(self) -> list[str]:
        """Everything that a run is scored by."""
        return columns(run.metrics for run in self.runs)

    @property
    def stages(self) -> list[str]:
        """Stages of any run."""
        return columns(run.stages for run in self.runs)

    @property
    def worth(self) -> str | None:
        """What the runs are compared by: the objective, otherwise the latest mean IoU."""
        names = [run.objective for run in self.runs if run.objective is not None]
        return next((name for name in (*names, *_WORTH) if name in self.metrics), None)

    def best(self, metric: str) -> set[str]:
        """Names of the runs that no other beats in both time and a metric."""
        scored = [run for run in self.runs if metric in run.metrics]
        points = [(run.seconds or 0.0, run.metrics[metric]) for run in scored]
        return {scored[i].name for i in pareto(points)}

    def csv(self) -> str:
        """A line for each run; seconds of a stage are those of whoever made it."""
        text = io.StringIO()
        writer = csv.writer(text)
        per_stage = (f"{stage}.{what}" for stage in self.stages for what in ("seconds", "made"))
        head = ["run", *self.keys, *self.metrics, "seconds", "seconds_made", "pareto", *per_stage]
        writer.writerow([*head, "state", "stage", "error"])
        best = self.best(self.worth) if self.worth else set()
        for run, point in zip(self.runs, self.points, strict=True):
            own = (point.get(key) for key in self.keys), map(run.metrics.get, self.metrics)
            row = [run.name, *own[0], *own[1], _rounded(run.seconds), _rounded(run.seconds_made)]
            row.append("" if not run.stages else str(run.name in best))
            for stage in self.stages:
                told = run.stages.get(stage)
                row += ["", ""] if told is None else [told.seconds, told.made]
            writer.writerow([*row, run.state, run.stage, run.error])
        return text.getvalue()

    def print(self, console: Console) -> None:
        """Print the runs, what their stages took, and why some have no result."""
        table = _table("Runs", ["run", *self.keys, *self.metrics, "time", "made in", "state"])
        best = self.best(self.worth) if self.worth else set()
        for run, point in zip(self.runs, self.points, strict=True):
            values = (short(point.get(key, "")) for key in self.keys)
            numbers = (
                f"{run.metrics[name]:.4f}{'*' if name == self.worth and run.name in best else ''}"
                if name in run.metrics
                else ""
                for name in self.metrics
            )
            times = duration(run.seconds), duration(run.seconds_made)
            table.add_row(run.name, *values, *numbers, *times, run.state)
        console.print(table)
        if best:
            text = f"* no other run has a higher {self.worth} in less time"
            console.print(text, highlight=False, soft_wrap=True)
        if self.stages:
            table = _table("Stages (r: reused)", ["run", *self.stages])
            for run in (run for run in self.runs if run.stages):
                told = (run.stages.get(stage) for stage in self.stages)
                cells = (duration(t.seconds) + ("" if t.made else " r") if t else "" for t in told)
                table.add_row(run.name, *cells)
            console.print(table)
        for run in self.runs:
            if run.state != "done":
                where = f" in {run.stage}" if run.stage else ""
                text = f"run {run.name} {run.state}{where}" + (
                    f": {run.error}" if run.error else ""
                )
                console.print(text, highlight=False, markup=False, soft_wrap=True)

    def plot(self, path: Path) -> None:
        """Draw each mean IoU against time, as PNG, with the line of those that none beats.

        Raises:
            ImportError: Without matplotlib.
        """
        from matplotlib.figure import Figure

        names = [name for name in self.metrics if name.endswith(".miou") or name == self.worth]
        figure = Figure(figsize=(5.0 * len(names), 4.0), layout="constrained")
        for i, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), i + 1)
            runs = [run for run in self.runs if name in run.metrics]
            points = [(run.seconds or 0.0, run.metrics[name]) for run in runs]
            best = sorted(points[i] for i in pareto(points))
            axes.plot(*zip(*points, strict=True), "o", color="0.6")
            axes.plot(
                *zip(*best, strict=True), "o-", drawstyle="steps-post", label="Pareto-optimal"
            )
            for run, point in zip(runs, points, strict=True):
                axes.annotate(run.name, point, fontsize="x-small")
            axes.set(xlabel="time of all stages [s]", ylabel=name)
            axes.legend()
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_bytes(path, picture.getvalue())


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(cost, worth)`` that no other beats.

    One beats another if it costs no more and is worth no less, and is better in one of the two.

    >>> pareto([(1.0, 0.3), (2.0, 0.2), (3.0, 0.5), (3.0, 0.5), (4.0, 0.5)])
    [0, 2, 3]
    """
    best, found = float("-inf"), set()
    for cost, worth in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if worth > best:
            best = worth
            found.add((cost, worth))
    return [i for i, point in enumerate(points) if point in found]


def duration(seconds: float | None) -> str:
    """Tell a time in at most three digits or so.

    >>> [duration(s) for s in (None, 3.21, 75, 7325, 200000)]
    ['', '3.2 s', '1:15', '2:02 h', '55:33 h']
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02d} h" if hours else f"{minutes}:{rest:02d}"


def _table(title: str, headers: Iterable[str]) -> Table:
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
