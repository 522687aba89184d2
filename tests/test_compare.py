import builtins
import csv
import json
import shutil
import subprocess
import sys

import pytest

from wsss_affinity.compare import main
from wsss_affinity.pipeline.in_use import in_use, uses


@pytest.fixture
def output(tmp_path, add_artifact, add_run):
    """Two walks of a sweep over one classifier, each in a folder, and a third that has none."""
    sweep = tmp_path / "sweeps" / "x" / "now"
    add_artifact(tmp_path, "train_cam/a")
    for i, name in enumerate(("b", "c", "d")):
        add_artifact(tmp_path, f"random_walk/{name}", "train_cam/a", size=1000)
        if name != "d":
            artifacts = {"train_cam/a": (i == 0, 60.0), f"random_walk/{name}": (True, 2.0 + i)}
            scores = [("pseudo-masks", 0.5 + i / 10)]
            add_run(sweep / str(i), [f"walk.beta={i}"], artifacts, scores=scores)
    return tmp_path


def test_compares_a_sweep(output, capsys):
    sweep = output / "sweeps" / "x" / "now"
    main([str(sweep)])
    printed = capsys.readouterr().out
    assert "Artefacts" not in printed
    rows = list(csv.DictReader((sweep / "compare.csv").open()))
    assert [(r["walk.beta"], r["pseudo_masks.miou"]) for r in rows] == [("0", "0.5"), ("1", "0.6")]
    assert (sweep / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("given", [".", "artifacts"])
def test_of_a_root_the_artefacts_too(output, capsys, given, tmp_path_factory):
    target = tmp_path_factory.mktemp("tables")
    main([str(output / given), "--output", str(target)])
    assert "Artefacts" in capsys.readouterr().out
    rows = list(csv.DictReader((target / "compare.csv").open()))
    assert [row["run"] for row in rows] == ["sweeps/x/now/0", "sweeps/x/now/1"]
    assert not (output / "compare.csv").exists()


def test_without_matplotlib_the_rest_is_there(output, capsys, monkeypatch):
    found = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    main([str(output)])
    assert "no plot; it comes with pip install 'wsss-affinity[plots]'\n" in capsys.readouterr().out
    assert (output / "compare.csv").is_file()
    assert not (output / "compare.png").exists()


def test_prune_shows_and_deletes_with_yes_alone(output, capsys):
    folder = output / "artifacts" / "random_walk"
    size = sum(p.stat().st_size for p in (folder / "d").iterdir())
    main([str(output), "--prune"])
    printed = capsys.readouterr().out
    assert "random_walk/d" in printed
    assert "random_walk/b" not in printed
    assert f"{size / 1000:.1f} kB would be freed; --yes deletes them" in printed
    assert (folder / "d").is_dir()
    main([str(output), "--prune", "--yes"])
    assert f"{size / 1000:.1f} kB freed" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == ["b", "c"]
    main([str(output), "--prune"])
    assert "nothing to delete" in capsys.readouterr().out


def test_artefacts_of_a_sweep_are_found_above_it(output, capsys):
    sweep = output / "sweeps" / "x" / "now"
    with pytest.raises(SystemExit):  # another folder of that name may be above
        main([str(sweep), "--artifacts"])
    with in_use(output, output) as note:
        note({"train_cam": "a"})
    main([str(sweep), "--artifacts"])
    assert "train_cam/a" in capsys.readouterr().out


def test_verify(output, capsys):
    main([str(output), "--verify"])
    assert "4 artefacts checked, none is damaged" in capsys.readouterr().out
    weights = output / "artifacts" / "train_cam" / "a" / "weights.pt"
    content = bytearray(weights.read_bytes())
    content[50] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        main([str(output), "--verify"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "train_cam/a  damaged: weights.pt\n" in printed
    assert "random_walk/b  sound\n" in printed
    assert "1 of 4 are damaged" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder nowhere; give that of a sweep or of runs"),
        (["artifacts/train_cam"], "there are no runs below artifacts/train_cam"),
        (["sweeps", "--prune"], "sweeps holds no artefacts; give the output_dir of the runs"),
        ([".", "--explain", "z"], "'z' begins the name of no artefact; see --artifacts"),
    ],
)
def test_bad_input_is_one_sentence(output, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(output)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_yes_alone_is_refused(output):
    with pytest.raises(SystemExit):
        main([str(output), "--yes"])
    assert (output / "artifacts" / "random_walk" / "d").is_dir()


def test_looking_needs_no_torch(output):
    program = (
        f"import sys; from wsss_affinity.compare import main; main([{str(output)!r}]);"
        f"main([{str(output)!r}, '--prune', '--yes']); main([{str(output)!r}, '--verify']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_runs_of_the_command_line(tmp_path, capsys):
    """A sweep, one of whose points is deleted; its walk goes, and what the others use stays."""
    sizes = ["data.num_train=4", "data.num_val=2", "data.image_size=48", "data.num_workers=0"]
    fits = [
        f"train_{task}.{option}"
        for task in ("cam", "affinity")
        for option in ("max_epochs=1", "batch_size=2", "transform.crop_size=32")
    ]
    folders = [f"output_dir={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    points = ["sweep=walk_grid", "walk.num_steps=16", "walk.beta=4,8,-1"]
    command = [sys.executable, "-m", "wsss_affinity", *sizes, *fits, *folders, *points]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert [len(use.artifacts) for use in uses(tmp_path)] == [5, 5, 5]
    main([str(tmp_path / "sweep")])
    first, second, third = csv.DictReader((tmp_path / "sweep" / "compare.csv").open())
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert [row["walk.beta"] for row in (first, second, third)] == ["4", "8", "-1"]
    assert float(first["pseudo_masks.miou"]) == summary["jobs"][0]["objective"]
    assert [row["train_cam.made"] for row in (first, second)] == ["True", "False"]
    assert (third["state"], third["seconds"]) == ("failed", "")
    assert third["error"] == "walk: beta must be positive, got -1"

    metrics = json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())
    walk = metrics["stages"]["random_walk"]["artifact"].rsplit("/", 1)[1]
    shutil.rmtree(tmp_path / "sweep" / "0")
    capsys.readouterr()
    main([str(tmp_path), "--prune", "--yes"])
    assert f"random_walk/{walk}" in capsys.readouterr().out
    left = {p.parts[-3]: p.parts[-2] for p in tmp_path.glob("artifacts/*/*/manifest.json")}
    assert left.pop("random_walk") != walk
    left.pop("check_data")
    assert left == {
        name: stage["artifact"].rsplit("/", 1)[1]
        for name, stage in metrics["stages"].items()
        if name != "random_walk"
    }


def test_prune_names_the_record_of_a_process_that_cannot_be_looked_up(output, capsys):
    with in_use(output) as note:
        note({"random_walk": "d"})
        (use,) = uses(output)
        main([str(output), "--prune"])
        assert "cannot be told" not in capsys.readouterr().out
        content = json.loads(use.file.read_text())
        content["owner"]["machine"] = "elsewhere"
        use.file.write_text(json.dumps(content))
        main([str(output), "--prune"])
        printed = capsys.readouterr().out
        assert f"{use.owner} may be running, which cannot be told from here" in printed
        assert f"if it has ended remove {use.file}\n" in printed
        use.file.unlink()
        main([str(output), "--prune"])
        assert "random_walk/d" in capsys.readouterr().out
