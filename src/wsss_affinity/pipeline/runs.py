"""What the runs below a folder left: how they ended, what they scored, what each stage took."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import wsss_affinity.config  # noqa: F401  (its resolvers are in the files of runs)
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.owner import Owner
from wsss_affinity.summary import columns, overrides, scores_by_name, varying

STATUS, METRICS = "status.json", "metrics.json"
#: these name a run, or lead to settings that are told themselves
_NAMES = ("name", "output_dir", "sweep", "hydra")


@dataclass(frozen=True)
class StageRun:
    """What a stage was in a run.

    Attributes:
        key: Fingerprint of its artefact.
        made: Whether the run made it; otherwise it was reused.
        seconds: That the making took, whoever made it.
    """

    key: str
    made: bool
    seconds: float


@dataclass(frozen=True)
class Run:
    """One folder of a run.

    Attributes:
        name: The folder, relative to the one that was looked through.
        folder: The folder.
        state: ``done``, ``failed``, ``interrupted``, ``running``, or ``killed`` where the process
            that should be running is not.
        stage: The last that it began.
        error: Why it failed, in one sentence.
        objective: Name of what a sweep compares its points by.
        metrics: Mean IoUs that masks did not choose, and the objective, by name; of runs that are
            done.
        stages: Stages that were run or reused, in order; of runs that are done.
        artifacts: ``<stage>/<fingerprint>`` of all that the folder refers to.
    """

    name: str
    folder: Path
    state: str
    stage: str | None = None
    error: str | None = None
    objective: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, StageRun] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """What all stages took, reused ones too: what the result costs from nothing."""
        return sum(stage.seconds for stage in self.stages.values()) if self.stages else None

    @property
    def seconds_made(self) -> float | None:
        """What the stages took that this run made."""
        if not self.stages:
            return None
        return sum(stage.seconds for stage in self.stages.values() if stage.made)


def read_runs(folder: Path) -> list[Run]:
    """Read every run below a folder, the folder itself included.

    Raises:
        WSSSError: If a file of a run is damaged.
    """
    found = []
    for path, folders, files in os.walk(folder):
        here = Path(path)
        # artefacts are no runs, and may hold millions of files
        hidden = here.name == "artifacts" or here.name.startswith(".")
        if hidden and here != folder:
            folders.clear()
        elif STATUS in files or METRICS in files:
            name = here.relative_to(folder).as_posix()
            found.append(_read_run(here, name if name != "." else here.resolve().name))
    return sorted(found, key=lambda run: _natural(run.name))


def settings_that_differ(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Keys that the command line of a run gave, with their values where those are not all equal.

    A run whose command line did not give a key has the value of its configuration.
    """
    given = [overrides(run.folder) for run in runs]
    names = (key.lstrip("+~") for key in columns(given))
    keys = [key for key in names if re.split(r"[./]", key)[0] not in _NAMES]
    points = []
    for run, own in zip(runs, given, strict=True):
        config, choices = _config(run.folder)
        values = {key: _value(key, config, choices, own) for key in dict.fromkeys(keys)}
        points.append({key: value for key, value in values.items() if value is not None})
    return varying(points)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that may not be there.

    Raises:
        WSSSError: If it is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not what a run writes")
    return content


def _damaged(path: Path, reason: object) -> WSSSError:
    return WSSSError(
        f"{path} cannot be read ({reason}); mend or remove it, or remove the folder of that run"
    )


def _read_run(folder: Path, name: str) -> Run:
    status, content = read_json(folder / STATUS), read_json(folder / METRICS)
    state = status.get("state", "done")  # a script that wrote the metrics writes no status
    try:
        owner = status.get("owner")
        if state == "running" and owner is not None and Owner(**owner).runs() is False:
            state = "killed"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / STATUS, _reason(error)) from error
    try:
        left = {
            stage: StageRun(Path(told["artifact"]).name, told["made"], float(told["wall_time_s"]))
            for stage, told in content.get("stages", {}).items()
        }
        artifacts = tuple(f"{stage}/{told.key}" for stage, told in left.items())
        ended = status.get("stage"), status.get("error")
        run = Run(name, folder, state, *ended, artifacts=artifacts)
        if state != "done":  # what there is may be of an earlier run in the same folder
            return run
        metrics = scores_by_name(content.get("scores", ()))
        objective = content.get("objective")
        if objective is None:
            return replace(run, metrics=metrics, stages=left)
        metrics = {objective["name"]: float(objective["value"]), **metrics}
        return replace(run, objective=objective["name"], metrics=metrics, stages=left)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / METRICS, _reason(error)) from error


def _reason(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _config(folder: Path) -> tuple[DictConfig, Mapping[str, Any]]:
    """The configuration of a run, and what was chosen of each group."""
    files = folder / ".hydra" / "config.yaml", folder / ".hydra" / "hydra.yaml"
    try:
        config, own = (OmegaConf.load(f) if f.is_file() else OmegaConf.create() for f in files)
        choices = OmegaConf.select(own, "hydra.runtime.choices") or {}
        if not isinstance(config, DictConfig):
            raise TypeError("config.yaml is a list")
    except Exception as error:  # the parser of YAML has its own kinds
        raise WSSSError(f"{files[0].parent} cannot be read ({error}); remove it") from error
    return config, choices


def _value(
    key: str, config: DictConfig, choices: Mapping[str, Any], given: Mapping[str, str]
) -> str | None:
    if key in choices:
        return str(choices[key])
    try:
        value = OmegaConf.select(config, key)
    except (OmegaConfBaseException, HydraException):  # of an environment that is not here
        value = None
    if isinstance(value, ListConfig | DictConfig):
        return json.dumps(OmegaConf.to_container(value))
    return given.get(key) if value is None else str(value)
