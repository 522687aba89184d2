"""The command line for looking at what runs left: ``wsss-affinity-compare <folder>``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_affinity.errors import BAD_INPUT, WSSSError
from wsss_affinity.files import write_bytes

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare runs; list, explain, check and prune artefacts.

    Bad input ends it with one sentence and exit status 2, damaged artefacts with 1.

    Args:
        arguments: Of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(
        "wsss-affinity-compare",
        description="Compare runs: what differed, what it gained, what it took. A table on the "
        "terminal, compare.csv and compare.png in the folder.",
    )
    parser.add_argument("folder", type=Path, help="of a sweep, or the output_dir of runs")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for compare.csv and compare.png"
    )
    instead = parser.add_argument_group("instead of comparing runs")
    group = instead.add_mutually_exclusive_group()
    group.add_argument("--artifacts", action="store_true", help="list the artefacts")
    group.add_argument(
        "--explain",
        metavar="NAME",
        help="what an artefact is and what differs from the nearest; NAME is how its fingerprint, "
        "or <stage>/<fingerprint>, begins",
    )
    group.add_argument(
        "--verify", action="store_true", help="read every file and compare it with its checksum"
    )
    group.add_argument(
        "--prune",
        action="store_true",
        help="show which artefacts no run's folder refers to and no run in progress uses",
    )
    parser.add_argument("--yes", action="store_true", help="delete what --prune shows")
    options = parser.parse_args(arguments)
    if options.yes and not options.prune:
        parser.error("--yes goes with --prune")

    # imported here, since help need not wait for it
    from rich.console import Console

    from wsss_affinity.pipeline.inventory_report import print_artifacts, print_explanation

    # names are not broken where a program reads them
    console = Console(width=None if sys.stdout.isatty() else 250)
    try:
        if not options.folder.is_dir():
            raise WSSSError(f"there is no folder {options.folder}; give that of a sweep or of runs")
        if options.artifacts:
            print_artifacts(_output(options.folder), console)
        elif options.explain is not None:
            print_explanation(_output(options.folder), options.explain, console)
        elif options.verify:
            _verify(_output(options.folder), console)
        elif options.prune:
            _prune(_output(options.folder), console, yes=options.yes)
        else:
            _compare(options.folder, options.output, console)
    except WSSSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None


def _compare(folder: Path, target: Path | None, console: Console) -> None:
    from wsss_affinity.pipeline.compare import Comparison
    from wsss_affinity.pipeline.inventory_report import print_artifacts

    if folder.resolve().name == "artifacts":
        folder = folder.resolve().parent
    comparison = Comparison.of(folder)
    if not comparison.runs:
        raise WSSSError(f"there are no runs below {folder}; give the folder of a sweep or of runs")
    comparison.print(console)
    if (folder / "artifacts").is_dir():
        print_artifacts(folder, console)
    target = target or folder
    write_bytes(target / "compare.csv", comparison.csv().encode())
    print(f"table  {target / 'compare.csv'}")
    if comparison.worth is None:
        return
    try:
        comparison.plot(target / "compare.png")
    except ImportError:
        print("no plot; it comes with pip install 'wsss-affinity[plots]'")
    else:
        print(f"plot   {target / 'compare.png'}")


def _verify(output: Path, console: Console) -> None:
    from wsss_affinity.pipeline.checksums import RECORD, damaged_files
    from wsss_affinity.pipeline.inventory import Inventory
    from wsss_affinity.pipeline.inventory_report import some

    damaged = 0
    artifacts = [a for a in Inventory.of(output).artifacts.values() if a.path.is_dir()]
    for artifact in artifacts:
        names = damaged_files(artifact.path, content=True)
        for name in names:  # a run looks at times and sizes first, which decay leaves as they are
            with suppress(OSError):
                os.utime(artifact.path / name)
        damaged += bool(names)
        text = f"damaged: {some(names)}" if names else "sound"
        if not names and not (artifact.path / RECORD).is_file():
            text = "of a version without checksums"
        console.print(f"{artifact.name}  {text}", highlight=False, markup=False, soft_wrap=True)
    if damaged:
        print(f"{damaged} of {len(artifacts)} are damaged; the runs that need them mend them")
        raise SystemExit(1)
    print(f"{len(artifacts)} artefacts checked, none is damaged")


def _prune(output: Path, console: Console, *, yes: bool) -> None:
    from rich.table import Column, Table

    from wsss_affinity.pipeline.in_use import uses
    from wsss_affinity.pipeline.inventory import Inventory
    from wsss_affinity.pipeline.inventory_report import age_text, bytes_text
    from wsss_affinity.pipeline.prune import plan_pruning, prune

    plan = plan_pruning(output, Inventory.of(output))
    for use in uses(output):
        if use.unknown:
            text = f"{use.owner} may be running, which cannot be told from here, so what it uses "
            text += f"stays; if it has ended remove {use.file}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    for name, reason in plan.keep.items():
        if not reason.startswith(("used by", "any run")):
            console.print(f"{name} stays: {reason}", highlight=False, markup=False, soft_wrap=True)
    if not plan.delete:
        print("nothing to delete: runs refer to all that is complete")
        return
    headers = ("no run refers to", "size", "age", "needed by, which goes too")
    table = Table(*(Column(header, overflow="fold") for header in headers))
    sizes = {artifact.name: artifact.size for artifact in plan.delete}
    for artifact in plan.delete:
        needed = "\n".join(artifact.needed_by)
        table.add_row(
            artifact.name, bytes_text(sizes[artifact.name]), age_text(artifact.age), needed
        )
    console.print(table)
    if not yes:
        print(f"{bytes_text(sum(sizes.values()))} would be freed; --yes deletes them")
        return
    kept = prune(output, plan.delete, print)
    for name, reason in kept.items():
        print(f"{name} stays: {reason}")
    print(f"{bytes_text(sum(size for name, size in sizes.items() if name not in kept))} freed")


def _output(folder: Path) -> Path:
    """The folder that holds ``artifacts``: this one, or one with records of runs that it is in."""
    from wsss_affinity.pipeline.in_use import RECORDS

    folder = folder.resolve()
    for output in (folder, *folder.parents):
        if (output / "artifacts").is_dir() and (output == folder or (output / RECORDS).is_dir()):
            return output
        if output == folder and folder.name == "artifacts":
            return folder.parent
    raise WSSSError(f"{folder} holds no artefacts; give the output_dir of the runs")


if __name__ == "__main__":
    main()
