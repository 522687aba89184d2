import json

import pytest
import torch
from PIL import Image

from wsss_affinity.backbones import create_backbone
from wsss_affinity.config import load_config
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.fit import WEIGHTS, save_weights
from wsss_affinity.pipeline.predict import load_network, predict
from wsss_affinity.pipeline.train import NETWORK


@pytest.fixture
def network(tmp_path):
    return make_network(tmp_path / "network", bias=9.0)


def make_network(folder, bias, architecture="Unet", encoder="resnet18", label="resnet18"):
    folder.mkdir()
    net = SegmentationNet(2, architecture=architecture, encoder=encoder)
    net.network.segmentation_head[0].bias.data[1] = bias
    save_weights(net, folder / WEIGHTS)
    content = {"classes": ["a"], "architecture": architecture, "encoder": label, "max_side": None}
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


TINY = "wsss_affinity.backbones.tiny.TinyBackbone"


def test_code_that_a_file_names_is_not_run_unasked(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    spec = {"_target_": "os.rmdir", "path": str(victim)}
    folder = make_network(tmp_path / "network", 9.0, "DeepLabV3Plus", "tiny", spec)
    cfg = config(photos(tmp_path / "photos"), tmp_path / "masks", f"predict.network={folder}")
    for load in (lambda: load_network(folder), lambda: predict(cfg, folder)):
        with pytest.raises(
            WSSSError,
            match=r"network/network.json names code to be run, _target_=os.rmdir; .*predict.trust=",
        ):
            load()
    assert victim.is_dir()
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    "leave", [["predict.trust=true"], ["backbone=target", f"backbone._target_={TINY}"]]
)
def test_code_is_run_where_the_user_trusts_or_names_it(tmp_path, leave):
    spec = {"_target_": TINY}
    folder = make_network(tmp_path / "network", 9.0, "DeepLabV3Plus", spec, spec)
    masks = predict(config(photos(tmp_path / "photos"), tmp_path / "masks", *leave), folder)
    assert Image.open(masks / "x.png").getextrema() == (1, 1)
    assert load_network(folder, trust=True)[1]["encoder"] == spec


def test_a_network_on_an_object_is_loaded_onto_one_like_it(tmp_path):
    folder = make_network(
        tmp_path / "network", 9.0, "DeepLabV3Plus", create_backbone("tiny"), "mynet.Net@72c7"
    )
    with pytest.raises(WSSSError, match=r"trained on an object, a mynet.Net, .*backbone=mynet.Net"):
        load_network(folder)
    backbone = create_backbone("tiny")
    net, _ = load_network(folder, backbone=backbone)
    assert net.backbone.backbone is backbone
    state = torch.load(folder / WEIGHTS, weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not net.training


def test_a_configuration_without_a_backbone_predicts(tmp_path, network):
    cfg = config(photos(tmp_path / "photos"), tmp_path / "masks", "backbone=registered")
    assert (predict(cfg, network) / "x.png").is_file()
