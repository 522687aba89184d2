"""What is told of artefacts on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from wsss_affinity.pipeline.compare import duration
from wsss_affinity.pipeline.inventory import Artifact, Inventory
from wsss_affinity.pipeline.prune import users_of_artifacts
from wsss_affinity.pipeline.runs import read_runs


def print_artifacts(output: Path, console: Console) -> None:
    """List all artefacts.

    Args:
        output: The folder that holds ``artifacts``.
        console: To print on.

    Raises:
        WSSSError: If a file of a run is damaged.
    """
    headers = ("artefact", "", "size", "age", "made from", "needed by", "runs (+ made it)")
    table = _table("Artefacts", headers)
    users, total = _users(output), 0
    for artifact in Inventory.of(output).artifacts.values():
        size = artifact.size
        total += size
        table.add_row(
            artifact.name,
            "" if artifact.state == "complete" else artifact.state,
            bytes_text(size),
            age_text(artifact.age),
            some([_short(name) for name in artifact.inputs.values()]),
            some([_short(name) for name in artifact.needed_by]),
            some(users.get(artifact.name, ())),
        )
    console.print(table)
    console.print(f"{bytes_text(total)} in all", highlight=False)


def print_explanation(output: Path, prefix: str, console: Console) -> None:
    """Tell what an artefact is, and why the one nearest to it was not reused in its place.

    Args:
        output: The folder that holds ``artifacts``.
        prefix: How its fingerprint begins, or ``<stage>/<fingerprint>``.
        console: To print on.

    Raises:
        WSSSError: If there is no such artefact, or more than one.
    """
    inventory = Inventory.of(output)
    artifact = inventory.find(prefix)
    rows = {
        "folder": str(artifact.path),
        "state": artifact.busy or artifact.state,
        "size": bytes_text(artifact.size),
        "age": age_text(artifact.age),
        "made from": "\n".join(artifact.inputs.values()),
        "needed by": "\n".join(artifact.needed_by),
        "runs (+ made it)": "\n".join(_users(output).get(artifact.name, ())),
        **_outcome(artifact),
    }
    _print_rows(artifact.name, {key: value for key, value in rows.items() if value}, console)
    _print_rows("Settings", artifact.settings, console)
    nearest = inventory.nearest(artifact)
    if nearest is None:
        console.print(f"There is no other complete artefact of {artifact.stage}.", highlight=False)
        return
    other, differences = nearest
    text = f"The nearest is {other.name}. "
    if not differences:
        text += "It has the same settings: images, labels or masks differ, or the stage's version."
    console.print(text, highlight=False, soft_wrap=True)
    if differences:
        table = _table("It was not reused, since", ("", "here", "there"))
        for key, values in differences.items():
            table.add_row(key, *values)
        console.print(table)


def bytes_text(number: float) -> str:
    """Tell a size.

    >>> [bytes_text(n) for n in (0, 999, 1500, 2_340_000_000)]
    ['0 B', '999 B', '1.5 kB', '2.3 GB']
    """
    if number < 1000:
        return f"{number} B"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} TB"


def age_text(seconds: float | None) -> str:
    """Tell how long ago something was.

    >>> [age_text(s) for s in (None, 75, 7325, 300000)]
    ['', '1:15', '2:02 h', '3 days']
    """
    days = 0 if seconds is None else int(seconds // 86400)
    return f"{days} days" if days > 1 else duration(seconds)


def some(names: Sequence[str]) -> str:
    """Name the first of many, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _users(output: Path) -> dict[str, list[str]]:
    """Runs that refer to each artefact; a plus marks the one that made it."""
    made = {
        (f"{stage}/{told.key}", run.name)
        for run in read_runs(output)
        for stage, told in run.stages.items()
        if told.made
    }
    return {
        name: sorted(f"+{user}" if (name, user) in made else user for user in users)
        for name, users in users_of_artifacts(output).items()
    }


def _outcome(artifact: Artifact) -> dict[str, str]:
    """What its manifest says of its making, numbers of every stage alike."""
    manifest = artifact.manifest or {}
    metrics = manifest.get("metrics", {})
    last = metrics["epochs"][-1] if metrics.get("epochs") else {}
    scores = metrics.get("scores", ())
    told = {
        "seconds": manifest.get("wall_time_s"),
        "attempts": manifest.get("attempts"),
        "commit": manifest.get("git_commit"),
        "images": metrics.get("images"),
        "images that failed": len(metrics.get("failed", ())) or None,
        **{f"{name}, last epoch": value for name, value in last.items()},
        **{f"mIoU of {score['name']}": score["miou"] for score in scores},
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _short(name: str) -> str:
    stage, key = name.split("/")
    return f"{stage}/{key[:6]}"


def _table(title: str, headers: Iterable[str]) -> Table:
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


def _print_rows(title: str, rows: Mapping[str, str], console: Console) -> None:
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
