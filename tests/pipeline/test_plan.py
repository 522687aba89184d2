import shutil

import numpy as np
import pytest
import torch

from wsss_affinity.config import load_config
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.plan import fingerprints, stage_graph
from wsss_affinity.pipeline.source import ListKeys


@pytest.fixture
def source(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"12345")
    sample = Sample("x", tmp_path / "x.jpg", (0,))
    return Source(("cat",), (sample,), score=(sample,))


def named(cfg, source, *graphs):
    return fingerprints(cfg, source, ListKeys.of(source), *graphs)


def keys(source, *overrides):
    cfg = load_config(overrides)
    return named(cfg, source, stage_graph(cfg))


def changed(one, two):
    return {name for name in one if one[name] != two.get(name)}


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("train_cam.max_epochs=3", "train_cam"),
        ("cam.flip=false", "make_cam"),
        ("affinity_labels.alpha_low=3", "affinity_labels"),
        ("train_affinity.optimization.lr=1", "train_affinity"),
        ("walk.beta=4", "random_walk"),
        ("train_segmentation.architecture=Unet", "train_segmentation"),
        ("evaluate.flip=false", "evaluate"),
    ],
)
def test_a_setting_renames_its_stage_and_all_after_it(source, override, first):
    names = list(keys(source))
    expected = set(names[names.index(first) :])
    assert changed(keys(source), keys(source, override)) == expected


@pytest.mark.parametrize(
    "override",
    ["data.num_workers=3", "trainer.devices=2", "output_dir=elsewhere", "artifacts.format=shards"],
)
def test_machine_settings_rename_nothing(source, override):
    assert keys(source, override) == keys(source)


@pytest.mark.parametrize("override", ["seed=1", "trainer.precision=bf16-mixed", "data.max_side=9"])
def test_what_training_depends_on_renames_everything(source, override):
    assert changed(keys(source), keys(source, override)) == set(keys(source))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("walk.beta=4", "walk.beta=4.0"),
        ("cam.scales=[1,2]", "cam.scales=[1.0,2.0]"),
        ("train_cam.optimization.lr=1", "train_cam.optimization.lr=1.0"),
    ],
)
def test_a_number_may_be_spelt_in_two_ways(source, one, two):
    assert keys(source, one) == keys(source, two) != keys(source)


def test_what_differs_to_the_trainer_stays_different(source):
    one, all = (keys(source, f"+trainer.limit_train_batches={n}") for n in ("1", "1.0"))
    assert changed(one, all) == set(one)


def test_a_flag_is_no_number(source):
    assert keys(source, "cam.flip=false") != keys(source, "cam.flip=0")


def test_weights_count_by_content(source, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "one.pth")
    shutil.copy(tmp_path / "one.pth", tmp_path / "two.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    one, two, other = (
        keys(source, f"backbone.weights={tmp_path}/{n}.pth") for n in ("one", "two", "other")
    )
    assert one == two
    assert changed(one, other) == set(one)
    with pytest.raises(WSSSError, match=r"none.pth cannot be read"):
        keys(source, f"backbone.weights={tmp_path}/none.pth")


def test_weights_of_a_class_may_be_no_file(source, tmp_path):
    target = ("backbone=target", "backbone._target_=my_pkg.MyNet")
    large, small = (keys(source, *target, f"backbone.weights={n}") for n in ("large", "small"))
    assert changed(large, small) == set(large)
    # an argument of that name, further in, is its own
    inner = keys(source, *target, "+backbone.inner.weights=large")
    assert inner != keys(source, *target, "+backbone.inner.weights=small")
    torch.save({"a": torch.zeros(2)}, tmp_path / "one.pth")
    shutil.copy(tmp_path / "one.pth", tmp_path / "two.pth")
    one, two = (
        keys(source, *target, f"backbone.weights={tmp_path}/{n}.pth") for n in ("one", "two")
    )
    assert one == two != large


def test_attention_counts_where_it_is_used(source):
    unused = ["walk.attention.radius=4", "walk.attention.weights=/nowhere"]
    assert keys(source, *unused) == keys(source)
    used = "walk.affinity=attention"
    assert changed(keys(source, used), keys(source, used, unused[0])) >= {"random_walk"}


def test_ready_made_maps_are_renamed_by_what_they_use(source, tmp_path):
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "x.npy", np.zeros((1, 2, 2), np.float32))
    given = f"cams_from={tmp_path}/maps"
    unused = ["cam.scales=[1]", "cam.flip=false", "cam.method=layercam", "cam.store_stride=8"]
    assert keys(source, given, *unused) == keys(source, given)
    for used in ("cam.store_dtype=float32", "+cam.height_prior={cat: [0.0, 0.2]}"):
        assert changed(keys(source, given), keys(source, given, used)) >= {"make_cam"}


def test_masks_rename_the_evaluation_alone(source, tmp_path):
    (tmp_path / "m.png").write_bytes(b"mask")
    sample = Sample("x", tmp_path / "x.jpg", (0,), mask=tmp_path / "m.png")
    masked = Source(("cat",), (sample,), score=(sample,))
    assert changed(keys(source), keys(masked)) == {"evaluate"}


def test_ground_truth_training_reads_no_pseudo_masks(source):
    cfg = load_config(
        ["train_segmentation.target=ground_truth", "pipeline.stages=[train_segmentation,evaluate]"]
    )
    assert list(named(cfg, source, stage_graph(cfg))) == ["train_segmentation", "evaluate"]


def test_ground_truth_training_depends_on_the_masks(source, tmp_path):
    (tmp_path / "m.png").write_bytes(b"mask")
    masked = Source(("cat",), (Sample("x", tmp_path / "x.jpg", (0,), mask=tmp_path / "m.png"),))
    options = ("train_segmentation.target=ground_truth",)
    assert changed(keys(source, *options), keys(masked, *options)) >= {"train_segmentation"}


def test_misspelt_target(source):
    with pytest.raises(WSSSError, match=r"train_segmentation.target is .*'ground_truth'"):
        keys(source, "train_segmentation.target=groundtruth")


def test_only_the_evaluation_depends_on_what_is_there(source):
    cfg = load_config()
    graph = stage_graph(cfg)
    whole = named(cfg, source, graph)
    assert named(cfg, source, graph, graph) == whole
    # the classifier was deleted, its maps were not
    rest = [name for name in graph if name != "train_cam"]
    assert named(cfg, source, graph, rest) == whole
    given = load_config(["evaluate.val_cam=true"])  # which needs the classifier
    assert changed(whole, named(given, source, graph)) == {"evaluate"}
    both = named(given, source, graph), named(given, source, graph, rest)
    assert changed(*both) == {"evaluate"}
    other = load_config(["evaluate.val_cam=true", "cam.scales=[1.0]"])
    alone = ["train_cam", "evaluate"]
    assert named(given, source, alone) != named(other, source, alone)
    rest.remove("train_affinity")
    assert changed(whole, named(cfg, source, graph, rest)) == {"evaluate"}
