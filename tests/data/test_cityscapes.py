import shutil

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import cityscapes_source
from wsss_affinity.data.cityscapes import CITYSCAPES_CLASSES
from wsss_affinity.errors import WSSSError

MASKS = {
    "train/ulm/ulm_000001_000019": [[7, 26, 33, 3]],
    "train/aachen/aachen_000000_000019": [[0, 4, 29, 34 - 1]],
    "val/lindau/lindau_000000_000019": [[11, 11, 11, 11]],
    "test/berlin/berlin_000000_000019": [[3, 3, 3, 3]],  # as published: all ignored
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "cityscapes"
    for name, rows in MASKS.items():
        image = root / "leftImg8bit" / f"{name}_leftImg8bit.png"
        mask = root / "gtFine" / f"{name}_gtFine_labelIds.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 1)).save(image)
        Image.fromarray(np.array(rows, np.uint8)).save(mask)
        for other in ("color", "instanceIds"):  # which lie beside the masks
            mask.with_name(mask.name.replace("labelIds", other)).write_bytes(b"not read")
    return root


def test_layout(root, tmp_path):
    source = cityscapes_source(root, prepared=tmp_path / "out")
    assert source.classes == CITYSCAPES_CLASSES
    assert len(source.classes) == 19
    assert [(s.id, s.labels) for s in source.train] == [
        ("aachen/aachen_000000_000019", (18,)),
        ("ulm/ulm_000001_000019", (0, 13, 18)),
    ]
    assert [(s.id, s.labels) for s in source.val] == [("lindau/lindau_000000_000019", (2,))]
    assert source.score == source.train
    sample = source.train[1]
    name = "train/ulm/ulm_000001_000019"
    assert sample.image == root / "leftImg8bit" / f"{name}_leftImg8bit.png"
    assert sample.mask == root / "gtFine" / f"{name}_gtFine_labelIds.png"
    assert source.read_mask(sample).tolist() == [[1, 14, 19, 255]]
    assert not source.background
    assert source.labels_from_masks
    assert source.problems == ()
    assert source.split_names == {"train": "train", "score": "train", "val": "val"}


def test_without_val_and_test(root, tmp_path):
    source = cityscapes_source(root, prepared=tmp_path / "out", val_split=None)
    assert (source.val, source.test) == ((), ())
    assert source.split_names == {"train": "train", "score": "train"}


def test_train_ids(root, tmp_path):
    source = cityscapes_source(root, prepared=tmp_path / "out")
    # train id of each label id, as the data set's own table has them
    train_ids = dict(
        zip(
            [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
            range(19),
            strict=True,
        )
    )
    expected = [train_ids[i] + 1 if i in train_ids else 255 for i in range(34)]
    assert list(source.mask_values) == expected + [-1] * 221 + [255]
    assert [source.classes[train_ids[i]] for i in (7, 19, 24, 31, 33)] == [
        "road",
        "traffic light",
        "person",
        "train",
        "bicycle",
    ]


def test_wrong_mask_value(root, tmp_path):
    source = cityscapes_source(root, prepared=tmp_path / "out")
    path = source.val[0].mask
    Image.fromarray(np.array([[11, 34, 255, 200]], np.uint8)).save(path)
    with pytest.raises(WSSSError) as caught:
        source.read_mask(source.val[0])
    assert str(caught.value) == (
        f"mask {path} holds the values [34, 200]; expected class indices (7 to 8, 11 to 13, 17, "
        "19 to 28, 31 to 33) or void (0 to 6, 9 to 10, 14 to 16, 18, 29 to 30, 255); mend the mask"
    )


def test_missing_parts(root, tmp_path):
    prepared = tmp_path / "out"
    mask = root / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_labelIds.png"
    mask.unlink()
    source = cityscapes_source(root, prepared=prepared)
    assert [(p.id, p.message) for p in source.problems] == [
        (
            "lindau/lindau_000000_000019",
            f"mask {mask} does not exist; restore it or take it off the list",
        )
    ]

    def said(**options):
        with pytest.raises(WSSSError) as caught:
            cityscapes_source(root, prepared=prepared, **options)
        return str(caught.value)

    photographs = root / "leftImg8bit"
    assert said(train_split="trian") == (
        f"folder {photographs / 'trian'} does not exist; did you mean 'train'? (it is unpacked "
        "from Cityscapes' leftImg8bit_trainvaltest.zip)"
    )
    shutil.rmtree(root / "gtFine" / "train")
    assert said() == (
        f"folder {root / 'gtFine' / 'train'} does not exist; unpack Cityscapes' "
        f"gtFine_trainvaltest.zip in {root}"
    )
    shutil.rmtree(photographs / "train" / "ulm")
    shutil.rmtree(photographs / "train" / "aachen")
    assert said() == (
        f"folder {photographs / 'train'} holds no images <city>/<name>_leftImg8bit.png; unpack it "
        "again"
    )
    shutil.rmtree(photographs)
    assert said() == (
        f"folder {photographs / 'train'} does not exist; set data.root to the folder above it "
        "(it is unpacked from Cityscapes' leftImg8bit_trainvaltest.zip)"
    )
