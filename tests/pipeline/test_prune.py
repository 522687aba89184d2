import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import prune as module
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.in_use import RECORDS, in_use, uses
from wsss_affinity.pipeline.inventory import Inventory
from wsss_affinity.pipeline.lock import locked
from wsss_affinity.pipeline.prune import plan_pruning, prune, users_of_artifacts


def plan(output):
    return plan_pruning(output, Inventory.of(output))


def chosen(output):
    return [artifact.name for artifact in plan(output).delete]


def there(output):
    return set(Inventory.of(output).artifacts)


@pytest.fixture
def chain(tmp_path, add_artifact):
    """a1 → b1 → c1 and a1 → b2; what the images are."""
    for name, *inputs in (
        ("train_cam/a1",),
        ("make_cam/b1", "train_cam/a1"),
        ("make_cam/b2", "train_cam/a1"),
        ("random_walk/c1", "make_cam/b1", "train_cam/a1"),
        ("check_data/d1",),
    ):
        add_artifact(tmp_path, name, *inputs)
    return tmp_path


def test_what_no_run_refers_to_goes_dependents_first(chain):
    assert set(chosen(chain)) == there(chain) - {"check_data/d1"}
    order = {name: i for i, name in enumerate(chosen(chain))}
    assert order["random_walk/c1"] < order["make_cam/b1"] < order["train_cam/a1"]
    assert order["make_cam/b2"] < order["train_cam/a1"]
    assert prune(chain, plan(chain).delete, pytest.fail) == {}
    assert there(chain) == {"check_data/d1"}
    assert list((chain / "artifacts" / "make_cam").iterdir()) == []


def test_what_a_folder_refers_to_stays_with_its_inputs(chain, add_run):
    add_run(chain / "run", [], {"make_cam/b1": (True, 1.0)})
    assert set(chosen(chain)) == {"random_walk/c1", "make_cam/b2"}
    assert plan(chain).keep == {
        "check_data/d1": "any run may read it",
        "make_cam/b1": "used by run",
        "train_cam/a1": "make_cam/b1 was made from it",
    }
    shutil.rmtree(chain / "run")
    assert len(chosen(chain)) == 4


