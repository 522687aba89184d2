import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from wsss_affinity.data.images import load_mask, voc_palette
from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import encode_arrays, write_bytes
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.foreign_cams import LoadCams, read_cams
from wsss_affinity.pipeline.plan import fingerprints, stage_graph
from wsss_affinity.pipeline.scores import read_scores
from wsss_affinity.pipeline.source import ListKeys, load_source
from wsss_affinity.pipeline.storage import Records

CLASSES = ("cat", "dog", "bird")
NO_TRAINING = ("pipeline.stages=[make_cam,evaluate]", "data.num_workers=0")


def save_arrays(path, arrays):
    write_bytes(path, encode_arrays(arrays))


def stored(result, id):
    return read_scores(Records(result.stages["make_cam"].path, ".npz"), id)


@pytest.fixture
def sample(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "x.png")
    return Sample("a/x", tmp_path / "x.png", (0, 2))


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return {0: rng.random((3, 4), dtype=np.float32), 2: rng.random((3, 4), dtype=np.float32)}


def write(kind, folder, maps):
    """The maps of ``a/x`` in one of the forms that are read."""
    if kind == "names":
        save_arrays(folder / "a/x.npz", {CLASSES[k]: v for k, v in maps.items()})
    elif kind == "indices":
        save_arrays(folder / "a/x.npz", {str(k): v for k, v in maps.items()} | {"1": 0 * maps[0]})
    elif kind == "ours":
        arrays = {"classes": np.array([2, 0]), "scores": np.stack([maps[2], maps[0]])}
        save_arrays(folder / "a/x.npz", arrays | {"size": np.array([6, 8])})
    elif kind == "array":
        (folder / "a").mkdir(parents=True)
        np.save(folder / "a/x.npy", np.stack([maps[0], 0 * maps[0], maps[2]]))
    else:
        top = 65535 if kind == "png16" else 255
        for k, v in maps.items():
            (folder / "a/x").mkdir(parents=True, exist_ok=True)
            values = np.round(v * top).astype(np.uint16 if kind == "png16" else np.uint8)
            image = Image.fromarray(values)
            if kind == "palette":
                image.putpalette(voc_palette().tobytes())
            image.save(folder / "a/x" / f"{CLASSES[k]}.png")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("names", 0),
        ("indices", 0),
        ("ours", 0),
        ("array", 0),
        ("png16", 1e-5),
        ("png8", 2e-3),
        ("palette", 2e-3),
    ],
)
def test_each_form_is_read(kind, error, sample, maps, tmp_path):
    write(kind, tmp_path / "maps", maps)
    scores, size = LoadCams(tmp_path / "maps", CLASSES, None)(sample)
    assert size == (6, 8)
    expected = torch.from_numpy(np.stack([maps[0], maps[2]]))
    torch.testing.assert_close(scores, expected, atol=error, rtol=0)


def test_size_is_that_which_is_worked_on(sample, maps, tmp_path):
    write("names", tmp_path / "maps", maps)
    assert LoadCams(tmp_path / "maps", CLASSES, 4)(sample)[1] == (3, 4)


def test_no_label_no_file(sample, tmp_path):
    scores, size = LoadCams(tmp_path, CLASSES, None)(Sample("y", sample.image, ()))
    assert scores.shape == (0, 1, 1)
    assert size == (6, 8)


GOOD = np.full((3, 4), 0.5, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"cat": GOOD}, r"x.npz has no map of bird, which image a/x is .*; it holds cat;"),
        ({"cat": GOOD, "brid": GOOD}, "brid is no class; expected one of cat, dog, bird, or an"),
        ({"0": GOOD, "3": GOOD}, "3 is no class; .*index from 0 to 2 without the background"),
        ({"cat": GOOD, "bird": GOOD[None]}, r"bird has shape \(1, 3, 4\) and type float32; expect"),
        ({"cat": GOOD, "bird": GOOD[:2]}, r"maps of the sizes \[\(2, 4\), \(3, 4\)\]"),
        ({"cat": GOOD, "bird": 9 * GOOD}, r"holds values from 0 to 4.5; expected scores from 0 to"),
        ({"cat": GOOD, "bird": -GOOD}, r"holds values from -0.5 to 0.5; expected"),
        ({"cat": GOOD, "bird": GOOD * np.nan}, r"holds values from nan to nan; expected"),
        ({"cat": np.ones((8, 6)), "bird": np.ones((8, 6))}, r"of 8×6 .* of 6×8; transpose them"),
        ({"classes": np.array([0]), "scores": np.ones((2, 3, 4))}, r"\(1,\) and .* \(2, 3, 4\);"),
        (
            {"classes": np.array(0), "scores": GOOD[None]},
            r"x.npz holds classes of shape \(\) and sc",
        ),
        (
            {"classes": np.array([0]), "scores": np.array(1.0)},
            r"scores of shape \(\); expected \(n,",
        ),
        ({"classes": np.array([0, 0]), "scores": np.stack([GOOD, GOOD])}, "holds two maps of cat;"),
        ({"classes": np.array([0.0]), "scores": GOOD[None]}, r"x.npz: 0.0 is no class; expected"),
        ({"cat": GOOD, "0": 0 * GOOD}, "x.npz holds two maps of cat; keep one, by its name or its"),
        ({"cat": GOOD, "bird": GOOD.astype(str)}, r"x.npz: bird has shape .* and type <U32; expec"),
        (
            {"cat": GOOD, "bird": GOOD * 1j},
            r"bird has .* type complex64; expected a map \(h, w\) of",
        ),
        ({"cat": GOOD[:0, :0], "bird": GOOD[:0, :0]}, r"x.npz: cat has shape \(0, 0\) and type"),
    ],
)
def test_maps_that_do_not_fit(arrays, message, sample, tmp_path):
    save_arrays(tmp_path / "a/x.npz", arrays)
    with pytest.raises(WSSSError, match=message):
        LoadCams(tmp_path, CLASSES, None)(sample)


