import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity import world
from wsss_affinity.config import load_config
from wsss_affinity.data.images import load_mask
from wsss_affinity.errors import WSSSError
from wsss_affinity.interrupt import Interrupted
from wsss_affinity.pipeline import run_pipeline, storage
from wsss_affinity.pipeline.artifact import ArtifactStore
from wsss_affinity.pipeline.runner import artifact_path, write_metrics
from wsss_affinity.pipeline.stages import STAGES


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """One whole run, shared by the tests that only look at it or reuse it."""
    folder = tmp_path_factory.mktemp("finished")

    def compose(*overrides):
        return load_config([*tiny, f"output_dir={folder}", *overrides])

    return compose, run_pipeline(compose())


def test_all_stages_leave_their_files(finished):
    compose, result = finished
    assert list(result.stages) == list(STAGES)
    assert all(stage.made for stage in result.stages.values())
    ids = [f"train_{i:05d}" for i in range(6)]
    for stage, pattern in (
        ("make_cam", "{}.npz"),
        ("affinity_labels", "labels/{}.png"),
        ("random_walk", "scores/{}.npz"),
        ("random_walk", "masks/{}.png"),
    ):
        assert all((result.stages[stage].path / pattern.format(i)).is_file() for i in ids)
    pictures = next(Path(compose().output_dir).glob("data/*/JPEGImages"))
    for name in ids:
        mask = Image.open(result.stages["random_walk"].path / "masks" / f"{name}.png")
        assert mask.mode == "P"
        assert mask.size == Image.open(pictures / f"{name}.jpg").size
    sheet = Image.open(result.stages["evaluate"].path / "contact_sheet.png")
    assert sheet.width == 8 * (180 + 6) + 6  # eight columns


def test_scores_say_what_they_mean(finished):
    _, result = finished
    names = [score["name"] for score in result.scores]
    # another α may have been better, or not
    fixed = [name for name in names if name != "pseudo-masks, best"]
    assert fixed == ["CAM", "CAM, best", "affinity labels", "pseudo-masks", "segmentation"]
    by_name = dict(zip(names, result.scores, strict=True))
    assert by_name["CAM"]["threshold"] == 0.2
    assert not by_name["CAM"]["saw_masks"]
    assert by_name["CAM, best"]["saw_masks"]
    assert by_name["CAM, best"]["miou"] >= by_name["CAM"]["miou"]
    assert by_name["segmentation"]["split"] == "val"
    assert not by_name["segmentation"]["labels_given"]
    for score in result.scores:
        assert score["miou"] == pytest.approx(np.mean(list(score["iou"].values())), abs=1e-4)


