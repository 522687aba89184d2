import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.config import load_config
from wsss_affinity.data.images import load_mask, save_mask
from wsss_affinity.data.source import Sample, Source, plain_mask_values
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.layers import DenseCRF
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.evaluate import evaluate
from wsss_affinity.pipeline.fit import WEIGHTS, save_weights
from wsss_affinity.pipeline.scores import encode_scores
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.train import NETWORK
from wsss_affinity.pipeline.walk import FinishMask

OPTIONS = ("data.num_workers=0", "trainer.accelerator=cpu", "train_affinity.output_stride=8")


def photo(tmp_path, name, *, truth=True):
    rng = np.random.default_rng(len(name))
    path = tmp_path / f"{name}.png"
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((32, 24)).save(path)
    if not truth:
        return Sample(name, path, ())
    save_mask(tmp_path / "truth" / f"{name}.png", rng.integers(1, 3, (24, 32), dtype=np.uint8))
    return Sample(name, path, (0, 1), tmp_path / "truth" / f"{name}.png")


@pytest.fixture
def source(tmp_path):
    return Source(
        classes=("cat", "dog"),
        train=(photo(tmp_path, "a"),),
        score=(photo(tmp_path, "a"),),
        val=(photo(tmp_path, "val_1"), photo(tmp_path, "val_22")),
        test=(photo(tmp_path, "test_333", truth=False),),
        mask_values=plain_mask_values(2),
        split_names={"train": "train_aug", "val": "val", "test": "test"},
    )


def network(folder, *, background=True):
    """An untrained network that prefers the last class, ``train_segmentation``'s artefact."""
    folder.mkdir()
    net = SegmentationNet(2 + background, architecture="Unet", encoder="resnet18")
    net.network.segmentation_head[0].bias.data[-1] = 0.5
    save_weights(net, folder / WEIGHTS)
    content = {"classes": ["cat", "dog"], "background": background, "max_side": None}
    content |= {"architecture": "Unet", "encoder": "resnet18"}
    (folder / NETWORK).write_text(json.dumps(content))
    return folder


def run(source, inputs, folder, *options):
    result = evaluate(Context(load_config([*OPTIONS, *options]), source, inputs), folder)
    content = json.loads((folder / "metrics.json").read_text())
    assert content == json.loads(json.dumps({k: v for k, v in result.items() if k != "images"}))
    return result, {score["name"]: score for score in content["scores"]}


def test_network_is_scored_on_val_and_its_test_masks_are_packed(source, tmp_path):
    inputs = {"train_segmentation": network(tmp_path / "net")}
    result, scores = run(source, inputs, tmp_path / "out")
    score = scores["segmentation"]
    assert (score["split"], score["split_name"], score["images"]) == ("val", "val", 2)
    assert not score["labels_given"]
    assert not score["crf"]
    assert not score["trained_on_masks"]
    total = np.zeros((3, 3), dtype=np.int64)
    for sample in source.val:
        found = load_mask(tmp_path / "out" / "predictions" / f"{sample.id}.png")
        np.add.at(total, (load_mask(sample.mask), found), 1)
    assert score["confusion"] == total.tolist()
    assert result["images"] == 1 + 2 + 1
    assert result["submission"] == "submission.tar.gz"
    with tarfile.open(tmp_path / "out" / "submission.tar.gz") as archive:
        name = "results/VOC2012/Segmentation/comp6_test_cls/test_333.png"
        assert archive.getnames() == [name]
        packed = np.asarray(Image.open(archive.extractfile(name)))
    np.testing.assert_array_equal(packed, load_mask(tmp_path / "out" / "test" / "test_333.png"))
    assert packed.shape == (24, 32)