def test_files_that_cannot_be_read(sample, tmp_path):
    (tmp_path / "a").mkdir()
    load = LoadCams(tmp_path, CLASSES, None)
    with pytest.raises(WSSSError, match=r"image a/x has no maps in .*; expected <id>.npz"):
        load(sample)
    np.save(tmp_path / "a/x.npy", {0: GOOD, 2: GOOD})
    with pytest.raises(WSSSError, match=r"x.npy is pickled, as PSA and IRN .*convert_cams\(source"):
        load(sample)
    np.save(tmp_path / "a/x.npy", np.zeros((4, 3, 4)))
    with pytest.raises(WSSSError, match=r"has shape \(4, 3, 4\); expected a map for each of the 3"):
        load(sample)
    (tmp_path / "a/x.npz").write_bytes(b"PK nothing")  # has precedence
    with pytest.raises(WSSSError, match=r"x.npz cannot be read"):
        load(sample)
    Image.new("RGB", (4, 3)).save(tmp_path / "cat.png")
    with pytest.raises(WSSSError, match=r"cat.png has mode RGB; expected a greyscale or palette"):
        read_cams(tmp_path, CLASSES)


def test_text_beside_the_maps(sample, tmp_path):
    save_arrays(tmp_path / "a/x.npz", {"cat": GOOD})
    with zipfile.ZipFile(tmp_path / "a/x.npz", "a") as archive:
        archive.writestr("bird", "a map of a bird")
    with pytest.raises(
        WSSSError, match=r"x.npz: bird has shape \(\) and type \|S15; expected a map"
    ):
        LoadCams(tmp_path, CLASSES, None)(sample)


def test_two_pictures_of_one_class(tmp_path):
    for name in ("cat", "0"):
        Image.new("L", (4, 3)).save(tmp_path / f"{name}.png")
    with pytest.raises(WSSSError, match="holds two maps of cat; keep one"):
        read_cams(tmp_path, CLASSES)


@pytest.fixture
def foreign(tiny_config, tmp_path):
    """Maps that are the truth itself, for the pictures of the tiny configuration."""
    cfg = tiny_config(*NO_TRAINING)
    source = load_source(cfg)
    for item in source.train:
        mask = load_mask(item.mask)
        maps = {source.classes[k]: (mask == k + 1).astype(np.float32) for k in item.labels}
        save_arrays(tmp_path / "theirs" / f"{item.id}.npz", maps)
    return tmp_path / "theirs"


def test_their_maps_are_scored(foreign, tiny_config):
    result = run_pipeline(tiny_config(f"cams_from={foreign}", *NO_TRAINING))
    assert list(result.stages) == ["make_cam", "evaluate"]
    metrics = result.stages["make_cam"].manifest["metrics"]
    assert metrics == {"images": 6, "failed": [], "cams_from": str(foreign)}
    score = next(s for s in result.scores if s["name"] == "CAM")
    assert score["miou"] == 1
    first = result.source.train[0]
    classes, scores, size = stored(result, first.id)
    assert tuple(classes.tolist()) == first.labels
    assert tuple(scores.shape[1:]) == size
    # taken over again from where they are kept now, they are the same
    again = tiny_config(f"cams_from={result.stages['make_cam'].path}", *NO_TRAINING)
    assert next(s for s in run_pipeline(again).scores if s["name"] == "CAM")["miou"] == 1


