import json
import tarfile
from urllib.parse import unquote

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


@pytest.fixture(scope="session")
def artefacts():
    """Content of every file of every artefact of a run by name, without what holds times."""

    def read(folder):
        content = {}
        root = folder / "artifacts"
        for path in sorted(root.rglob("*")):
            if path.is_file():
                name = path.relative_to(root).as_posix()
                content[name] = path.read_bytes()
                if path.name == "manifest.json":
                    manifest = json.loads(content[name])
                    del manifest["wall_time_s"], manifest["resumed"], manifest["attempts"]
                    content[name] = json.dumps(manifest)
                if path.name == "checksums.tsv":
                    content[name] = [line.split("\t")[:3] for line in path.read_text().splitlines()]
        return content

    return read


@pytest.fixture(scope="session")
def stored():
    """Every map and mask below a folder by its name as a file, also of those in shards."""

    def read(folder):
        content = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.suffix in (".npz", ".png"):
                content[name.as_posix()] = path.read_bytes()
            if path.suffix == ".tar":
                with tarfile.open(path) as tar:
                    for member in tar:
                        file = name.parents[1] / unquote(member.name)
                        assert file.as_posix() not in content
                        content[file.as_posix()] = tar.extractfile(member).read()
        return content

    return read
