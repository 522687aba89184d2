"""Photographs as they come, through all seven stages."""

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.config import load_config
from wsss_affinity.data.images import load_mask
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline

SIZES = {  # name: (mode, width, height)
    "plain.jpg": ("RGB", 40, 30),
    "grey.png": ("L", 33, 47),
    "transparent.png": ("RGBA", 40, 40),
    "print.jpg": ("CMYK", 48, 32),
    "deep.png": ("I;16", 31, 31),
    "palette.png": ("P", 32, 40),
    "speck.png": ("RGB", 3, 5),
    "poster.jpg": ("RGB", 4000, 3000),
}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,labels"]
    for i, (name, (mode, width, height)) in enumerate(SIZES.items()):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = coarse.resize((width, height))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(folder / name)
        lines.append(f"{name},{('cat', 'dog', 'cat dog', '')[i % 4]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def config(photos, tmp_path, tiny):
    options = [o for o in tiny if not o.startswith(("data.", "cam.scales"))]

    def compose(*overrides):
        return load_config(
            [
                *options,
                "experiment=folder",
                "backbone=tiny",
                "train_cam.output_stride=8",
                "train_segmentation.encoder=resnet18",
                f"data.root={photos}",
                "data.max_side=160",
                "data.num_workers=0",
                f"output_dir={tmp_path}/out",
                *overrides,
            ]
        )

    return compose


def test_every_kind_gets_a_mask_of_its_own_size(config):
    result = run_pipeline(config())
    masks = result.stages["random_walk"].path / "masks"
    for name, (_, width, height) in SIZES.items():
        mask = load_mask(masks / f"{name.rsplit('.')[0]}.png")
        assert mask.shape == (height, width), name
        assert set(np.unique(mask)) <= {0, 1, 2}
    assert (load_mask(masks / "print.png") == 0).all()  # it has no label


def test_mixed_precision_and_clipping(config):
    fits = "pipeline.stages=[train_cam,make_cam,affinity_labels,train_affinity]"
    result = run_pipeline(
        config(fits, "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1")
    )
    losses = result.stages["train_affinity"].manifest["metrics"]["epochs"]
    assert len(losses) == 2
    assert all(0 < epoch["loss"] < 10 for epoch in losses)


def test_bad_trainer_argument_is_one_sentence(config):
    with pytest.raises(WSSSError, match=r"^trainer: "):
        run_pipeline(config("trainer.precision=17-true"))


def test_row_without_image_and_image_without_row(config, photos):
    Image.new("RGB", (8, 8)).save(photos / "new.png")
    with pytest.raises(WSSSError, match=r"new.png has no row in .*labels.csv"):
        run_pipeline(config("pipeline.only=[train_cam]"))
    result = run_pipeline(config("pipeline.only=[train_cam]", "data.on_error=skip"))
    assert [p.id for p in result.skipped] == ["new"]
    (photos / "new.png").unlink()
    (photos / "plain.jpg").unlink()
    with pytest.raises(WSSSError, match=r"has a row 'plain.jpg' but .* has no such image"):
        run_pipeline(config("pipeline.only=[train_cam]"))
