import json

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.data.images import decode_mask
from wsss_affinity.data.soft_labels import affinity_labels_of
from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import decode_arrays
from wsss_affinity.layers import DenseCRF, add_background
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import save_weights
from wsss_affinity.pipeline.maps import LabelImage, make_cam
from wsss_affinity.pipeline.runner import write_metrics
from wsss_affinity.pipeline.scores import encode_scores, read_scores
from wsss_affinity.pipeline.source import load_source
from wsss_affinity.pipeline.storage import Records, RecordWriter
from wsss_affinity.pipeline.walk import FinishMask, make_random_walk


@pytest.fixture
def two_tone(tmp_path):
    """An image whose left half is red and right half blue, with a CAM on part of the left."""
    pixels = np.zeros((24, 32, 3), dtype=np.uint8)
    pixels[:, :16] = (200, 30, 30)
    pixels[:, 16:] = (30, 30, 200)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    return Sample("x", tmp_path / "x.png", (2,))


def stored(folder, *scores):
    """The scores as records of the image x."""
    writer = RecordWriter(folder, ".npz")
    writer.write("x", encode_scores(*scores))
    return writer.stored


def test_labels_of_an_image_follow_its_edge(two_tone, tmp_path):
    cam = torch.full((1, 24, 32), 0.02)
    cam[:, :, :10] = 0.9
    cam[:, :, 10:16] = 0.3
    cams = stored(tmp_path, torch.tensor([2]), cam, (24, 32))
    records = LabelImage(cams, False, None, 4.0, 32.0, DenseCRF())(two_tone)
    assert list(records) == ["labels"]
    labels = decode_mask(records["labels"], "")
    assert (labels[:, :15] == 3).all()
    assert (labels[:, 17:] == 0).all()


@pytest.mark.parametrize("crf", [None, DenseCRF(num_iterations=1)])
def test_mask_has_the_size_of_the_image(two_tone, tmp_path, crf):
    cam = torch.zeros(1, 3, 4)  # a grid of stride 8
    cam[:, :, :2] = 0.9
    scores = add_background(cam, alpha=1)
    finish = FinishMask(Records(tmp_path, ".npz"), None, 8, True, crf)
    data = encode_scores(torch.tensor([2]), scores, (24, 32))
    records = finish(two_tone, data)
    assert records["scores"] == data
    mask = decode_mask(records["masks"], "")
    assert mask.shape == (24, 32)
    assert (mask[:, :14] == 3).all()
    assert (mask[:, 22:] == 0).all()


def test_last_cell_reaching_outside_is_cropped(tmp_path):
    # 20 pixels in cells of 8: the third cell is half outside, and must not be squeezed in
    Image.new("RGB", (20, 8)).save(tmp_path / "x.png")
    scores = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    walked = stored(tmp_path, torch.tensor([0]), scores, (8, 20))
    sample = Sample("x", tmp_path / "x.png", (0,))
    records = FinishMask(walked, None, 8, True, None)(sample, None)
    assert list(records) == ["masks"]  # the scores are there
    # centres of the cells are at 4, 12, 20: the change is halfway between the last two
    assert decode_mask(records["masks"], "")[0].tolist() == [0] * 16 + [1] * 4


def test_soft_labels_are_kept_beside_the_hard_ones(two_tone, tmp_path):
    cam = torch.full((1, 24, 32), 0.05)  # background by the small α, object by the large one
    cams = stored(tmp_path, torch.tensor([2]), cam, (24, 32))
    records = LabelImage(cams, True, None, 4.0, 128.0, DenseCRF())(two_tone)
    arrays = decode_arrays(records["soft"], "")
    assert set(arrays) == {"low", "high"}
    low, high = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("low", "high"))
    assert low.shape == (2, 24, 32)
    torch.testing.assert_close(low.sum(0), torch.ones(24, 32), atol=2e-3, rtol=0)
    assert (low[0] > 0.5).all()
    assert (high[0] < 0.5).all()
    labels = affinity_labels_of(low, high, torch.tensor([2]))
    assert labels.tolist() == decode_mask(records["labels"], "").tolist()


