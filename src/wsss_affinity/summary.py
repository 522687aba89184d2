"""What a sweep came to: one table of its points, printed at its end and kept in its folder."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table

from wsss_affinity.errors import BAD_INPUT, WSSSError
from wsss_affinity.files import write_bytes


class SweepCallback(Callback):
    """Lets a sweep go on when a job fails, and sums it up at the end.

    Hydra calls it, by ``hydra.callbacks`` in the configuration. ``summary.json`` and
    ``summary.csv`` come into the folder of the sweep. The exit status is 1 if a job failed.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let jobs have worker processes, also those that joblib runs."""
        if str(multiprocessing.get_start_method(allow_none=True)).startswith("loky"):
            # joblib's own way, which starts nothing but joblib's processes; back to the default
            multiprocessing.set_start_method(None, force=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Turn a failure, which the job has told in its folder, into a job without a value."""
        if config.hydra.mode == RunMode.MULTIRUN and job_return.status == JobStatus.FAILED:
            # Hydra's own sweeper would raise it after the last job, and nothing would be summed up
            job_return.status = JobStatus.COMPLETED
            job_return.return_value = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the summary."""
        folder = Path(str(config.hydra.sweep.dir))
        try:
            summary = Summary.of(folder)
        except WSSSError as error:  # Hydra would make a warning of it
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(BAD_INPUT) from None
        write_bytes(folder / "summary.json", summary.json().encode())
        write_bytes(folder / "summary.csv", summary.csv().encode())
        summary.print()
        print(f"summary  {folder / 'summary.csv'}")
        if any(job.state != "done" for job in summary.jobs):
            raise SystemExit(1)


@dataclass(frozen=True)
class Job:
    """One point of a sweep.

    Attributes:
        name: Of its folder.
        point: The overrides in which it differs from others.
        state: As in ``status.json``, or ``killed``.
        objective: What it is worth.
        miou: Of everything that ``evaluate`` scored without having chosen it by masks.
        error: Why it failed, in one sentence.
    """

    name: str
    point: dict[str, str]
    state: str
    objective: float | None
    miou: dict[str, float]
    error: str | None

    @property
    def numbers(self) -> dict[str, float]:
        """All that can be averaged."""
        own = {} if self.objective is None else {"objective": self.objective}
        return {**own, **self.miou}


@dataclass(frozen=True)
class Summary:
    """All jobs of a sweep.

    Attributes:
        objective: Its name; None if no job has one.
        jobs: In order.
    """

    objective: str | None
    jobs: tuple[Job, ...]

    @classmethod
    def of(cls, folder: Path) -> Summary:
        """Read what the jobs left below the folder of their sweep.

        Raises:
            WSSSError: If a file of a job is damaged.
        """
        from wsss_affinity.pipeline.runs import read_runs  # it imports from here

        runs = read_runs(folder)
        points = varying([overrides(run.folder) for run in runs])
        jobs = []
        for run, point in zip(runs, points, strict=True):
            miou = dict(run.metrics)
            worth = miou.pop(run.objective, None) if run.objective else None
            jobs.append(Job(run.name, point, run.state, worth, miou, run.error))
        return cls(next((run.objective for run in runs if run.objective), None), tuple(jobs))

    def over_seeds(self) -> list[dict[str, Any]]:
        """Mean and standard deviation (n - 1) of points that differ in their seed alone."""
        groups: dict[tuple[tuple[str, str], ...], list[Job]] = defaultdict(list)
        for job in self.jobs:
            if job.state == "done" and "seed" in job.point:
                groups[tuple((k, v) for k, v in job.point.items() if k != "seed")].append(job)
        rows = []
        for point, jobs in groups.items():
            numbers = {
                name: {"mean": statistics.mean(values), "std": statistics.stdev(values)}
                for name in jobs[0].numbers
                if len(values := [j.numbers[name] for j in jobs if name in j.numbers]) > 1
            }
            rows.append({"point": dict(point), "seeds": len(jobs), **numbers})
        return rows

    def json(self) -> str:
        """Everything."""
        content = {
            "objective": self.objective,
            "jobs": [asdict(job) for job in self.jobs],
            "over_seeds": self.over_seeds(),
        }
        return json.dumps(content, indent=2) + "\n"

    def csv(self) -> str:
        """A line for each job."""
        keys, names = columns(job.point for job in self.jobs), self._names()
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["job", *keys, *map(self._title, names), "state", "error"])
        for job in self.jobs:
            point, numbers = (job.point.get(k, "") for k in keys), map(job.numbers.get, names)
            writer.writerow([job.name, *point, *numbers, job.state, job.error])
        return text.getvalue()

    def print(self) -> None:
        """Print the table, the means over seeds, the best point, and the failures."""
        keys, names = columns(job.point for job in self.jobs), self._names()
        headers = ("job", *keys, *map(self._title, names))
        table = Table(*(Column(header, overflow="fold") for header in headers), title="Sweep")
        for job in self.jobs:
            numbers = [f"{job.numbers[n]:.4f}" if n in job.numbers else "" for n in names]
            table.add_row(job.name, *(short(job.point.get(key, "")) for key in keys), *numbers)
        means = self.over_seeds()
        for row in means:
            point = [row["point"].get(key, f"{row['seeds']} seeds") for key in keys]
            spread = [row.get(name) for name in names]
            cells = ["" if s is None else f"{s['mean']:.4f} ± {s['std']:.4f}" for s in spread]
            table.add_row("mean", *point, *cells)
        console = Console()
        console.print(table)
        worth = [(job.objective, job) for job in self.jobs if job.objective is not None]
        if len(worth) > 1 and not means:  # a seed is not to be chosen
            best = max(worth, key=itemgetter(0))[1]
            text = " ".join(f"{key}={value}" for key, value in best.point.items())
            console.print(f"best: job {best.name}  {text}", highlight=False, soft_wrap=True)
        for job in self.jobs:
            if job.state != "done":
                text = f"job {job.name} {job.state}" + (f": {job.error}" if job.error else "")
                console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _names(self) -> list[str]:
        return columns(job.numbers for job in self.jobs)

    def _title(self, name: str) -> str:
        return (self.objective or name) if name == "objective" else name


def scores_by_name(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean IoUs as ``pseudo_masks.miou``, without those of settings that masks chose."""
    return {
        f"{score['name'].lower().replace('-', '_').replace(' ', '_')}.miou": float(score["miou"])
        for score in scores
        if score["miou"] is not None and not score["saw_masks"]
    }


def varying(points: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What is left of points without the keys that are the same in all."""
    same = set.intersection(*(set(point.items()) for point in points)) if points else set()
    return [dict(item for item in point.items() if item not in same) for point in points]


def short(value: str) -> str:
    """Shorten a number with many places to four; anything else stays as it is."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def overrides(folder: Path) -> dict[str, str]:
    """Read what the command line of a run gave, by key.

    Raises:
        WSSSError: If that file is damaged.
    """
    path = folder / ".hydra" / "overrides.yaml"
    try:
        texts: Iterable[Any] = OmegaConf.load(path) if path.is_file() else ()
    except Exception as error:  # the parser of YAML has its own kinds
        raise WSSSError(
            f"{path} cannot be read ({error}); mend it, or remove the folder of that run"
        ) from error
    return {key: value for key, _, value in (str(text).partition("=") for text in texts)}


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the keys of all rows once, in order."""
    return list(dict.fromkeys(key for row in rows for key in row))