def test_crf_refines_the_network(source, tmp_path):
    source = replace(source, test=())
    inputs = {"train_segmentation": network(tmp_path / "net")}
    run(source, inputs, tmp_path / "plain")
    result, scores = run(source, inputs, tmp_path / "crf", "evaluate.crf.num_iterations=5")
    assert (scores["segmentation"]["crf"], scores["segmentation"]["crf_iterations"]) == (True, 5)
    assert result["submission"] is None
    assert not (tmp_path / "crf" / "submission.tar.gz").exists()
    plain, refined = (
        load_mask(tmp_path / n / "predictions" / "val_1.png") for n in ("plain", "crf")
    )
    edges = [int((mask[:, 1:] != mask[:, :-1]).sum()) for mask in (plain, refined)]
    assert edges[1] < edges[0]  # smoother


def test_upper_bound_says_so(source, tmp_path):
    inputs = {"train_segmentation": network(tmp_path / "net")}
    option = "train_segmentation.target=ground_truth"
    _, scores = run(replace(source, test=()), inputs, tmp_path / "out", option)
    assert scores["segmentation"]["trained_on_masks"]


def test_archive_that_cannot_be_is_refused_at_once(source, tmp_path):
    values = [min(v, 2) if v != 255 else v for v in plain_mask_values(3)]  # 2 and 3 are dogs
    source = replace(source, mask_values=tuple(values))
    inputs = {"train_segmentation": network(tmp_path / "net")}
    with pytest.raises(WSSSError, match=r"2 values of the data set's masks mean 'dog'"):
        run(source, inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result, _ = run(source, inputs, tmp_path / "out", "evaluate.submission_name=null")
    assert result["submission"] is None


@pytest.mark.parametrize("background", [True, False])
def test_all_at_hand_is_scored_and_drawn(source, tmp_path, background):
    source = replace(source, background=background, labels_from_masks=True, test=())
    cams, labels, walk = (tmp_path / name for name in ("cams", "labels", "walk"))
    classes, cam = torch.tensor([0, 1]), torch.rand(2, 3, 4)
    write_bytes(cams / "a.npz", encode_scores(classes, cam, (24, 32)))
    first = torch.rand(int(background), 3, 4)
    others = torch.rand(2, 3, 4) if background else None
    data = encode_scores(classes, torch.cat([first, cam]), (24, 32), backgrounds=others)
    write_bytes(walk / "scores" / "a.npz", data)
    crf = DenseCRF(num_iterations=1)
    finish = FinishMask(Records(walk / "scores", ".npz"), None, 8, background, crf)
    write_bytes(walk / "masks" / "a.png", finish(source.score[0], data)["masks"])
    half = load_mask(source.score[0].mask)
    half[:12] = 255
    save_mask(labels / "labels" / "a.png", half)
    inputs = {"make_cam": cams, "affinity_labels": labels, "random_walk": walk}
    inputs["train_segmentation"] = network(tmp_path / "net", background=background)
    _, scores = run(source, inputs, tmp_path / "out", "walk.alpha_sweep=[4,8]")
    assert scores["affinity labels"]["coverage"] == 0.5
    assert scores["affinity labels"]["miou"] == 1.0
    assert scores["affinity labels"]["crf_iterations"] == 10
    assert all(score["labels_from_masks"] for score in scores.values())
    assert scores["pseudo-masks"]["split_name"] == "train_aug"
    assert ("CAM, best" in scores) == background
    assert scores["CAM"]["threshold"] == (0.2 if background else None)
    if not background:
        for score in scores.values():
            matrix = np.array(score["confusion"])
            assert matrix[0].sum() == matrix[:, 0].sum() == 0
            assert list(score["iou"]) == ["cat", "dog"]
    # image, CAM, affinity labels, walk, pseudo-mask, segmentation, ground truth
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width == 7 * 186 + 6


def test_nothing_to_score_with(source, tmp_path):
    source = replace(source, score=(), val=(), test=())
    result, scores = run(
        source, {"make_cam": tmp_path}, tmp_path / "out", "evaluate.sheet_images=0"
    )
    assert scores == {}
    assert (result["images"], result["sweeps"]) == (0, {})
