import json

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import folder_source
from wsss_affinity.data.folder import list_images, write_label_template
from wsss_affinity.data.images import save_mask
from wsss_affinity.data.labels import read_label_file
from wsss_affinity.errors import WSSSError


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    for name in ("b.jpg", "a.png", "sub/a.JPG"):
        photo(root / name)
    (root / "notes.txt").write_text("no photograph")
    (root / ".hidden.jpg").write_text("nor this")
    (root / "labels.csv").write_text("image,labels\nb.jpg,dog\na,cat;dog\nsub/a.JPG,\n")
    return root


def labels(source):
    return {s.id: tuple(source.classes[i] for i in s.labels) for s in source.train}


def test_names_with_and_without_suffix_and_subfolders(root):
    source = folder_source(root)
    assert source.classes == ("cat", "dog")
    # sub/a has a row, but no label
    assert labels(source) == {"a": ("cat", "dog"), "b": ("dog",), "sub/a": ()}
    assert [s.image for s in source.train] == [root / n for n in ("a.png", "b.jpg", "sub/a.JPG")]
    assert source.score == source.val == source.problems == ()


@pytest.mark.parametrize("as_list", [False, True])
def test_json_labels(root, as_list):
    rows = {"a.png": ["cat"], "b": [], "sub/a": ["dog", "cat"]}
    content = [{"image": k, "labels": v} for k, v in rows.items()] if as_list else rows
    (root / "l.json").write_text(json.dumps(content))
    source = folder_source(root, labels="l.json")
    assert labels(source) == {"a": ("cat",), "b": (), "sub/a": ("cat", "dog")}


def test_label_file_elsewhere(root, tmp_path):
    (root / "labels.csv").rename(tmp_path / "other.csv")
    assert len(folder_source(root, labels=tmp_path / "other.csv").train) == 3


def test_classes_in_the_order_given(root):
    source = folder_source(root, classes=["dog", "cow", "cat"])
    assert source.classes == ("dog", "cow", "cat")
    assert [s.labels for s in source.train] == [(0, 2), (0,), ()]
    assert source.mask_values[:5] == (0, 1, 2, 3, -1)


def test_unknown_label_names_near_ones(root):
    with pytest.raises(WSSSError) as caught:
        folder_source(root, classes=["dogs", "cat"])
    assert str(caught.value) == (
        f"{root / 'labels.csv'}, row a: label 'dog' is not a class; did you mean 'dogs'?"
    )


def test_image_without_row_and_row_without_image(root):
    photo(root / "new.jpg")
    with (root / "labels.csv").open("a") as file:
        file.write("gone.jpg,cat\n")
    source = folder_source(root)
    table = root / "labels.csv"
    assert {p.id: p.message for p in source.problems} == {
        "new": f"image {root / 'new.jpg'} has no row in {table}; add one",
        "gone.jpg": f"{table} has a row 'gone.jpg' but {root} has no such image; remove it",
    }
    assert [s.id for s in source.train] == ["a", "b", "sub/a"]


def test_two_files_of_one_stem(root):
    photo(root / "b.png")
    with pytest.raises(WSSSError, match=r"differ in the suffix alone\): id 'b' is listed twice"):
        folder_source(root)


def test_no_label_at_all(root):
    (root / "labels.csv").write_text("image,labels\na,\n")
    with pytest.raises(WSSSError, match=r"labels\.csv names no label; fill in its column"):
        folder_source(root)


def test_masks_and_val(root, tmp_path):
    mask = np.array([[0, 1, 2, 255]] * 3, dtype=np.uint8)
    save_mask(tmp_path / "masks" / "sub" / "a.png", mask)
    photo(tmp_path / "val" / "x.jpg")
    photo(tmp_path / "val" / "y.jpg")
    save_mask(tmp_path / "val_masks" / "y.png", mask)
    source = folder_source(
        root,
        masks=tmp_path / "masks",
        val_root=tmp_path / "val",
        val_masks=tmp_path / "val_masks",
    )
    assert [s.id for s in source.train] == ["a", "b", "sub/a"]
    assert [s.id for s in source.score] == ["sub/a"]
    assert [s.id for s in source.val] == ["y"]
    assert source.read_mask(source.score[0]).tolist() == mask.tolist()
    assert source.read_mask(source.val[0]).tolist() == mask.tolist()


