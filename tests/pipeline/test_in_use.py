import os
from dataclasses import replace

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.in_use import RECORDS, in_use, run_folder, uses


def files(output):
    return sorted(p.name for p in (output / RECORDS).glob("*"))


def test_noted_while_it_lasts(tmp_path):
    with in_use(tmp_path) as note:
        assert uses(tmp_path) == []
        note({"train_cam": "a", "evaluate": "b"})
        note({"train_cam": "a", "evaluate": "c"})
        (use,) = uses(tmp_path)
        assert use.artifacts == ("train_cam/a", "evaluate/b", "evaluate/c")
        assert use.folder is None
        assert use.owner.pid == os.getpid()
        assert use.running
        assert files(tmp_path) == [use.file.name]
    assert files(tmp_path) == []


def test_nothing_noted_nothing_written(tmp_path):
    with in_use(tmp_path, tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", [True, False])
def test_stays_when_the_run_has_a_folder(tmp_path, inside):
    output = tmp_path / "out"
    folder = output / "run" if inside else tmp_path / "elsewhere"
    with in_use(output, folder) as note:
        note({"train_cam": "a"})
        assert uses(output)[0].running
    (use,) = uses(output)
    assert not use.running
    assert use.folder == folder
    output.rename(tmp_path / "moved")
    (moved,) = uses(tmp_path / "moved")
    assert moved.folder == (tmp_path / "moved" / "run" if inside else folder)


def test_a_run_that_is_done_forgets_those_that_were_not(tmp_path):
    def run(folder, key, error=None):
        with in_use(tmp_path, tmp_path / folder) as note:
            note({"train_cam": key})
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        run("x", "1", KeyboardInterrupt())
    with pytest.raises(WSSSError):
        run("x", "2", WSSSError("bad"))
    run("y", "3")
    assert {use.artifacts[0] for use in uses(tmp_path)} == {f"train_cam/{n}" for n in "123"}
    with in_use(tmp_path, tmp_path / "x") as note:
        note({"train_cam": "4"})
        run("x", "5")
        # that in progress is another's
        assert {use.artifacts[0] for use in uses(tmp_path)} == {f"train_cam/{n}" for n in "345"}
    assert {use.artifacts[0] for use in uses(tmp_path)} == {"train_cam/3", "train_cam/4"}


def test_a_process_elsewhere_may_be_running_and_one_that_ended_is_not(tmp_path):
    with in_use(tmp_path) as note:
        note({"train_cam": "a"})
        (use,) = uses(tmp_path)
        elsewhere = replace(use, owner=replace(use.owner, machine="elsewhere"))
        assert elsewhere.running
        assert elsewhere.unknown
        assert not use.unknown
        assert not replace(use, owner=replace(use.owner, pid=2**22 + 1)).running
        assert not replace(use, owner=None).running


def test_damaged_record(tmp_path):
    (tmp_path / RECORDS).mkdir()
    (tmp_path / RECORDS / "x.json").write_text("{}")
    with pytest.raises(WSSSError, match=r"x\.json cannot be read .* remove it if that run has"):
        uses(tmp_path)


def test_of_several_processes_the_first_notes(tmp_path, monkeypatch):
    monkeypatch.setattr("wsss_affinity.world.rank", lambda: 1)
    with in_use(tmp_path, tmp_path / "x") as note:
        note({"train_cam": "a"})
    assert list(tmp_path.iterdir()) == []


def test_outside_of_hydra_a_run_has_no_folder():
    assert run_folder() is None


def test_pipeline_notes_all_that_it_will_use_before_the_first_stage(tiny_config, tmp_path):
    cfg = tiny_config("pipeline.stages=[train_cam,make_cam,evaluate]")
    noted = []
    result = run_pipeline(cfg, tell=lambda _: noted.append(uses(tmp_path / "out")))
    names = {f"{name}/{stage.path.name}" for name, stage in result.stages.items()}
    assert [set(use.artifacts) for (use,) in noted] == [names] * 3
    assert files(tmp_path / "out") == []
    run_pipeline(tiny_config("pipeline.dry_run=true"), tell=pytest.fail)
    assert files(tmp_path / "out") == []
