from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.config import load_config
from wsss_affinity.data.images import load_mask, save_mask
from wsss_affinity.data.source import Sample, Source, plain_mask_values
from wsss_affinity.files import write_bytes
from wsss_affinity.layers import DenseCRF, add_background
from wsss_affinity.metrics import Tally, class_iou
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.scores import decode_scores, encode_scores, resize_scores
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.sweep import CountCam, CountWalk, score_cam, score_walk
from wsss_affinity.pipeline.walk import FinishMask

CLASSES = ("cat", "dog", "cow")
PRESENT = ((0, 2), (1,), ())


@pytest.fixture
def data(tmp_path):
    """Three images of odd sizes with random masks; the last one has no object."""
    rng = np.random.default_rng(0)
    samples = []
    for index, labels in enumerate(PRESENT):
        height, width = 21 + index, 30 - 3 * index
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(tmp_path / f"{index}.png")
        mask = rng.choice([0, *(c + 1 for c in labels), 255], (height, width)).astype(np.uint8)
        save_mask(tmp_path / "truth" / f"{index}.png", mask)
        paths = tmp_path / f"{index}.png", tmp_path / "truth" / f"{index}.png"
        samples.append(Sample(str(index), paths[0], labels, paths[1]))
    return Source(
        classes=CLASSES,
        train=tuple(samples),
        score=tuple(samples),
        mask_values=plain_mask_values(3),
        split_names={"train": "train_aug", "score": "train"},
    )


def save_scores(path, *content, **options):
    write_bytes(path, encode_scores(*content, **options))


def read_scores(path):
    return decode_scores(path.read_bytes(), path)


def context(source, inputs, *options):
    return Context(load_config(["data.num_workers=0", *options]), source, inputs)


