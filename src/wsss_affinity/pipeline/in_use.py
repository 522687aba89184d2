"""Which artefacts the runs use: a record of each run, kept beside the artefacts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.owner import Owner

#: folder of the records, below ``output_dir``
RECORDS = ".runs"


@dataclass(frozen=True)
class Use:
    """What a record says.

    Attributes:
        file: The record.
        folder: Of the run; None for one that Python code started.
        owner: The process; None when the run has ended.
        artifacts: ``<stage>/<fingerprint>`` of each, those still to be made among them.
    """

    file: Path
    folder: Path | None
    owner: Owner | None
    artifacts: tuple[str, ...]

    @property
    def running(self) -> bool:
        """Whether the run may be in progress; on another computer that cannot be told."""
        return self.owner is not None and self.owner.runs() is not False

    @property
    def unknown(self) -> bool:
        """Whether it cannot be told from here if the run is in progress."""
        return self.owner is not None and self.owner.runs() is None


@contextmanager
def in_use(
    output: Path, folder: Path | None = None
) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Keep artefacts from being pruned while the work inside lasts.

    Note artefacts before you look whether they are there: pruning takes an artefact away first
    and reads the records then, so that one of the two sees the other.

    Args:
        output: The folder that holds ``artifacts``.
        folder: Of the run, see :func:`run_folder`; they are kept as long as it exists, or until
            a later run is finished in it.

    Yields:
        Notes the fingerprint of each stage's artefact, beside those noted before. It raises
        :class:`WSSSError` if that cannot be written.
    """
    from wsss_affinity import world  # here, since reading records needs no torch

    owner = Owner.here()
    use = Use(output / RECORDS / f"{owner.token}.json", folder, owner, ())

    def note(artifacts: Mapping[str, str]) -> None:
        nonlocal use
        names = (f"{stage}/{key}" for stage, key in artifacts.items())
        use = replace(use, artifacts=tuple(dict.fromkeys([*use.artifacts, *names])))
        if world.rank() == 0:
            _write(output, use)

    done = False
    try:
        yield note
        done = True
    finally:
        if use.artifacts and world.rank() == 0:
            if folder is None:
                use.file.unlink(missing_ok=True)
            else:
                # an error, of a full disk say, is told already, or no concern of a finished run
                with suppress(WSSSError):
                    _write(output, replace(use, owner=None))
                    if done:
                        _forget_earlier(output, use)


def run_folder() -> Path | None:
    """Folder that Hydra gave the run; None if it was not the command line that started it."""
    if not HydraConfig.initialized():
        return None
    return Path(HydraConfig.get().runtime.output_dir).resolve()


def _forget_earlier(output: Path, use: Use) -> None:
    """Remove the records of all earlier runs in the same folder, finished or not.

    Their artefacts are pruned unless another folder refers to them: of a folder, those of the
    last run that was finished in it stay.
    """
    for other in uses(output):
        if other.folder == use.folder and other.file != use.file and not other.running:
            other.file.unlink(missing_ok=True)


def uses(output: Path) -> list[Use]:
    """Read the records of all runs.

    Raises:
        WSSSError: If one is damaged.
    """
    return [_read(output, file) for file in sorted((output / RECORDS).glob("*.json"))]


def _write(output: Path, use: Use) -> None:
    folder = use.folder
    if folder is not None and folder.is_relative_to(output.resolve()):
        folder = folder.relative_to(output.resolve())  # stays true when the output is moved
    content = {
        "folder": None if folder is None else str(folder),
        "owner": None if use.owner is None else asdict(use.owner),
        "artifacts": use.artifacts,
    }
    write_bytes(use.file, (json.dumps(content, indent=2) + "\n").encode())


def _read(output: Path, file: Path) -> Use:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        folder, owner = content["folder"], content["owner"]
        return Use(
            file,
            None if folder is None else output.resolve() / folder,
            None if owner is None else Owner(**owner),
            tuple(content["artifacts"]),
        )
    except FileNotFoundError:  # the run has just ended
        return Use(file, None, None, ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WSSSError(
            f"{file} cannot be read ({error}); it tells which artefacts a run uses, remove it if "
            "that run has ended"
        ) from error
