import pytest
from rich.console import Console

from wsss_affinity.pipeline.inventory_report import print_artifacts, print_explanation, some


@pytest.fixture
def output(tmp_path, add_artifact, add_run):
    """One classifier, used by two runs, and the walk of each."""
    epochs = {"epochs": [{"loss": 0.9}, {"loss": 0.3}], "images": 12}
    add_artifact(tmp_path, "train_cam/aaaaaaaaaa", metrics=epochs, config={"train_cam": {"lr": 1}})
    for i, beta in enumerate((4, 8)):
        name = f"random_walk/{i}bbbbbbbbb"
        add_artifact(tmp_path, name, "train_cam/aaaaaaaaaa", config={"walk": {"beta": beta}})
        artifacts = {"train_cam/aaaaaaaaaa": (i == 0, 60.0), name: (True, 2.0)}
        add_run(tmp_path / f"run{i}", [], artifacts)
    (tmp_path / "artifacts" / "make_cam" / "c.partial").mkdir(parents=True)
    return tmp_path


def rows(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]


def test_list(output, capsys):
    print_artifacts(output, Console(width=200))
    found = {row[0]: row[1:] for row in rows(capsys.readouterr().out) if row}
    assert found["make_cam/c"] == ["unfinished", "0 B", "", "", "", ""]
    walks = "random_walk/0bbbbb, random_walk/1bbbbb"
    assert found["train_cam/aaaaaaaaaa"][3:] == ["", walks, "+run0, run1"]
    assert found["random_walk/1bbbbbbbbb"][3:] == ["train_cam/aaaaaa", "", "+run1"]


def test_explanation(output, capsys):
    print_explanation(output, "1b", Console(width=200))
    printed = capsys.readouterr().out
    assert ["made from", "train_cam/aaaaaaaaaa"] in rows(printed)
    assert ["runs (+ made it)", "+run1"] in rows(printed)
    assert ["walk.beta", "8"] in rows(printed)  # its settings
    assert "The nearest is random_walk/0bbbbbbbbb." in printed
    assert ["walk.beta", "8", "4"] in rows(printed)  # here and there
    print_explanation(output, "train_cam/", Console(width=200))
    printed = capsys.readouterr().out
    assert ["loss, last epoch", "0.3"] in rows(printed)
    assert ["images", "12"] in rows(printed)
    assert "There is no other complete artefact of train_cam." in printed


def test_same_settings_say_so(output, capsys, add_artifact):
    add_artifact(output, "train_cam/other", config={"train_cam": {"lr": 1}})
    print_explanation(output, "train_cam/a", Console(width=200))
    assert "The nearest is train_cam/other. It has the same settings: images" in (
        capsys.readouterr().out
    )


def test_some():
    assert some([]) == ""
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