def test_without_background_one_crf_and_no_background(two_tone, tmp_path):
    cam = torch.full((1, 24, 32), 0.02)
    cam[:, :, :12] = 0.9
    cams = stored(tmp_path, torch.tensor([2]), cam, (24, 32))
    records = LabelImage(cams, True, None, 4.0, None, DenseCRF())(two_tone)
    assert set(decode_arrays(records["soft"], "")) == {"low"}
    labels = decode_mask(records["labels"], "")
    assert (labels[:, :15] == 3).all()
    assert (labels[:, 17:] == 255).all()
    mask = FinishMask(cams, None, 1, False, None)(two_tone, None)["masks"]
    assert (decode_mask(mask, "") == 3).all()


NO_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def untrained(tiny_config, tmp_path):
    """Makes a context with networks of random weights, and optional further settings."""

    def make(*options, failed=None):
        cfg = tiny_config("data.num_workers=0", "walk.num_steps=4", *options)
        context = Context(cfg, load_source(cfg))
        torch.manual_seed(0)
        for stage, net in (
            ("train_cam", context.cam_net()),
            ("train_affinity", context.affinity_net()),
        ):
            save_weights(net, tmp_path / stage / "weights.pt")
        names = ("train_cam", "make_cam", "train_affinity")
        return Context(cfg, context.source, {n: tmp_path / n for n in names}, failed or {})

    return make


def test_mirror_images_go_one_by_one_where_memory_is_short(untrained, tmp_path, monkeypatch):
    context = untrained()
    assert make_cam(context, tmp_path / "make_cam") == {"images": 6, "failed": []}
    whole, sizes = CAMNet.cam, []

    def short(self, images):
        sizes.append(len(images))
        if len(images) > 1:
            raise NO_MEMORY
        return whole(self, images)

    monkeypatch.setattr(CAMNet, "cam", short)
    assert make_cam(context, tmp_path / "short") == {"images": 6, "failed": []}
    assert sizes == [2, 1, 1] * 6
    folders = [Records(tmp_path / name, ".npz") for name in ("make_cam", "short")]
    for sample in context.source.train:
        one, two = (read_scores(records, sample.id)[1] for records in folders)
        torch.testing.assert_close(one, two, atol=1e-3, rtol=0)  # stored as float16


def test_other_methods_make_maps_of_the_same_kind(untrained, tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="the extra 'cams' is not installed")
    size, found = "cam.scales=[1.0,0.5]", {}
    for method in ("cam", "gradcam", "layercam"):
        context = untrained(size, f"cam.method={method}", "cam.store_dtype=float32")
        assert make_cam(context, tmp_path / method) == {"images": 6, "failed": []}
        maps = Records(tmp_path / method, ".npz")
        found[method] = {s.id: read_scores(maps, s.id) for s in context.source.train}
    for name, (classes, scores, size) in found["cam"].items():
        for method in ("gradcam", "layercam"):
            other = found[method][name]
            assert torch.equal(other[0], classes)
            assert other[1].shape == scores.shape
            assert other[2] == size
            assert not torch.equal(other[1], scores)
        # each class has channels that speak for it
        assert found["layercam"][name][1].amax((1, 2)).min() > 0.9


def test_image_too_large_for_memory_says_what_to_do(untrained, tmp_path, monkeypatch):
    def never(self, images):
        raise NO_MEMORY

    monkeypatch.setattr(CAMNet, "cam", never)
    with pytest.raises(
        WSSSError,
        match=r"^image train_00000 failed in make_cam: it does not fit into memory with 44×47 "
        r"pixels; lower data.max_side; what is finished is kept",
    ):
        make_cam(untrained(), tmp_path / "out")


