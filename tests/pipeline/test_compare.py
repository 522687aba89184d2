import csv
import random

import pytest
from rich.console import Console

from wsss_affinity.pipeline.compare import Comparison, pareto


@pytest.fixture
def sweep(tmp_path, add_run):
    """Four walks over one classifier, one of which failed."""
    points = ((4, 0.5, 2.0), (8, 0.7, 3.0), (16, 0.6, 4.0), (-1, None, 0.0))
    for i, (beta, miou, seconds) in enumerate(points):
        options = {"config": {"walk": {"beta": beta}, "seed": 0}}
        if miou is None:
            options |= {"state": "failed", "error": "walk.beta is -1; it must be positive"}
        artifacts = {"train_cam/a": (i == 0, 60.0), f"random_walk/{i}": (True, seconds)}
        given = [f"walk.beta={beta}", "seed=0"]
        worth = ("pseudo_masks.miou", miou)
        scores = [("CAM", 0.4), ("pseudo-masks", miou)]
        add_run(tmp_path / str(i), given, artifacts, scores=scores, objective=worth, **options)
    return tmp_path


def test_table(sweep):
    rows = list(csv.DictReader(Comparison.of(sweep).csv().splitlines()))
    assert [row["run"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["walk.beta"] for row in rows] == ["4", "8", "16", "-1"]
    assert "seed" not in rows[0]
    assert [row["pseudo_masks.miou"] for row in rows] == ["0.5", "0.7", "0.6", ""]
    assert [row["cam.miou"] for row in rows] == ["0.4", "0.4", "0.4", ""]
    assert [row["seconds"] for row in rows] == ["62.0", "63.0", "64.0", ""]
    assert [row["seconds_made"] for row in rows] == ["62.0", "3.0", "4.0", ""]
    assert [row["pareto"] for row in rows] == ["True", "True", "False", ""]
    assert [row["train_cam.made"] for row in rows] == ["True", "False", "False", ""]
    assert [row["random_walk.seconds"] for row in rows] == ["2.0", "3.0", "4.0", ""]
    assert rows[3]["state"] == "failed"
    assert rows[3]["error"] == "walk.beta is -1; it must be positive"


def test_printed(sweep, capsys):
    Comparison.of(sweep).print(Console(width=150))
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    assert ["1", "8", "0.7000*", "0.4000", "1:03", "3.0 s", "done"] in lines
    assert ["2", "16", "0.6000", "0.4000", "1:04", "4.0 s", "done"] in lines
    assert ["0", "1:00", "2.0 s"] in lines
    assert ["2", "1:00 r", "4.0 s"] in lines
    assert "run 3 failed in make_cam: walk.beta is -1; it must be positive\n" in printed


def test_plot_has_a_panel_for_each_score(sweep, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    Comparison.of(sweep).plot(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes
    assert [a.get_ylabel() for a in axes] == ["pseudo_masks.miou", "cam.miou"]
    points, best = (line.get_xydata().tolist() for line in axes[0].lines)
    assert points == [[62.0, 0.5], [63.0, 0.7], [64.0, 0.6]]
    assert best == [[62.0, 0.5], [63.0, 0.7]]
    assert axes[1].lines[1].get_xydata().tolist() == [[62.0, 0.4]]


@pytest.mark.parametrize(
    ("objective", "scores", "worth"),
    [
        (("pseudo_masks.evidence", 0.1), [("CAM", 0.4)], "pseudo_masks.evidence"),
        (None, [("CAM", 0.4), ("segmentation", 0.5)], "segmentation.miou"),
        (None, [("CAM", 0.4), ("pseudo-masks", 0.5)], "pseudo_masks.miou"),
        (None, [], None),
    ],
)
def test_what_runs_are_compared_by(tmp_path, add_run, objective, scores, worth):
    add_run(tmp_path / "a", scores=scores, objective=objective)
    assert Comparison.of(tmp_path).worth == worth


def test_pareto_is_what_no_other_beats():
    rng = random.Random(0)
    points = [(rng.randrange(12), rng.randrange(12)) for _ in range(60)]

    def beaten(p):
        return any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)

    expected = [i for i, p in enumerate(points) if not beaten(p)]
    assert pareto(points) == expected
    assert 1 < len(expected) < 60
