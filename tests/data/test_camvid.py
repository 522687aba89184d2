import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import camvid_source
from wsss_affinity.errors import WSSSError

MASKS = {
    "train": {"0001TP_006690": [[0, 3, 10, 11]], "0006R0_f00930": [[4, 4, 4, 4]]},
    "val": {"0016E5_07959": [[1, 2, 11, 11]]},
    "test": {"Seq05VD_f00000": [[8, 9, 8, 9]]},
}


@pytest.fixture
def root(tmp_path):
    """SegNet's layout, with the paths of the public lists."""
    root = tmp_path / "CamVid"
    for split, masks in MASKS.items():
        lines = []
        for name, rows in masks.items():
            for folder in (split, f"{split}annot"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 1)).save(root / split / f"{name}.png")
            mask = np.array(rows, dtype=np.uint8)
            Image.fromarray(mask).save(root / f"{split}annot" / f"{name}.png")
            lines.append(
                f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png"
            )
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_segnet_layout(root, tmp_path):
    source = camvid_source(root, prepared=tmp_path / "out")
    assert source.classes[:4] == ("sky", "building", "pole", "road")
    assert len(source.classes) == 11
    assert not source.background
    assert source.labels_from_masks
    assert source.split_names == {"train": "train", "score": "train", "val": "val"}
    assert [(s.id, s.labels) for s in source.train] == [
        ("0001TP_006690", (0, 3, 10)),
        ("0006R0_f00930", (4,)),
    ]
    assert [(s.id, s.labels) for s in source.val] == [("0016E5_07959", (1, 2))]
    assert source.score == source.train
    assert source.test == ()
    assert source.problems == ()
    assert source.train[0].image == root / "train" / "0001TP_006690.png"
    assert source.train[0].mask == root / "trainannot" / "0001TP_006690.png"
    # value 0 is a class, there is no label 0
    assert source.read_mask(source.train[0]).tolist() == [[1, 4, 11, 255]]
    assert source.mask_values[:13] == (*range(1, 12), 255, -1)
    assert source.mask_values[255] == 255


def test_test_split_has_masks(root, tmp_path):
    source = camvid_source(root, prepared=tmp_path / "out", val_split="test")
    assert [(s.id, s.labels) for s in source.val] == [("Seq05VD_f00000", (8, 9))]
    assert source.split_names["val"] == "test"
    source = camvid_source(root, prepared=tmp_path / "out", val_split=None)
    assert source.val == ()
    assert "val" not in source.split_names


def test_list_with_relative_paths_of_other_suffix(root, tmp_path):
    Image.new("RGB", (4, 1)).save(root / "train" / "a.jpg")
    Image.fromarray(np.array([[7, 7, 7, 7]], np.uint8)).save(root / "trainannot" / "a.png")
    (root / "train.txt").write_text("\ufefftrain/a.jpg trainannot/a.png\n\n", encoding="utf-8")
    source = camvid_source(root, prepared=tmp_path / "out")
    assert [(s.id, s.image, s.labels) for s in source.train] == [
        ("a", root / "train" / "a.jpg", (7,))
    ]


def test_wrong_mask_value(root, tmp_path):
    source = camvid_source(root, prepared=tmp_path / "out")
    path = root / "trainannot" / "0001TP_006690.png"
    Image.fromarray(np.array([[0, 12, 30, 255]], np.uint8)).save(path)
    message = (
        f"mask {path} holds the values [12, 30]; expected class indices (0 to 10) or void "
        "(11, 255); mend the mask"
    )
    with pytest.raises(WSSSError) as caught:
        source.read_mask(source.train[0])
    assert str(caught.value) == message
    again = camvid_source(root, prepared=tmp_path / "again")
    assert [(p.id, p.message) for p in again.problems] == [("0001TP_006690", message)]
    assert [s.id for s in again.train] == ["0006R0_f00930"]


def test_missing_mask_is_a_problem(root, tmp_path):
    path = root / "valannot" / "0016E5_07959.png"
    path.unlink()
    source = camvid_source(root, prepared=tmp_path / "out")
    assert [(p.id, p.message) for p in source.problems] == [
        ("0016E5_07959", f"mask {path} does not exist; restore it or take it off the list")
    ]


def test_bad_lists(root, tmp_path):
    def said():
        with pytest.raises(WSSSError) as caught:
            camvid_source(root, prepared=tmp_path / "out")
        return str(caught.value)

    path = root / "train.txt"
    path.write_text("train/a.png\n")
    assert said() == (
        f"{path}, line 1: 'train/a.png'; expected the path of an image and that of its annotation"
    )
    path.write_text("\n")
    assert said() == f"split list {path} is empty; expected two paths on each line"
    path.write_text("train/a.png trainannot/a.png\nother/a.png otherannot/a.png\n")
    assert said() == f"{path}: id 'a' is listed twice; remove one of the two"
    path.rename(root / "trains.txt")
    assert said() == (
        f"split list {path} does not exist; did you mean 'trains'? (data.root is the folder of "
        "SegNet's train.txt, or of the original 701_StillsRaw_full)"
    )
    with pytest.raises(WSSSError, match=r"train\.txt does not exist; .*none holds no lists \(data"):
        camvid_source(tmp_path / "none", prepared=tmp_path / "out")