def test_a_result_gives_what_was_made(finished):
    _, result = finished
    first = result.source.train[0]
    assert np.array_equal(
        result.mask(first.id),
        load_mask(result.stages["random_walk"].path / "masks" / f"{first.id}.png"),
    )
    cams = result.cam(first.id)
    assert list(cams) == [result.source.classes[k] for k in first.labels]
    grid = tuple(-(-side // 2) for side in result.mask(first.id).shape)  # cam.store_stride
    assert {tuple(cam.shape) for cam in cams.values()} == {grid}
    assert all(0 <= cam.min() <= cam.max() <= 1 for cam in cams.values())
    assert result.score("pseudo-masks") in result.scores
    assert 0 < result.score("pseudo-masks")["miou"] < 1
    net = result.segmentation_net()
    assert net(torch.zeros(1, 3, 32, 32)).shape[:2] == (1, 5)
    assert not net.training
    with pytest.raises(WSSSError, match=r"no score 'pseudo-mask'; did you mean 'pseudo-masks'"):
        result.score("pseudo-mask")
    with pytest.raises(WSSSError, match=r"nobody.png does not exist; give the id of a train"):
        result.mask("nobody")


def test_an_empty_result_says_so(tiny_config):
    result = run_pipeline(tiny_config("pipeline.dry_run=true"))
    for ask in (lambda: result.mask("x"), lambda: result.cam("x"), result.segmentation_net):
        with pytest.raises(WSSSError, match=r"was neither run nor reused; add it to pipeline.stag"):
            ask()
    with pytest.raises(WSSSError, match="evaluate found no masks to score"):
        result.score("CAM")


def test_pseudo_mask_score_is_that_of_the_files(finished):
    _, result = finished
    masks = result.stages["random_walk"].path / "masks"
    truth = next(masks.parents[3].glob("data/*/SegmentationClass"))
    hits, union = np.zeros(5), np.zeros(5)
    for path in masks.iterdir():
        prediction, target = load_mask(path), load_mask(truth / path.name)
        sure = target != 255
        for label in range(5):
            p, t = (prediction == label) & sure, (target == label) & sure
            hits[label] += (p & t).sum()
            union[label] += (p | t).sum()
    score = next(s for s in result.scores if s["name"] == "pseudo-masks")
    assert score["miou"] == pytest.approx((hits / union)[union > 0].mean(), abs=1e-4)


def test_second_run_reuses_everything(finished):
    compose, first = finished
    again = run_pipeline(compose())
    assert not any(stage.made for stage in again.stages.values())
    assert {n: s.path for n, s in again.stages.items()} == {
        n: s.path for n, s in first.stages.items()
    }


def test_shards_give_what_files_give_and_are_read_by_a_run_in_files(
    finished, tiny, stored, tmp_path, monkeypatch
):
    _, in_files = finished
    monkeypatch.setattr(storage, "SHARD_RECORDS", 4)
    options = [*tiny, f"output_dir={tmp_path}"]
    result = run_pipeline(load_config([*options, "artifacts.format=shards"]))
    assert all(stage.made for stage in result.stages.values())
    assert (result.scores, result.sweeps) == (in_files.scores, in_files.sweeps)
    for name, stage in result.stages.items():
        assert stage.path.name == in_files.stages[name].path.name
        assert stored(stage.path) == stored(in_files.stages[name].path)
    masks = result.stages["random_walk"].path / "masks"
    assert [p.name for p in masks.iterdir()] == ["shards"]
    assert len(list(masks.rglob("*.tar"))) == 2

    readers = "[train_affinity,train_segmentation,evaluate]"
    again = run_pipeline(load_config([*options, f"pipeline.force={readers}"]))
    assert sum(stage.made for stage in again.stages.values()) == 3
    assert again.scores == result.scores
    assert len(list((again.stages["evaluate"].path / "predictions").iterdir())) == 2


def test_files_are_read_by_a_run_in_shards(finished):
    compose, _ = finished
    stages = "[train_cam,make_cam,affinity_labels,train_affinity,random_walk,evaluate]"
    options = f"pipeline.stages={stages}", "affinity_labels.format=soft", "evaluate.val_cam=true"
    result = run_pipeline(compose(*options, "artifacts.format=shards"))
    made = [name for name, stage in result.stages.items() if stage.made]
    assert made == ["affinity_labels", "train_affinity", "random_walk", "evaluate"]
    folders = {p.parent.parent.name for n in made for p in result.stages[n].path.rglob("*.tar")}
    assert folders == {"labels", "soft", "scores", "masks", "val_cams"}
    assert not list(result.stages["random_walk"].path.rglob("*.png"))
    assert {"CAM, val", "pseudo-masks"} <= {score["name"] for score in result.scores}


def test_machine_settings_do_not_name_artefacts(finished):
    compose, first = finished
    cfg = compose("data.num_workers=0", "+trainer.strategy=auto", "trainer.devices=1")
    assert artifact_path(cfg, "evaluate") == first.stages["evaluate"].path


def test_other_walk_keeps_the_networks(finished):
    compose, first = finished
    cfg = compose("walk.beta=4", "walk.num_steps=16", "pipeline.only=[random_walk,evaluate]")
    other = run_pipeline(cfg)
    made = {name for name, stage in other.stages.items() if stage.made}
    assert made == {"random_walk", "evaluate"}
    assert other.stages["train_affinity"].path == first.stages["train_affinity"].path
    assert other.stages["random_walk"].path != first.stages["random_walk"].path
    assert "segmentation" not in [score["name"] for score in other.scores]


def test_dry_run_tells_and_does_nothing(finished, capsys):
    compose, _ = finished
    result = run_pipeline(compose("pipeline.dry_run=true", "walk.beta=3"))
    assert result.stages == {}
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["train_affinity"].endswith("reuse")
    assert lines["random_walk"].endswith("run")
    assert not artifact_path(compose("walk.beta=3"), "random_walk").exists()


def test_dry_run_refuses_what_a_run_would(tiny_config):
    with pytest.raises(WSSSError, match="walk: beta must be positive"):
        run_pipeline(tiny_config("pipeline.dry_run=true", "walk.beta=0"))


def test_from_and_force(finished):
    compose, _ = finished
    forced = run_pipeline(compose("pipeline.force=[affinity_labels]"))
    assert [n for n, s in forced.stages.items() if s.made] == ["affinity_labels"]
    started = run_pipeline(compose("pipeline.from=random_walk"))
    assert not any(s.made for s in started.stages.values())
    assert list(started.stages) == list(STAGES)


def test_only_with_missing_input_says_so(tiny_config):
    with pytest.raises(WSSSError, match=r"train_cam has not been run.*make_cam reads it"):
        run_pipeline(tiny_config("pipeline.only=[make_cam]"))


@pytest.mark.parametrize("key", ["only", "from", "force", "stages"])
def test_unknown_stage_name(tiny_config, key):
    with pytest.raises(WSSSError, match=rf"pipeline.{key}: 'make_cams' is no stage.*'make_cam'"):
        run_pipeline(tiny_config(f"pipeline.{key}=[make_cams]"))


def test_stage_without_its_input_in_the_graph(tiny_config):
    with pytest.raises(WSSSError, match="random_walk reads make_cam, which is not among them"):
        run_pipeline(tiny_config("pipeline.stages=[random_walk]"))


def test_corrupt_image_stops_before_training(tiny_config):
    cfg = tiny_config()
    run_pipeline(tiny_config("pipeline.dry_run=true"))  # writes the pictures
    victim = next(Path(cfg.output_dir).rglob("train_00002.jpg"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WSSSError, match=r"train_00002.jpg cannot be read.*data.on_error=skip"):
        run_pipeline(cfg)
    assert not (Path(cfg.output_dir) / "artifacts" / "train_cam").exists()

    skipped = run_pipeline(tiny_config("data.on_error=skip", "pipeline.only=[train_cam,make_cam]"))
    assert [p.id for p in skipped.skipped] == ["train_00002"]
    assert len(list(skipped.stages["make_cam"].path.glob("*.npz"))) == 5

    victim.write_bytes(whole)
    mended = run_pipeline(tiny_config("pipeline.only=[train_cam]"))
    assert mended.skipped == ()


def test_image_without_label_counts_as_background(tiny_config, caplog):
    cfg = tiny_config("data.classes=[ring]", "pipeline.only=[train_cam,make_cam]")
    result = run_pipeline(cfg)
    assert "training images have no label of these classes" in caplog.text
    counts = [len(np.load(p)["classes"]) for p in result.stages["make_cam"].path.glob("*.npz")]
    assert set(counts) == {0, 1}


def test_read_only_output_keeps_earlier_artefacts(finished, monkeypatch):
    compose, _ = finished

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(WSSSError, match=r"cannot write .*: it is read-only; choose a writable"):
        run_pipeline(compose("walk.beta=2", "data.num_workers=0"))
    monkeypatch.undo()
    assert not any(stage.made for stage in run_pipeline(compose()).stages.values())


def test_full_disk_then_resume(finished, monkeypatch):
    compose, _ = finished
    real, written = os.replace, []

    def fill_up(source, target):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(str(target))
        real(source, target)

    cfg = compose("walk.beta=5", "data.num_workers=0", "pipeline.only=[random_walk]")
    monkeypatch.setattr("os.replace", fill_up)
    with pytest.raises(WSSSError, match=r"the disk is full; free some space and run the same"):
        run_pipeline(cfg)
    monkeypatch.undo()
    folder = artifact_path(cfg, "random_walk")
    partial = folder.with_name(f"{folder.name}.partial")
    kept = {str(path) for path in partial.rglob("*") if path.is_file()}
    assert kept == {path for path in written if path.startswith(str(partial))}
    assert list((partial / "scores").glob("*.npz"))
    result = run_pipeline(cfg)
    assert result.stages["random_walk"].manifest["resumed"]
    shutil.rmtree(folder)


def test_of_several_processes_one_asks_the_disk(finished, monkeypatch):
    compose, first = finished
    told = []
    monkeypatch.setattr(world, "broadcast", lambda value: (told.append(value), value)[1])
    run_pipeline(compose())
    answers = iter(told)
    monkeypatch.setattr(world, "rank", lambda: 1)
    monkeypatch.setattr(world, "broadcast", lambda _: next(answers))
    for name in ("has", "manifest"):
        monkeypatch.setattr(ArtifactStore, name, pytest.fail)
    second = run_pipeline(compose())
    assert list(second.stages) == list(STAGES)
    assert second.scores == first.scores
    assert list(answers) == []


def test_all_processes_stop_before_a_stage_if_one_is_told_to(tiny_config, monkeypatch):
    monkeypatch.setattr(world, "either", lambda *flags: (True,) * len(flags))
    with pytest.raises(Interrupted):
        run_pipeline(tiny_config(), tell=pytest.fail)


def test_metrics_file(finished, tmp_path):
    _, result = finished
    write_metrics(result, tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [s["name"] for s in content["scores"]] == [s["name"] for s in result.scores]
    assert content["stages"]["train_cam"]["images"] == 12  # two epochs of six
    assert content["skipped"] == []


def test_same_seed_same_masks(finished, tiny_config):
    _, first = finished
    second = run_pipeline(tiny_config("data.num_workers=0"))
    for name in ("random_walk", "train_segmentation"):
        one, two = first.stages[name].path, second.stages[name].path
        for path in one.rglob("*.*"):
            if path.suffix in (".png", ".pt", ".npz"):
                assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_unknown_key_of_a_data_set_is_one_sentence(tiny_config):
    with pytest.raises(WSSSError, match=r"^data: .*unexpected keyword argument 'colour'"):
        run_pipeline(tiny_config("+data.colour=red"))