def test_a_folder_that_is_not_done_refers_to_what_it_was_about_to_make(chain, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (chain / "run", elsewhere):
        folder.mkdir(exist_ok=True)
        with suppress(KeyboardInterrupt), in_use(chain, folder) as note:
            note({"train_cam": "a1", "make_cam": "b1", "evaluate": "not there yet"})
            raise KeyboardInterrupt
        assert set(chosen(chain)) == {"random_walk/c1", "make_cam/b2"}
        assert len(uses(chain)) == 1
        shutil.rmtree(folder)
        assert len(chosen(chain)) == 4
        prune(chain, (), print)
        assert uses(chain) == []


def start(output, artifacts):
    """A process without a folder that uses artefacts until it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from wsss_affinity.pipeline.in_use import *\n"
        "with in_use(Path(sys.argv[1])) as note:\n"
        "    note(dict(name.split('/') for name in sys.argv[2:]))\n"
        "    print('noted', flush=True)\n"
        "    time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(output), *artifacts]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "noted\n"
    return process


def test_what_a_run_in_progress_uses_stays_until_it_is_dead(chain):
    process = start(chain, ["train_cam/a1", "make_cam/b2"])
    try:
        assert set(chosen(chain)) == {"random_walk/c1", "make_cam/b1"}
        assert plan(chain).keep["make_cam/b2"].startswith(f"used by process {process.pid} on ")
        # also what was chosen before it started
        everything = [a for a in Inventory.of(chain).artifacts.values() if a.stage != "check_data"]
        everything.sort(key=lambda a: a.name, reverse=True)  # walk, classifier, maps
        kept = prune(chain, everything, print)
        assert set(kept) == {"train_cam/a1", "make_cam/b2"}
        assert there(chain) == {"train_cam/a1", "make_cam/b2", "check_data/d1"}
    finally:
        process.kill()
        process.wait()
    assert set(chosen(chain)) == {"train_cam/a1", "make_cam/b2"}
    # it was making something: what it leaves can be gone on with
    partial = chain / "artifacts" / "make_cam" / "b2.forced.partial"
    partial.mkdir()
    assert chosen(chain) == []
    partial.rmdir()
    assert prune(chain, plan(chain).delete, print) == {}
    assert there(chain) == {"check_data/d1"}
    assert list((chain / RECORDS).iterdir()) == []


def test_process_on_another_computer_counts_as_running(chain):
    with in_use(chain) as note:
        note({"train_cam": "a1", "make_cam": "b1", "random_walk": "c1"})
        (use,) = uses(chain)
        content = json.loads(use.file.read_text())
        content["owner"] |= {"machine": "elsewhere", "pid": 2**22 + 1}
        use.file.write_text(json.dumps(content))
        assert chosen(chain) == ["make_cam/b2"]


def test_unfinished_and_locked_stay(chain):
    folder = chain / "artifacts" / "make_cam"
    (folder / "b3.partial").mkdir()
    with locked(folder / "b2.lock", "it", print):
        assert set(chosen(chain)) == {"random_walk/c1", "make_cam/b1"}
        assert plan(chain).keep["make_cam/b3"] == "unfinished"
        assert plan(chain).keep["make_cam/b2"].startswith("in the hands of process ")
        # locked since it was chosen
        assert set(prune(chain, [Inventory.of(chain).artifacts["make_cam/b2"]], print)) == {
            "make_cam/b2"
        }
    assert {"make_cam/b2", "make_cam/b3"} <= there(chain)


def test_run_that_starts_between_looking_and_deleting(chain, monkeypatch):
    """It notes what it uses while the artefact is there, which is then put back."""
    content = {p: p.read_bytes() for p in (chain / "artifacts").rglob("*") if p.is_file()}
    delete, replace = plan(chain).delete, os.replace
    runs = [in_use(chain)]

    def rename(source, target):
        if str(source).endswith("b1") and len(runs) == 1:
            runs.append(runs[0].__enter__())
            runs[1]({"train_cam": "a1", "make_cam": "b1"})
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", rename)
    kept = prune(chain, delete, pytest.fail)
    monkeypatch.undo()
    assert set(kept) == {"make_cam/b1", "train_cam/a1"}
    assert kept["make_cam/b1"].endswith("which has started meanwhile")
    assert kept["train_cam/a1"] == "make_cam/b1 was made from it"
    assert there(chain) == {"make_cam/b1", "train_cam/a1", "check_data/d1"}
    left = {p: p.read_bytes() for p in (chain / "artifacts").rglob("*") if p.is_file()}
    assert left == {p: c for p, c in content.items() if "c1" not in p.parts and "b2" not in p.parts}
    runs[0].__exit__(None, None, None)


def test_killed_while_deleting_goes_on(chain):
    path = chain / "artifacts" / "random_walk" / "c1"
    path.rename(path.with_name("c1.old"))
    assert "random_walk/c1" in chosen(chain)
    prune(chain, plan(chain).delete, print)
    assert list(path.parent.iterdir()) == []


def test_two_at_once_do_not_mind_each_other(chain):
    first, second = plan(chain).delete, plan(chain).delete
    with in_use(chain) as note:
        assert prune(chain, first[:1], print) == {}
        # who notes it now will make it again
        note({first[0].stage: first[0].key})
        assert prune(chain, second[:1], print) == {}
    assert prune(chain, second, print) == {}
    assert there(chain) == {"check_data/d1"}


def test_damaged_manifest_stops_it(chain):
    (chain / "artifacts" / "random_walk" / "c1" / "manifest.json").write_text("[]")
    with pytest.raises(WSSSError, match=r"c1/manifest\.json is damaged, so it is not known what"):
        plan(chain)


def test_users_by_artefact(chain, add_run):
    add_run(chain / "x", [], {"make_cam/b1": (True, 1.0)})
    add_run(chain / "y", [], {"make_cam/b1": (False, 1.0)})
    with in_use(chain, chain / "x") as note:
        note({"make_cam": "b1", "random_walk": "c1"})
    expected = {"make_cam/b1": ["x", "y"], "random_walk/c1": ["x"]}
    assert users_of_artifacts(chain) == expected


def test_pruned_again_and_again_during_a_run(tiny_config, tmp_path):
    """Nothing it uses goes, what an earlier run left does, and it ends as if undisturbed."""
    output = tmp_path / "out"
    stages = "pipeline.stages=[train_cam,make_cam,affinity_labels]"
    first = run_pipeline(tiny_config(stages, "seed=1", "data.seed=0"))
    shared = run_pipeline(tiny_config("pipeline.stages=[train_cam]", "data.seed=0"))
    assert all(stage.made for stage in (*first.stages.values(), *shared.stages.values()))
    gone = []

    def tell(stage):
        gone.append(chosen(output))
        assert prune(output, plan(output).delete, print) == {}

    result = run_pipeline(tiny_config(stages, "data.seed=0"), tell=tell)
    earlier = {f"{name}/{stage.path.name}" for name, stage in first.stages.items()}
    assert [set(names) for names in gone] == [earlier, set(), set()]
    assert [stage.made for stage in result.stages.values()] == [False, True, True]
    assert all(stage.path.is_dir() for stage in result.stages.values())
    # now that it has ended and has no folder, nobody refers to it
    assert len(chosen(output)) == 3