def test_masks_and_val_below_root_are_not_trained_on(root):
    mask = np.zeros((3, 4), dtype=np.uint8)
    save_mask(root / "masks" / "b.png", mask)
    photo(root / "val" / "x.jpg")
    save_mask(root / "val_masks" / "x.png", mask)
    source = folder_source(
        root, masks=root / "masks", val_root=root / "val", val_masks=root / "val_masks"
    )
    assert [s.id for s in source.train] == ["a", "b", "sub/a"]
    assert [s.id for s in source.score] == ["b"]
    assert [s.id for s in source.val] == ["x"]
    assert source.problems == ()


@pytest.mark.parametrize("key", ["masks", "val_masks"])
def test_missing_mask_folder(root, tmp_path, key):
    with pytest.raises(WSSSError, match=rf"nowhere does not exist; set data\.{key} to a folder"):
        folder_source(root, **{key: tmp_path / "nowhere"})


def test_missing_or_empty_root(tmp_path):
    with pytest.raises(WSSSError, match=r"nowhere does not exist; expected a folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(WSSSError, match=r"holds no images \(\.jpg, \.jpeg, \.png"):
        list_images(tmp_path)


def test_template(root):
    table = root / "labels.csv"
    table.unlink()
    assert write_label_template(root) == table
    assert read_label_file(table) == {"a.png": [], "b.jpg": [], "sub/a.JPG": []}
    with pytest.raises(WSSSError, match=r"labels\.csv exists already"):
        write_label_template(root)
    with pytest.raises(WSSSError, match=r"a template is a CSV"):
        write_label_template(root, "labels.json")


def test_missing_root_is_named_as_such(tmp_path):
    with pytest.raises(WSSSError, match=r"folder .*fotos does not exist; set data.root"):
        folder_source(tmp_path / "fotos")


def test_split_names(root):
    assert folder_source(root).split_names == {"train": "train", "score": "train"}
    source = folder_source(root, val_root=root)
    assert source.split_names == {"train": "train", "score": "train", "val": "val"}


def test_home_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    home = f"~/{root.name}"
    (root.parent / "masks").mkdir()
    found = folder_source(
        home, labels=f"{home}/labels.csv", val_root=home, masks="~/masks", val_masks="~/masks"
    )
    assert found == folder_source(root, val_root=root)
    assert [s.id for s in folder_source(home, ignore=f"{home}/sub").train] == ["a", "b"]


def test_folders_and_links_set_apart(root, tmp_path):
    photo(root / "out" / "deep" / "x.jpg")
    photo(tmp_path / "far" / "y.jpg")
    (root / "near.jpg").symlink_to(root / "b.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "far" / "y.jpg")
    (root / "sub" / "linked").symlink_to(tmp_path / "far")
    everything = ["a.png", "b.jpg", "link.jpg", "near.jpg", "out/deep/x.jpg", "sub/a.JPG"]
    assert list_images(root) == everything  # linked folders are not followed
    apart = [(root / "out").resolve(), (tmp_path / "far").resolve()]
    assert list_images(root, apart) == ["a.png", "b.jpg", "near.jpg", "sub/a.JPG"]
    assert list_images(root, [root.resolve()]) == []


def test_a_folder_called_like_an_image_is_none(root):
    photo(root / "c.jpg" / "d.jpg")
    assert list_images(root) == ["a.png", "b.jpg", "c.jpg/d.jpg", "sub/a.JPG"]
