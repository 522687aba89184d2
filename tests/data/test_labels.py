import json

import pytest

from wsss_affinity.data.labels import read_label_file, read_voc_objects, write_template
from wsss_affinity.errors import WSSSError


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("key", ["image", "id", "filename", "file"])
def test_csv(tmp_path, key):
    path = write(
        tmp_path / "l.csv",
        f"{key},labels\na.jpg,cat dog\nb.jpg,traffic light; cat\nc.jpg,\n\nd.jpg, dog \ne,x;\n",
    )
    assert read_label_file(path) == {
        "a.jpg": ["cat", "dog"],
        "b.jpg": ["traffic light", "cat"],
        "c.jpg": [],
        "d.jpg": ["dog"],
        "e": ["x"],
    }


def test_csv_with_bom_and_other_columns(tmp_path):
    text = "id,who,labels\r\nÄ 1,me,hund\r\n"
    path = write(tmp_path / "l.csv", text, "utf-8-sig")
    assert read_label_file(path) == {"Ä 1": ["hund"]}


@pytest.mark.parametrize(
    "content",
    [
        {"a.jpg": ["cat", "dog"], "b": []},
        [{"image": "a.jpg", "labels": ["cat", "dog"]}, {"image": "b", "labels": []}],
    ],
)
def test_json(tmp_path, content):
    path = write(tmp_path / "l.json", json.dumps(content))
    assert read_label_file(path) == {"a.jpg": ["cat", "dog"], "b": []}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "image,labels\na,cat\nb,\na,dog\n", "line 4: id 'a' is listed twice; remove one"),
        ("l.json", '{"a": ["cat"], "a": ["dog"]}', "id 'a' is listed twice; remove one"),
        (
            "l.json",
            '[{"image": "a", "labels": []}, {"image": "a", "labels": []}]',
            "entry 2: id 'a' is listed twice; remove one",
        ),
        ("l.csv", "image,labels\na,cat,dog\n", "line 2: more cells than the header has"),
        ("l.csv", "image;labels\na;cat\n", "has the columns image;labels; expected a header line"),
        ("l.csv", "", "has the columns (none); expected a header line `image,labels`"),
        ("l.json", '{"a": "cat"}', "the labels of a are no list"),
        ("l.json", '[{"name": "a"}]', "has not the expected form ('image')"),
        ("l.json", '{"a": null}', "has not the expected form"),
        ("l.json", "{", 'expected {"cat1.jpg": ["cat"]}'),
        ("l.json", "3", "has not the expected form"),
    ],
)
def test_bad_label_file(tmp_path, name, text, said):
    path = write(tmp_path / name, text)
    with pytest.raises(WSSSError) as caught:
        read_label_file(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_missing_and_unreadable_label_file(tmp_path):
    path = tmp_path / "l.csv"
    with pytest.raises(WSSSError, match=r"l\.csv does not exist; `wsss-affinity mode=template"):
        read_label_file(path)
    path.write_bytes(b"image,labels\n\xff\xfe,cat\n")
    with pytest.raises(WSSSError, match=r"l\.csv cannot be read .*; save it as UTF-8 text"):
        read_label_file(path)


def test_voc_objects(tmp_path):
    path = write(
        tmp_path / "a.xml",
        "<annotation><object><name>dog</name><part><name>head</name></part></object>"
        "<object><name> cat </name></object><object><name>dog</name></object></annotation>",
    )
    assert read_voc_objects(path) == ["dog", "cat"]


def test_bad_annotation(tmp_path):
    path = tmp_path / "a.xml"
    with pytest.raises(WSSSError, match=r"a\.xml does not exist; restore it, or give labels_csv"):
        read_voc_objects(path)
    write(path, "<annotation>")
    with pytest.raises(WSSSError, match=r"a\.xml cannot be read as XML .*; replace it"):
        read_voc_objects(path)


def test_template_is_filled_in_and_read(tmp_path):
    path = tmp_path / "l.csv"
    write_template(path, ["a.jpg", "b, c.jpg"])
    assert path.read_text() == 'image,labels\na.jpg,\n"b, c.jpg",\n'
    assert read_label_file(path) == {"a.jpg": [], "b, c.jpg": []}


def test_template_does_not_overwrite(tmp_path):
    path = write(tmp_path / "l.csv", "mine")
    with pytest.raises(WSSSError, match=r"l\.csv exists already; move it away"):
        write_template(path, ["a.jpg"])
    assert path.read_text() == "mine"
