"""The published method and its mended twin differ where they say so, and nowhere else."""

import pytest
from omegaconf import OmegaConf

from wsss_affinity.config import load_config
from wsss_affinity.pipeline import run_pipeline

QUIRKS = {
    # section 6 of the method: key -> (psa, psa_original)
    "train_cam.optimization.options.momentum": (0.9, 5e-4),
    "train_affinity.optimization.options.momentum": (0.9, 5e-4),
    "train_cam.optimization.lr": (0.001, 0.01),
    "train_affinity.optimization.lr": (0.001, 0.01),
    "train_affinity.border": ("full", "psa"),
    "walk.border": ("full", "psa"),
    "walk.padding": ("masked", "psa"),
    "train_affinity.transform.padding": ("mean", "black"),
    "affinity_labels.format": ("hard", "soft"),
    "evaluate.val_cam": (False, True),
    "evaluate.val_drop_last": (False, True),
    # not a quirk: what is stored, and the refinement that the code lacks
    "cam.store_stride": (4, 1),
    "cam.store_dtype": ("float16", "float32"),
    "walk.store_dtype": ("float16", "float32"),
    "walk.crf.num_iterations": (1, 0),
}
PUBLISHED = {
    "train_cam.batch_size": 16,
    "train_cam.max_epochs": 15,
    "train_cam.output_stride": 8,
    "train_cam.transform.crop_size": 448,
    "train_cam.transform.long_side": [256, 512],
    "train_cam.transform.padding": "mean",
    "train_cam.optimization.name": "sgd",
    "train_cam.optimization.weight_decay": 5e-4,
    "train_cam.optimization.head_factor": 10.0,
    "train_cam.optimization.bias_factor": 2.0,
    "train_cam.optimization.poly_power": 0.9,
    "cam.scales": [1.0, 0.5, 1.5, 2.0],
    "affinity_labels.alpha_low": 4.0,
    "affinity_labels.alpha_high": 32.0,
    "affinity_labels.crf.num_iterations": 10,
    "train_affinity.batch_size": 8,
    "train_affinity.max_epochs": 8,
    "train_affinity.transform.long_side": None,
    "train_affinity.transform.crop_size": 448,
    "train_affinity.radius": 5,
    "walk.alpha": 16.0,
    "walk.beta": 8.0,
    "walk.num_steps": 256,
}


def flat(cfg):
    found = {}

    def visit(node, prefix):
        for name, value in node.items():
            if isinstance(value, dict) and value:
                visit(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}"] = value

    visit(OmegaConf.to_container(cfg, resolve=True), "")
    return found


@pytest.fixture(scope="module")
def presets():
    overrides = ["~experiment", "data=folder", "data.root=x", "backbone=resnet50"]
    names = ("psa", "psa_original")
    return {name: flat(load_config([*overrides, f"preset={name}"])) for name in names}


def test_they_differ_in_the_named_switches_only(presets):
    mended, original = presets["psa"], presets["psa_original"]
    assert mended.keys() == original.keys()
    differing = {k: (mended[k], original[k]) for k in mended if mended[k] != original[k]}
    assert differing.keys() == QUIRKS.keys()
    for key, (ours, theirs) in QUIRKS.items():
        numbers = isinstance(ours, float)
        assert differing[key] == (pytest.approx((ours, theirs)) if numbers else (ours, theirs))


@pytest.mark.parametrize("preset", ["psa", "psa_original"])
def test_published_constants(presets, preset):
    assert {key: presets[preset][key] for key in PUBLISHED} == PUBLISHED


def test_learning_rate_follows_the_published_one():
    cfg = load_config(["~experiment", "backbone=resnet50", "preset=psa", "psa_lr=0.1"])
    assert cfg.train_cam.optimization.lr == pytest.approx(0.01)
    assert cfg.train_affinity.optimization.lr == pytest.approx(0.01)


def test_an_experiment_has_the_last_word():
    cfg = load_config(["experiment=voc12_animals_psa", "data.root=x", "preset=psa_original"])
    assert cfg.train_cam.optimization.options.momentum == 5e-4
    assert cfg.train_affinity.max_epochs == 2


@pytest.mark.parametrize(
    ("preset", "data", "tree"),
    [
        ("psa", "shapes", None),
        ("psa_original", "shapes", None),
        ("psa_original", "coco14", "coco_tree"),  # with images that have no label
        ("psa_original", "camvid", "camvid_tree"),  # and without background
    ],
)
def test_runs_on_tiny_data(preset, data, tree, shrink, tmp_path, request):
    options = ["data.num_train=4", "data.num_val=2", "data.image_size=48"]
    if tree is not None:
        options = [f"data.root={request.getfixturevalue(tree)}"]
    options += ["~experiment", f"preset={preset}", f"data={data}", f"output_dir={tmp_path}/out"]
    cfg = load_config([*options, *shrink])
    result = run_pipeline(cfg)
    assert list(result.stages) == list(cfg.pipeline.stages)
    labels = result.stages["affinity_labels"].path
    assert len(list((labels / "labels").iterdir())) == 4
    assert (labels / "soft").exists() == (preset == "psa_original")
    scored = {score["name"]: score["images"] for score in result.scores}
    assert scored.get("CAM, val") == (2 if preset == "psa_original" else None)