def test_affinities_refine_their_maps(foreign, tiny_config):
    options = (
        f"cams_from={foreign}",
        "data.num_workers=0",
        "train_affinity.max_epochs=1",
        "walk.num_steps=1",
        "walk.crf.num_iterations=0",
        "pipeline.stages=[train_cam,make_cam,affinity_labels,train_affinity,random_walk,evaluate]",
    )
    result = run_pipeline(tiny_config(*options))
    assert "train_cam" not in result.stages
    assert list(result.stages)[:2] == ["make_cam", "affinity_labels"]
    by_name = {s["name"]: s["miou"] for s in result.scores}
    assert by_name["affinity labels"] > 0.8
    assert "pseudo-masks" in by_name
    with pytest.raises(WSSSError, match=r"pipeline.only: train_cam is not run with this config"):
        run_pipeline(tiny_config(*options, "pipeline.only=[train_cam]"))
    with pytest.raises(WSSSError, match="val_cam needs the classifier, which cams_from leaves out"):
        run_pipeline(tiny_config(*options, "evaluate.val_cam=true"))


def test_name_follows_the_content(foreign, tiny_config, tmp_path):
    cfg = tiny_config()
    source = load_source(cfg)
    lists = ListKeys.of(source)

    def keys(folder, **changes):
        cfg.cams_from = folder
        for name, value in changes.items():
            OmegaConf.update(cfg, name.replace("__", "."), value)
        return fingerprints(cfg, source, lists, stage_graph(cfg))

    own, one = keys(None), keys(str(foreign))
    assert [*own] == ["train_cam", *one]
    assert own.items().isdisjoint(one.items())
    shutil.copytree(foreign, tmp_path / "copy")
    copy = str(tmp_path / "copy")
    assert keys(copy) == one
    assert keys(copy, train_cam__batch_size=1) == one
    victim = tmp_path / "copy" / "train_00003.npz"
    arrays = dict(np.load(victim))
    save_arrays(victim, {name: 1 - array for name, array in arrays.items()})  # of the same size
    assert keys(copy).items().isdisjoint(one.items())
    assert keys(str(foreign)) == one
    assert keys(str(foreign), data__max_side=9).items().isdisjoint(one.items())


def test_images_without_maps(foreign, tiny_config):
    (foreign / "train_00002.npz").unlink()
    options = (f"cams_from={foreign}", *NO_TRAINING)
    with pytest.raises(
        WSSSError, match=r"1 of 6 labelled training images have no maps there, e.g. train_00002;"
    ):
        run_pipeline(tiny_config(*options, "pipeline.dry_run=true"))
    result = run_pipeline(tiny_config(*options, "data.on_error=skip"))
    assert [p.id for p in result.failed] == ["train_00002"]
    for path in foreign.iterdir():
        path.unlink()
    with pytest.raises(WSSSError, match="6 of 6 labelled training images have no maps"):
        run_pipeline(tiny_config(*options, "data.on_error=skip"))
    with pytest.raises(WSSSError, match="is no folder; give the one that holds the maps"):
        run_pipeline(tiny_config("cams_from=nowhere", *NO_TRAINING))


def test_misfit_stops_before_training(foreign, tiny_config):
    save_arrays(foreign / "train_00004.npz", {str(i): GOOD * 7 for i in range(4)})
    cfg = tiny_config(f"cams_from={foreign}", "data.num_workers=0")
    with pytest.raises(WSSSError, match=r"train_00004 failed in make_cam: .*values from 0"):
        run_pipeline(cfg)


def test_height_prior_and_dtype_hold_for_them_too(foreign, tiny_config):
    options = (f"cams_from={foreign}", *NO_TRAINING, "cam.store_dtype=float32")
    prior = "+cam.height_prior={ring: [0.0, 0.2]}"
    plain, weighed = (run_pipeline(tiny_config(*options, *more)) for more in ((), (prior,)))
    ring = plain.source.classes.index("ring")
    item = next(s for s in plain.source.train if ring in s.labels)
    one, two = (stored(r, item.id) for r in (plain, weighed))
    row = one[0].tolist().index(ring)
    height = one[1].shape[1]
    y = (torch.arange(height) + 0.5) / height
    expected = one[1][row] * torch.exp(-0.5 * (y / 0.2) ** 2)[:, None]
    torch.testing.assert_close(two[1][row], expected)
    assert all(s["location_prior"] for s in weighed.scores)
    arrays = np.load(weighed.stages["make_cam"].path / f"{item.id}.npz")
    assert arrays["scores"].dtype == np.float32
    assert json.dumps(weighed.stages["make_cam"].manifest["config"]["cam"]["height_prior"])
