import math
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hydra_plugins.wsss_affinity_optuna import OptunaSweeper, distribution


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=4,8,16", CategoricalDistribution(["4", "8", "16"])),
        ("x=[1.0],[0.5,1.0]", CategoricalDistribution(["[1.0]", "[0.5,1.0]"])),
        ("x=range(0,3)", CategoricalDistribution(["0", "1", "2"])),
        ("x=interval(2,32)", FloatDistribution(2.0, 32.0)),
        ("x=int(interval(2,32))", IntDistribution(2, 32)),
        ("x=tag(log,interval(1.0,32.0))", FloatDistribution(1.0, 32.0, log=True)),
    ],
)
def test_distribution(text, expected):
    override = OverridesParser.create().parse_override(text)
    assert distribution(override) == expected


class Launcher:
    """Answers with a function of the overrides, and notes what it was given."""

    def __init__(self, value):
        self.value = value
        self.batches = []

    def launch(self, job_overrides, initial_job_idx):
        assert initial_job_idx == sum(map(len, self.batches))
        self.batches.append(job_overrides)
        jobs = []
        for overrides in job_overrides:
            job = JobReturn(status=JobStatus.COMPLETED)
            job.return_value = self.value(dict(text.split("=", 1) for text in overrides))
            jobs.append(job)
        return jobs


def sweep(tmp_path, value, arguments=(), *, n_trials, n_jobs=1, seed=0):
    sweeper = OptunaSweeper(n_trials, n_jobs, seed, {"x": "interval(-10.0,10.0)", "k": "a,b"})
    sweeper.launcher = Launcher(value)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
    loader = SimpleNamespace(load_sweep_config=lambda master_config, sweep_overrides: None)
    sweeper.hydra_context = SimpleNamespace(config_loader=loader)
    # the parser asks the loader for groups, of which there are none here
    loader.get_group_options = lambda *_, **__: []
    returned = sweeper.sweep(list(arguments))
    points = [dict(t.split("=", 1) for t in p) for b in sweeper.launcher.batches for p in b]
    assert len(returned) == len(points) == n_trials
    return points, [job.return_value for job in returned], sweeper.launcher.batches


def peak(point):
    return -((float(point["x"]) - 3) ** 2) - (point["k"] == "a")


def test_search_finds_the_peak(tmp_path):
    points, values, _ = sweep(tmp_path, peak, n_trials=60)
    assert max(values) > -0.3  # of 60 random points every fourth search does as well
    assert points[values.index(max(values))]["k"] == "b"
    later = [abs(float(p["x"]) - 3) for p in points[30:]]
    assert sum(later) / 30 < 4.0  # 5.45 is the mean of random points
    assert (tmp_path / "sweep" / "multirun.yaml").is_file()


def test_same_seed_same_points(tmp_path):
    first = sweep(tmp_path, peak, n_trials=14)[0]
    assert sweep(tmp_path, peak, n_trials=14)[0] == first
    assert sweep(tmp_path, peak, n_trials=14, seed=1)[0] != first


def test_failed_trials_do_not_end_it(tmp_path):
    def fails(point):
        return {True: None, False: math.nan}[point["k"] == "a"] if float(point["x"]) < 0 else 1.0

    values = sweep(tmp_path, fails, n_trials=20)[1]
    assert None in values
    assert 1.0 in values


def test_command_line_counts_and_batches(tmp_path):
    arguments = ["k=b", "seed=7"]
    points, _, batches = sweep(tmp_path, peak, arguments, n_trials=7, n_jobs=3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert {(p["k"], p["seed"]) for p in points} == {("b", "7")}
    assert len({p["x"] for p in points}) == 7
