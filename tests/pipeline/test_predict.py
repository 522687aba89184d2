import json

import pytest
from PIL import Image

from wsss_affinity.config import load_config
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.fit import WEIGHTS, save_weights
from wsss_affinity.pipeline.predict import predict
from wsss_affinity.pipeline.train import NETWORK


@pytest.fixture
def network(tmp_path):
    return make_network(tmp_path / "network", bias=9.0)


def make_network(folder, bias):
    folder.mkdir()
    net = SegmentationNet(2, architecture="Unet", encoder="resnet18")
    net.network.segmentation_head[0].bias.data[1] = bias
    save_weights(net, folder / WEIGHTS)
    content = {"classes": ["a"], "architecture": "Unet", "encoder": "resnet18", "max_side": None}
    (folder / NETWORK).write_text(json.dumps(content))
    return folder


def photos(folder):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 6)).save(folder / "x.png")
    return folder


def config(images, masks, *more):
    options = [f"predict.images={images}", f"predict.masks={masks}", "data.num_workers=0"]
    return load_config([*options, "trainer.accelerator=cpu", *more])


def test_masks_below_the_photographs_are_no_photographs(tmp_path, network):
    root = photos(tmp_path / "photos")
    for _ in range(2):
        masks = predict(config(root, root / "masks"), network)
        assert [p.name for p in masks.rglob("*.png")] == ["x.png"]


def test_masks_on_top_of_the_photographs(tmp_path, network):
    root = photos(tmp_path / "photos")
    before = (root / "x.png").read_bytes()
    with pytest.raises(WSSSError, match=r"holds the photographs .*; choose another folder"):
        predict(config(root, root), network)
    assert (root / "x.png").read_bytes() == before


def test_masks_of_another_network_are_replaced(tmp_path, network):
    root, masks = photos(tmp_path / "photos"), tmp_path / "masks"
    predict(config(root, masks), network)
    assert Image.open(masks / "x.png").getextrema() == (1, 1)
    kept = (masks / "x.png").stat().st_ino
    predict(config(root, masks), network)
    assert (masks / "x.png").stat().st_ino == kept  # the same again: nothing is done twice
    predict(config(root, masks), make_network(tmp_path / "other", bias=-9.0))
    assert Image.open(masks / "x.png").getextrema() == (0, 0)


def test_files_of_other_origin_are_not_touched(tmp_path, network):
    root, masks = photos(tmp_path / "photos"), photos(tmp_path / "truth")
    before = (masks / "x.png").read_bytes()
    with pytest.raises(WSSSError, match=r"x\.png, which mode=predict did not make"):
        predict(config(root, masks), network)
    assert (masks / "x.png").read_bytes() == before


def test_no_network(tmp_path):
    root = photos(tmp_path / "photos")
    with pytest.raises(WSSSError, match="holds no trained segmentation network"):
        predict(config(root, tmp_path / "masks"), tmp_path / "nowhere")


def test_broken_photograph_stops_or_is_left_out(tmp_path, network, caplog):
    root = photos(tmp_path / "photos")
    (root / "broken.jpg").write_text("no image")
    with pytest.raises(WSSSError, match=r"broken.jpg cannot be read"):
        predict(config(root, tmp_path / "masks"), network)
    masks = predict(config(root, tmp_path / "masks", "data.on_error=skip"), network)
    assert [p.name for p in masks.rglob("*.png")] == ["x.png"]
    assert "1 photographs are left out" in caplog.text
