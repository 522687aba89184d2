"""Image-level labels from CSV, JSON and PASCAL VOC's XML."""

from __future__ import annotations

import csv
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsss_affinity.data.source import check_unique
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes

_NAME_COLUMNS = ("image", "id", "filename", "file")


def read_label_file(path: Path) -> dict[str, list[str]]:
    """Read image-level labels by image name.

    A CSV has a header with a column ``image`` (or ``id``) and a column ``labels`` whose cells hold
    class names separated by semicolons, or by spaces where there is no semicolon. A JSON holds
    either ``{"cat1.jpg": ["cat"]}`` or ``[{"image": "cat1.jpg", "labels": ["cat"]}]``.

    Returns:
        Label names by image name, in the order of the file; an empty list where there are none.

    Raises:
        WSSSError: If the file is missing or of another form, or names an image twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise WSSSError(
            f"label file {path} does not exist; `wsss-affinity mode=template data.root=<folder>` "
            "writes one to fill in"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise WSSSError(
            f"label file {path} cannot be read ({error}); save it as UTF-8 text"
        ) from error
    rows = _from_json(text, path) if path.suffix.lower() == ".json" else _from_csv(text, path)
    labels: dict[str, list[str]] = {}
    for where, name, names in rows:
        if name in labels:
            raise WSSSError(f"{path}, {where}: id {name!r} is listed twice; remove one of the two")
        labels[name] = names
    return labels


def _from_csv(text: str, path: Path) -> Iterable[tuple[str, str, list[str]]]:
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    key = next((c for c in _NAME_COLUMNS if c in columns), None)
    if key is None or "labels" not in columns:
        raise WSSSError(
            f"label file {path} has the columns {', '.join(columns) or '(none)'}; expected a "
            "header line `image,labels`"
        )
    for row in reader:
        if row.get(None):
            raise WSSSError(
                f"{path}, line {reader.line_num}: more cells than the header has; separate labels "
                "by semicolons or spaces"
            )
        cell = row["labels"] or ""
        parts = cell.split(";") if ";" in cell else cell.split()
        # one string for a name, however many images have it
        names = [sys.intern(part.strip()) for part in parts if part.strip()]
        yield f"line {reader.line_num}", (row[key] or "").strip(), names


def _from_json(text: str, path: Path) -> Iterable[tuple[str, str, list[str]]]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        check_unique(names, str(path))
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=distinct)
        if isinstance(content, dict):
            pairs = [(str(name), names) for name, names in content.items()]
        else:
            pairs = [(str(entry["image"]), entry["labels"]) for entry in content]
        for number, (name, names) in enumerate(pairs, start=1):
            if isinstance(names, str):
                raise TypeError(f"the labels of {name} are no list")
            yield f"entry {number}", name, [str(n) for n in names]
    except (ValueError, KeyError, TypeError) as error:
        raise WSSSError(
            f"label file {path} has not the expected form ({error}); expected "
            '{"cat1.jpg": ["cat"]} or [{"image": "cat1.jpg", "labels": ["cat"]}]'
        ) from error


def read_voc_objects(path: Path) -> list[str]:
    """Names of the objects in an annotation file of PASCAL VOC, each once, in order.

    Raises:
        WSSSError: If the file is missing or no such XML.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise WSSSError(f"annotation {path} does not exist; restore it, or give labels_csv") from (
            None
        )
    except (OSError, ElementTree.ParseError) as error:
        raise WSSSError(
            f"annotation {path} cannot be read as XML ({error}); replace it, or give labels_csv"
        ) from error
    names = [(node.findtext("name") or "").strip() for node in root.iter("object")]
    return list(dict.fromkeys(name for name in names if name))


def write_template(path: Path, images: Iterable[str]) -> None:
    """Write a CSV with a line for each image and an empty ``labels`` column.

    Raises:
        WSSSError: If the file exists already.
    """
    if path.exists():
        raise WSSSError(f"{path} exists already; move it away, it is not overwritten")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "labels"])
    writer.writerows([name, ""] for name in images)
    write_bytes(path, buffer.getvalue().encode())
