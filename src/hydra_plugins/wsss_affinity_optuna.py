"""Hydra's sweeper over Optuna's ask and tell.

The one that Hydra offers wants Optuna below 3, or Hydra 1.4, which is not out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from sys import stderr
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:  # every Hydra program imports this file when it starts
    from optuna.distributions import BaseDistribution


class OptunaSweeper(Sweeper):
    """Looks for the largest return value of the jobs.

    Args:
        n_trials: Points to try.
        n_jobs: How many of them are launched at a time.
        seed: Of the sampler (TPE); the same seed proposes the same points.
        params: Overrides; those of the command line have precedence over them.
            ``a,b,c`` and ``range(…)`` stand for one of the values, ``interval(a, b)`` for a
            number between, ``int(interval(a, b))`` for a whole one, ``tag(log, interval(a, b))``
            for one on a log scale.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, seed: int, params: Mapping[str, Any] | None
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.seed = seed
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before the sweep."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Ask, launch and tell until all trials are done.

        A job without a number for its value is told as failed and does not end the search.
        """
        try:
            import optuna
        except ImportError:
            # an exception would be shown with Hydra's traceback
            print(
                "error: the search needs Optuna; pip install 'wsss-affinity[search]'", file=stderr
            )
            raise SystemExit(2) from None

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        texts = [f"{key}={value}" for key, value in self.params.items()]
        # by key: what is given on the command line comes last and counts
        overrides = {o.get_key_element(): o for o in parser.parse_overrides([*texts, *arguments])}
        space = {k: distribution(o) for k, o in overrides.items() if o.is_sweep_override()}
        fixed = [
            f"{k}={o.get_value_element_as_str()}"
            for k, o in overrides.items()
            if not o.is_sweep_override()
        ]
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self.seed, constant_liar=self.n_jobs > 1)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        done: list[JobReturn] = []
        while len(done) < self.n_trials:
            count = min(self.n_jobs, self.n_trials - len(done))
            trials = [study.ask(space) for _ in range(count)]
            batch = [[*fixed, *(f"{k}={v}" for k, v in t.params.items())] for t in trials]
            self.validate_batch_is_legal(batch)
            returns: Sequence[JobReturn] = self.launcher.launch(batch, initial_job_idx=len(done))
            for trial, job in zip(trials, returns, strict=True):
                value = job.return_value
                if isinstance(value, (int, float)) and math.isfinite(value):
                    study.tell(trial, float(value))
                else:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
            done += returns
        return done


def distribution(override: Override) -> BaseDistribution:
    """What Optuna chooses a swept override from.

    Args:
        override: With several choices, a range or an interval.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    assert value.start is not None
    assert value.end is not None
    low, high, log_scale = value.start, value.end, "log" in value.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log_scale)
    return FloatDistribution(low, high, log=log_scale)