def write_cams(folder, source, seed=0, stride=4):
    generator = torch.Generator().manual_seed(seed)
    for sample in source.score:
        width, height = Image.open(sample.image).size
        grid = -(-height // stride), -(-width // stride)
        cam = torch.rand(len(sample.labels), *grid, generator=generator) ** 2
        classes = torch.tensor(sample.labels, dtype=torch.int64)
        save_scores(folder / f"{sample.id}.npz", classes, cam, (height, width))
    return folder


def count(predictions, source):
    """Confusion matrix of label maps by id, with loops."""
    matrix = np.zeros((len(source.classes) + 1,) * 2, dtype=np.int64)
    for sample in source.score:
        for t, p in zip(load_mask(sample.mask).flat, predictions[sample.id].flat, strict=True):
            if t != 255 and p != 255:
                matrix[t, p] += 1
    return matrix


def miou(matrix):
    return round(float(np.nanmean(class_iou(matrix))), 4)


def cam_labels(folder, source, is_object):
    """Label maps from the definition: the best class where ``is_object(its score)``."""
    maps = {}
    for sample in source.score:
        classes, cam, size = read_scores(folder / f"{sample.id}.npz")
        maps[sample.id] = np.zeros(size, dtype=np.uint8)
        if len(classes):
            score, best = resize_scores(cam, size).max(0)
            maps[sample.id] = np.where(is_object(score).numpy(), classes[best].numpy() + 1, 0)
    return maps


def test_cam_sweeps_equal_direct_computation(data, tmp_path):
    cams = write_cams(tmp_path / "cams", data)
    options = "evaluate.cam_threshold=0.123", "evaluate.cam_alphas=[1.0,2.5,30]", "walk.alpha=6"
    scores, sweeps = score_cam(context(data, {"make_cam": cams}, *options))

    rows = sweeps["CAM, alpha"]
    assert [row["alpha"] for row in rows] == [1.0, 2.5, 6.0, 30.0]
    assert [row["default"] for row in rows] == [False, False, True, False]
    for row in rows:
        alpha = row["alpha"]
        direct = count(cam_labels(cams, data, lambda s, a=alpha: (1 - s) ** a < s), data)
        assert row["miou"] == miou(direct)
    assert len({row["miou"] for row in rows}) == 4

    rows = sweeps["CAM, threshold"]
    assert len(rows) == 100  # 0.01 to 0.99 and 0.123
    assert [row["threshold"] for row in rows if row["default"]] == [0.123]
    for row in rows[::9]:
        direct = count(cam_labels(cams, data, lambda s, t=row["threshold"]: s > t), data)
        assert row["miou"] == miou(direct)

    fixed, best = scores
    assert (fixed.name, fixed.threshold, fixed.saw_masks) == ("CAM", 0.123, False)
    assert fixed.chosen_on is None
    direct = count(cam_labels(cams, data, lambda s: s > 0.123), data)
    assert fixed.confusion == direct.tolist()
    assert fixed.interval[0] <= fixed.miou <= fixed.interval[1]
    assert (best.name, best.saw_masks, best.chosen_on) == ("CAM, best", True, "train")
    assert best.miou == max(row["miou"] for row in rows)
    direct = count(cam_labels(cams, data, lambda s: s > best.threshold), data)
    assert best.confusion == direct.tolist()


def test_alpha_counts_are_exact_for_each_image(data, tmp_path):
    """Not only their sum, and not only rounded: pixels whose two scores are equal included."""
    size = (21, 30)
    even = torch.full((2, *size), 0.5)  # (1 - 0.5)^1 = 0.5: background wins
    even[0, :, 10:] = 0.75
    even[1, :, 20:] = 0.875
    save_scores(tmp_path / "0.npz", torch.tensor([0, 2]), even, size)
    work = CountCam(data, Records(tmp_path, ".npz"), (0.5,), (1.0, 2.0))
    by_threshold, by_alpha = work(data.score[0])
    target = load_mask(data.score[0].mask)
    expected = np.zeros(size, dtype=np.uint8)
    expected[:, 10:20], expected[:, 20:] = 1, 3
    tally = Tally(4, 2)
    tally.add(by_alpha)
    source = replace(data, score=data.score[:1])
    np.testing.assert_array_equal(tally.confusion[0], count({"0": expected}, source))
    expected[:, :10] = 1  # 0.25 < 0.5
    np.testing.assert_array_equal(tally.confusion[1], count({"0": expected}, source))
    assert by_threshold.known == (target != 255).sum()


def write_walk(folder, source, alphas, seed=0, stride=8):
    """Random positive maps as if they had been walked, with a background for each α."""
    generator = torch.Generator().manual_seed(seed)
    for sample in source.score:
        width, height = Image.open(sample.image).size
        grid = -(-height // stride), -(-width // stride)
        maps = torch.rand(len(sample.labels), *grid, generator=generator)
        others = [torch.rand(1, *grid, generator=generator) for _ in range(len(alphas) + 1)]
        first, rest = (others[0], torch.cat(others[1:])) if source.background else (maps[:0], None)
        classes = torch.tensor(sample.labels, dtype=torch.int64)
        path = folder / "scores" / f"{sample.id}.npz"
        scores = torch.cat([first, maps])
        save_scores(path, classes, scores, (height, width), backgrounds=rest)
    return folder


def records(walk):
    return Records(walk / "masks", ".png"), Records(walk / "scores", ".npz")


def stage_masks(folder, source, scores, crf):
    """What the stage makes of stored scores."""
    work = FinishMask(Records(scores, ".npz"), None, 8, source.background, crf)
    for sample in source.score:
        write_bytes(folder / f"{sample.id}.png", work(sample, None)["masks"])
    return {sample.id: load_mask(folder / f"{sample.id}.png") for sample in source.score}


def test_each_setting_is_what_the_stage_would_have_made(data, tmp_path):
    alphas = [4.0, 8.0, 16.0]
    walk = write_walk(tmp_path / "walk", data, alphas)
    options = {"bilateral_sxy": 20.0, "gaussian_compat": 1.0}
    expected = {}
    for place in (None, 0, 2):
        scores = tmp_path / f"scores_{place}"
        for sample in data.score:
            path = walk / "scores" / f"{sample.id}.npz"
            classes, maps, size = read_scores(path)
            if place is not None:
                stored = torch.from_numpy(np.load(path)["backgrounds"].astype(np.float32))
                maps[0] = stored[place]
            save_scores(scores / path.name, classes, maps, size)
        for n in (0, 1, 4):
            crf = DenseCRF(num_iterations=n, **options) if n else None
            folder = tmp_path / f"masks_{place}_{n}"
            expected[place, n] = stage_masks(folder, data, scores, crf)
    settings = ((None, 1), *(key for key in expected if key != (None, 1)))
    work = CountWalk(data, *records(walk), None, 8, DenseCRF(**options), settings)
    different = set()
    for sample in data.score:
        found = work.other_masks(sample)
        assert len(found) == 8
        for setting, mask in zip(settings[1:], found, strict=True):
            np.testing.assert_array_equal(mask, expected[setting][sample.id])
            different.add(mask.tobytes())
    assert len(different) >= 10  # of 17: the image without an object is background in all


def test_walk_sweep_reads_the_masks_of_the_stage_and_tells_of_better_ones(data, tmp_path):
    walk = write_walk(tmp_path / "walk", data, [4.0, 16.0])
    rng = np.random.default_rng(1)
    masks = {s.id: rng.integers(0, 4, load_mask(s.mask).shape, dtype=np.uint8) for s in data.score}
    for name, mask in masks.items():
        save_mask(walk / "masks" / f"{name}.png", mask)
    options = "walk.alpha_sweep=[4,16]", "walk.alpha=16", "evaluate.crf_iterations=[0,3]"
    scores, sweeps = score_walk(context(data, {"random_walk": walk}, *options))
    assert scores[0].confusion == count(masks, data).tolist()
    assert (scores[0].name, scores[0].alpha, scores[0].crf_iterations) == ("pseudo-masks", 16, 1)
    rows = sweeps["pseudo-masks"]
    found = {(row["alpha"], row["crf_iterations"]) for row in rows}
    assert found == {(a, n) for a in (4.0, 16.0) for n in (0, 1, 3)}
    assert [row["default"] for row in rows] == [True] + [False] * 5
    assert rows[0]["miou"] == scores[0].miou
    best = max(rows, key=lambda row: row["miou"])
    assert not best["default"]  # random masks are not hard to beat
    assert scores[1].name == "pseudo-masks, best"
    assert scores[1].miou == best["miou"]
    assert (scores[1].alpha, scores[1].crf_iterations) == (best["alpha"], best["crf_iterations"])
    assert scores[1].crf == (best["crf_iterations"] > 0)
    assert (scores[1].saw_masks, scores[1].chosen_on) == (True, "train")


@pytest.fixture
def crafted(tmp_path):
    """Noise of 0.15 and an object of 0.25: α 16 takes both for objects, 4 neither, 8 is right."""
    truth = np.zeros((16, 16), dtype=np.uint8)
    truth[:, 8:] = 1
    cam = torch.full((1, 16, 16), 0.15)
    cam[:, :, 8:] = 0.25
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    save_mask(tmp_path / "truth.png", truth)
    sample = Sample("x", tmp_path / "x.png", (0,), tmp_path / "truth.png")
    source = Source(("cat",), (sample,), (sample,), mask_values=plain_mask_values(1))
    one = torch.tensor([0])
    save_scores(tmp_path / "cams" / "x.npz", one, cam, (16, 16))
    backgrounds = torch.cat([add_background(cam, alpha)[:1] for alpha in (4.0, 8.0, 16.0)])
    scores = tmp_path / "walk" / "scores"

    def walked(alpha):
        maps = add_background(cam, alpha)
        save_scores(scores / "x.npz", one, maps, (16, 16), backgrounds=backgrounds)
        mask = FinishMask(Records(scores, ".npz"), None, 1, True, None)(sample, None)["masks"]
        write_bytes(tmp_path / "walk" / "masks" / "x.png", mask)
        inputs = {"make_cam": tmp_path / "cams", "random_walk": tmp_path / "walk"}
        fixed = "train_affinity.output_stride=1", "walk.crf.num_iterations=0"
        return context(source, inputs, *fixed, f"walk.alpha={alpha}")

    return walked


def test_best_alpha_differs_from_the_default(crafted):
    run = crafted(16.0)
    (default, best), sweeps = score_walk(run)
    assert (default.alpha, default.saw_masks, default.miou) == (16.0, False, 0.25)
    assert (best.name, best.alpha, best.saw_masks) == ("pseudo-masks, best", 8.0, True)
    assert (best.miou, best.crf, best.chosen_on) == (1.0, False, "score")
    found = {row["alpha"]: (row["miou"], row["default"]) for row in sweeps["pseudo-masks"]}
    assert found == {16.0: (0.25, True), 4.0: (0.25, False), 8.0: (1.0, False)}
    (fixed, _), sweeps = score_cam(run)
    found = {row["alpha"]: row["miou"] for row in sweeps["CAM, alpha"]}
    assert found == {1.0: 0.25, 2.0: 0.25, 4.0: 0.25, 8.0: 1.0, 16.0: 0.25, 32.0: 0.25}
    assert (fixed.threshold, fixed.miou) == (0.2, 1.0)


def test_no_line_where_nothing_is_better(crafted):
    scores, sweeps = score_walk(crafted(8.0))
    assert [(s.name, s.miou, s.saw_masks) for s in scores] == [("pseudo-masks", 1.0, False)]
    assert len(sweeps["pseudo-masks"]) == 3


def test_without_background(data, tmp_path):
    source = replace(data, background=False, labels_from_masks=True)
    cams = write_cams(tmp_path / "cams", source)
    walk = write_walk(tmp_path / "walk", source, [])
    masks = stage_masks(walk / "masks", source, walk / "scores", None)
    inputs = {"make_cam": cams, "random_walk": walk}
    run = context(source, inputs, "walk.crf.num_iterations=0", "evaluate.crf_iterations=[2]")

    (line,), sweeps = score_cam(run)
    assert (line.name, line.threshold, line.saw_masks, sweeps) == ("CAM", None, False, {})
    best = cam_labels(cams, source, lambda s: s > -1)
    best["2"] = np.full_like(load_mask(source.score[2].mask), 255)  # no class, no label
    assert line.confusion == count(best, source).tolist()
    assert line.labels_from_masks
    assert 0 < line.coverage < 1

    scores, sweeps = score_walk(run)
    assert scores[0].confusion == count(masks, source).tolist()
    assert scores[0].alpha is None
    refined = stage_masks(tmp_path / "refined", source, walk / "scores", DenseCRF(num_iterations=2))
    assert [(row["alpha"], row["crf_iterations"]) for row in sweeps["pseudo-masks"]] == [
        (None, 0),
        (None, 2),
    ]
    assert sweeps["pseudo-masks"][1]["miou"] == miou(count(refined, source))
    assert np.concatenate([r.ravel() for r in refined.values()]).max() == 255


def test_long_images_are_refined_at_the_size_they_were_walked_at(tmp_path):
    rng = np.random.default_rng(2)
    pixels = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")  # 72×48, worked on as 36×24
    save_mask(tmp_path / "truth.png", rng.integers(0, 2, (48, 72), dtype=np.uint8))
    sample = Sample("x", tmp_path / "x.png", (0,), tmp_path / "truth.png")
    source = Source(("cat",), (sample,), (sample,), mask_values=plain_mask_values(1))
    path = tmp_path / "scores" / "x.npz"
    maps = torch.rand(3, 3, 5)
    save_scores(path, torch.tensor([0]), maps[:2], (24, 36), backgrounds=maps[2:])
    crf = DenseCRF(num_iterations=2)
    mask = FinishMask(records(tmp_path)[1], 36, 8, True, crf)(sample, None)["masks"]
    write_bytes(tmp_path / "masks" / "x.png", mask)
    made = load_mask(tmp_path / "masks" / "x.png")
    work = CountWalk(source, *records(tmp_path), 36, 8, DenseCRF(), ((None, 0), (None, 2)))
    (counts,) = work(sample)
    tally = Tally(2, 2)
    tally.add(counts)
    np.testing.assert_array_equal(tally.confusion[1], count({"x": made}, source))
    assert 0 < (made == 1).mean() < 1
