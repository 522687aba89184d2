import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import VOC_CLASSES, voc_source
from wsss_affinity.data.images import save_mask
from wsss_affinity.errors import WSSSError

MASK = np.array([[0, 8, 15, 12, 255]], dtype=np.uint8)


def annotation(*names):
    objects = "".join(f"<object><name>{n}</name></object>" for n in names)
    return f"<annotation>{objects}</annotation>"


def lists(root, **splits):
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in splits.items():
        (folder / f"{name}.txt").write_text(text)


@pytest.fixture
def root(tmp_path):
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (tmp_path / name).mkdir()
    rows = {"a": ("person", "cat"), "b": ("dog",), "c": ("cat",), "v": ("cat",)}
    for name, objects in rows.items():
        Image.new("RGB", (5, 1)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(annotation(*objects))
    for name in ("a", "v"):
        save_mask(tmp_path / "SegmentationClass" / f"{name}.png", MASK)
    lists(tmp_path, train="b\na\n\nc\n", part="a\n", val="v\n", both="a\nv\n")
    return tmp_path


def ids(samples):
    return [s.id for s in samples]


def test_layout(root):
    source = voc_source(root, train_split="train", val_split="val")
    assert source.classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 20
    assert ids(source.train) == ["b", "a", "c"]
    assert ids(source.score) == ["a"]
    assert ids(source.val) == ["v"]
    assert source.problems == ()
    sample = source.train[1]
    assert sample.image == root / "JPEGImages" / "a.jpg"
    assert sample.mask == root / "SegmentationClass" / "a.png"
    assert sample.labels == (VOC_CLASSES.index("cat"), VOC_CLASSES.index("person")) == (7, 14)
    assert source.train[0].mask is None
    assert source.read_mask(sample).tolist() == MASK.tolist()
    assert len(source.mask_values) == 256


def test_restricted_classes(root):
    source = voc_source(root, train_split="train", classes=["person", "cat"])
    assert source.classes == ("person", "cat")
    # in the order asked for; dog is dropped, its pixels are background, void stays
    assert [s.labels for s in source.train] == [(), (0, 1), (1,)]
    assert source.read_mask(source.score[0]).tolist() == [[0, 2, 1, 0, 255]]


def test_unknown_mask_value_under_restriction(root):
    save_mask(root / "SegmentationClass" / "a.png", np.array([[21]], dtype=np.uint8))
    source = voc_source(root, train_split="train", classes=["cat"])
    with pytest.raises(WSSSError, match=r"holds the values \[21\]; expected .*, 1 to 20 \(classes"):
        source.read_mask(source.score[0])


def test_labels_from_csv(root):
    (root / "labels.csv").write_text("id,labels\na,dog\nb,cat person\n")
    source = voc_source(root, train_split="train", classes=["cat", "dog"], labels_csv="labels.csv")
    assert [(s.id, s.labels) for s in source.train] == [("b", (0,)), ("a", (1,))]
    assert [(p.id, p.message) for p in source.problems] == [
        ("c", "image c has no row in the label file; add one")
    ]


def test_own_classes(root):
    source = voc_source(root, train_split="train", all_classes=["cat", "dog", "person"])
    assert [s.labels for s in source.train] == [(1,), (0, 2), (0,)]
    assert source.mask_values[:5] == (0, 1, 2, 3, -1)


def test_missing_annotation_is_a_problem(root):
    (root / "Annotations" / "b.xml").unlink()
    source = voc_source(root, train_split="train")
    assert ids(source.train) == ["a", "c"]
    assert [p.id for p in source.problems] == ["b"]
    assert "b.xml does not exist" in source.problems[0].message


def test_unknown_label_in_an_annotation(root):
    (root / "Annotations" / "b.xml").write_text(annotation("doge"))
    with pytest.raises(WSSSError, match=r"b\.xml: label 'doge' is not a class; .*'dog'"):
        voc_source(root, train_split="train")


def test_unknown_class(root):
    with pytest.raises(WSSSError, match=r"data\.classes: 'catt' is no class; .*'cat'"):
        voc_source(root, train_split="train", classes=["catt"])
    with pytest.raises(WSSSError, match=r"data\.classes: id 'cat' is listed twice"):
        voc_source(root, train_split="train", classes=["cat", "cat"])


def test_score_split(root):
    assert ids(voc_source(root, train_split="train", score_split="part").score) == ["a"]
    with pytest.raises(WSSSError) as caught:
        voc_source(root, train_split="train", score_split="both")
    assert "split 'both' holds 1 ids that 'train' lacks (v, …)" in str(caught.value)
    assert "score_split must lie within train_split" in str(caught.value)


def test_missing_list_names_near_ones(root):
    with pytest.raises(WSSSError) as caught:
        voc_source(root, train_split="trian")
    assert "trian.txt does not exist; did you mean 'train'?" in str(caught.value)
    with pytest.raises(WSSSError, match=r"holds no lists \(is data\.root the folder that holds"):
        voc_source(root / "JPEGImages", train_split="train")


def test_empty_list(root):
    lists(root, none="\n  \n")
    with pytest.raises(WSSSError, match=r"none\.txt is empty; expected an image id on each line"):
        voc_source(root, train_split="none")


def test_id_listed_twice(root):
    lists(root, twice="a\nb\na\n")
    with pytest.raises(WSSSError, match=r"twice\.txt: id 'a' is listed twice; remove one"):
        voc_source(root, train_split="twice")


def test_list_with_second_column_and_bom(root):
    lists(root, other="\ufeffa  1\nb -1\n")
    assert ids(voc_source(root, train_split="other").train) == ["a", "b"]


def test_split_names(root):
    lists(root, test="v\n")
    source = voc_source(root, train_split="train", val_split="val", test_split="test")
    assert source.split_names == {"train": "train", "score": "train", "val": "val", "test": "test"}
    source = voc_source(root, train_split="train", score_split="part")
    assert source.split_names == {"train": "train", "score": "part"}


def test_test_split_needs_photographs_only(root):
    lists(root, test="v\nw\n")
    Image.new("RGB", (5, 1)).save(root / "JPEGImages" / "w.jpg")  # has no annotation
    source = voc_source(root, train_split="train", test_split="test")
    assert [(s.id, s.labels, s.mask) for s in source.test] == [("v", (), None), ("w", (), None)]
    assert source.problems == ()
    (root / "JPEGImages" / "w.jpg").unlink()
    with pytest.raises(WSSSError) as caught:
        voc_source(root, train_split="train", test_split="test")
    assert str(caught.value) == (
        f"1 photographs of split 'test' are missing ({root / 'JPEGImages' / 'w.jpg'}, …); unpack "
        "the archive of the test images there, or set data.test_split=null"
    )


def test_lists_and_masks_elsewhere(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "mine.txt").write_text("c\na\n")
    save_mask(other / "masks" / "c.png", MASK)
    for name in (other / "mine", other / "mine.txt"):
        source = voc_source(root, train_split=str(name), mask_folder=other / "masks")
        assert ids(source.train) == ["c", "a"]
        assert [s.mask for s in source.score] == [other / "masks" / "c.png"]
        assert source.split_names["train"] == "mine"


def test_home_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    source = voc_source(f"~/{root.name}", train_split="train")
    assert source.train[0].image == root / "JPEGImages" / "b.jpg"
