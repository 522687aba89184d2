import pytest

from wsss_affinity.config import load_config

#: The demo on a handful of pictures and epochs: every stage, in seconds
TINY = (
    "data.num_train=6",
    "data.num_val=2",
    "data.image_size=48",
    "data.num_workers=1",
    "train_cam.max_epochs=2",
    "train_cam.batch_size=2",
    "train_cam.transform.crop_size=32",
    "cam.scales=[1.0]",
    "train_affinity.max_epochs=2",
    "train_affinity.batch_size=2",
    "train_affinity.transform.crop_size=32",
    "train_segmentation.architecture=Unet",
    "train_segmentation.encoder=resnet18",
    "train_segmentation.max_epochs=2",
    "train_segmentation.batch_size=2",
    "train_segmentation.transform.crop_size=32",
    "evaluate.sheet_images=1",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture
def tiny_config(tmp_path):
    """Composes the tiny configuration with output below the test's own folder."""

    def compose(*overrides):
        return load_config([*TINY, f"output_dir={tmp_path}/out", *overrides])

    return compose
