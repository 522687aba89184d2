from collections import Counter
from pathlib import Path

from wsss_affinity import world
from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.pipeline import artifact, run_pipeline
from wsss_affinity.pipeline.source import ListKeys


def test_images_in_both_splits_are_pointed_out(tiny_config, caplog):
    cfg = tiny_config("pipeline.dry_run=true")
    run_pipeline(cfg)
    caplog.clear()
    lists = next(Path(cfg.output_dir).rglob("train.txt")).parent
    (lists / "val.txt").write_text("val_00000\ntrain_00001\n")
    run_pipeline(cfg)
    assert "1 images are in the training and the validation split" in caplog.text


def test_each_file_is_asked_for_its_size_once_a_run(tiny_config, monkeypatch):
    asked, size = Counter(), artifact._size
    monkeypatch.setattr(artifact, "_size", lambda path: (asked.update([path]), size(path))[1])
    run_pipeline(tiny_config("pipeline.dry_run=true"))
    assert len(asked) == 16  # images and masks of six and two
    assert set(asked.values()) == {1}


def test_one_of_several_processes_asks_for_all(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_bytes(b"12345")
    source = Source(("cat",), (Sample("x", tmp_path / "x.jpg", (0,)),))
    found = ListKeys.of(source)
    assert found.train == found.train_masks != found.score == found.val == found.test
    (tmp_path / "x.jpg").unlink()
    monkeypatch.setattr(world, "rank", lambda: 1)
    monkeypatch.setattr(world, "broadcast", lambda _: (found, None))
    assert ListKeys.of(source) == found


def test_broken_images_alone_are_looked_at_again(tiny_config, monkeypatch):
    cfg = tiny_config("pipeline.dry_run=true", "data.on_error=skip", "data.num_workers=0")
    run_pipeline(cfg)  # writes the pictures
    victim = next(Path(cfg.output_dir).rglob("train_00002.jpg"))
    whole = victim.read_bytes()
    victim.write_bytes(bytes(len(whole) + 1))
    looked, look = [], SampleChecker.__call__
    monkeypatch.setattr(
        SampleChecker, "__call__", lambda self, s: (looked.append(s.id), look(self, s))[1]
    )
    first = run_pipeline(cfg)
    assert len(looked) == 8
    assert [problem.id for problem in first.skipped] == ["train_00002"]
    looked.clear()
    assert run_pipeline(cfg).skipped == first.skipped
    assert looked == ["train_00002"]
    looked.clear()
    victim.write_bytes(whole + b"\0")  # of the same size: the list keeps its name
    assert run_pipeline(cfg).skipped == ()
    assert looked[0] == "train_00002"
    assert len(looked) == 1 + 8