def test_walk_of_an_image_too_large_leaves_it_out(untrained, tmp_path, monkeypatch):
    before = Problem("train_00005", "make_cam: bad")
    context = untrained("data.on_error=skip", failed={"make_cam": (before,)})
    make_cam(context, tmp_path / "make_cam")
    propagate = AffinityNet.propagate

    def short(self, images, scores, **options):
        if images.sum() == target:
            raise NO_MEMORY
        return propagate(self, images, scores, **options)

    from wsss_affinity.pipeline.maps import prepare

    load = prepare(context.affinity_net(), tmp_path / "train_affinity", context)
    target = load(context.source.train[2]).sum()
    monkeypatch.setattr(AffinityNet, "propagate", short)
    made = make_random_walk(context, tmp_path / "walk")
    assert made == {
        "images": 5,
        "failed": [
            ["train_00005", "make_cam: bad"],
            [
                "train_00002",
                "random_walk: it does not fit into memory with 44×38 pixels; lower data.max_side",
            ],
        ],
    }
    for folder in ("scores", "masks"):
        names = {path.stem for path in (tmp_path / "walk" / folder).iterdir()}
        assert names == {f"train_0000{i}" for i in (0, 1, 3, 4, 5)}


def test_images_that_fail_are_left_out_of_all_that_follows(tiny_config, monkeypatch, tmp_path):
    label, finish = LabelImage.__call__, FinishMask.__call__

    def bad_label(self, sample):
        if sample.id == "train_00001":
            raise ValueError("no label")
        return label(self, sample)

    def bad_finish(self, sample, walked):
        if sample.id in ("train_00001", "train_00004"):
            raise ValueError("no mask")
        return finish(self, sample, walked)

    monkeypatch.setattr(LabelImage, "__call__", bad_label)
    monkeypatch.setattr(FinishMask, "__call__", bad_finish)
    options = (
        "data.num_workers=0",
        "walk.num_steps=4",
        "train_cam.max_epochs=1",
        "train_affinity.max_epochs=1",
        "pipeline.stages=[train_cam,make_cam,affinity_labels,train_affinity,random_walk,evaluate]",
    )
    result = run_pipeline(tiny_config(*options, "data.on_error=skip"))
    monkeypatch.undo()

    unlabelled = ("train_00001", "affinity_labels: ValueError: no label")
    unmasked = [(f"train_0000{i}", "random_walk: ValueError: no mask") for i in (1, 4)]
    failed = {n: [(p.id, p.message) for p in s.failed] for n, s in result.stages.items()}
    assert failed == {
        "train_cam": [],
        "make_cam": [],
        "affinity_labels": [unlabelled],
        "train_affinity": [],
        "random_walk": unmasked,
        "evaluate": [],
    }
    images = {n: s.manifest["metrics"]["images"] for n, s in result.stages.items()}
    assert images["affinity_labels"] == images["train_affinity"] == 5
    assert images["random_walk"] == 4
    counted = {s["name"]: (s["images"], s["missing"]) for s in result.scores}
    assert counted["CAM"] == (6, 0)
    assert counted["affinity labels"] == (5, 1)
    assert counted["pseudo-masks"] == (4, 2)
    write_metrics(result, tmp_path / "metrics.json")
    skipped = json.loads((tmp_path / "metrics.json").read_text())["skipped"]
    assert [(s["id"], s["reason"]) for s in skipped] == [unlabelled, *unmasked]

    # who did not ask for it must not get it, nor what follows from it
    with pytest.raises(
        WSSSError,
        match=r"^affinity_labels was made without images that failed \(1, e.g. train_00001 in "
        r"affinity_labels: ValueError: no label\); make it and what follows anew with "
        r"pipeline.from=affinity_labels pipeline.force=true, or go on",
    ):
        run_pipeline(tiny_config(*options))
    again = ("pipeline.from=affinity_labels", "pipeline.force=true")
    mended = run_pipeline(tiny_config(*options, *again))
    assert mended.failed == ()
    assert {n: s.made for n, s in mended.stages.items()} == {
        n: n not in ("train_cam", "make_cam") for n in mended.stages
    }
