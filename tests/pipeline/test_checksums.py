import json
import os

import pytest

from wsss_affinity.pipeline import checksums as module
from wsss_affinity.pipeline.checksums import (
    RECORD,
    damaged_files,
    remove_leftovers,
    write_record,
)

FILES = {"a.txt": b"one", "masks/b.png": b"two", "masks/deep/é\n\t.png": b""}


@pytest.fixture
def artefact(tmp_path):
    """A complete artefact of three files."""
    folder = tmp_path / "key"
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    complete(folder)
    return folder


def complete(folder):
    content = write_record(folder)
    (folder / "manifest.json").write_text(json.dumps({"content": content}))
    return content


def test_sound_artefact(artefact):
    assert len((artefact / RECORD).read_text().splitlines()) == 3
    assert damaged_files(artefact) == []
    assert damaged_files(artefact, content=True) == []
    (artefact / "added.txt").touch()
    assert damaged_files(artefact, content=True) == []


def test_missing_shortened_and_changed_files_are_found(artefact):
    (artefact / "a.txt").write_bytes(b"on")
    (artefact / "masks/b.png").write_bytes(b"owt")
    (artefact / "masks/deep/é\n\t.png").unlink()
    assert damaged_files(artefact) == list(FILES)


def test_change_behind_the_back_of_size_and_time_is_found_by_content(artefact):
    path = artefact / "a.txt"
    stat = path.stat()
    path.write_bytes(b"eno")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert damaged_files(artefact) == []
    assert damaged_files(artefact, content=True) == ["a.txt"]


def test_copy_with_new_times_is_sound_and_hashed_once(artefact, monkeypatch):
    hashed = []
    real = module._sha256
    monkeypatch.setattr(module, "_sha256", lambda path: hashed.append(path) or real(path))
    for name in FILES:
        os.utime(artefact / name, ns=(1, 1))
    assert damaged_files(artefact) == []
    assert len(hashed) == 3
    assert damaged_files(artefact) == []  # the record has the new times now
    assert len(hashed) == 3


def test_hash_is_of_names_and_content_not_of_times(artefact):
    before = complete(artefact)
    os.utime(artefact / "a.txt", ns=(1, 1))
    assert complete(artefact) == before
    (artefact / "a.txt").write_bytes(b"eno")
    assert complete(artefact) != before
    (artefact / "a.txt").rename(artefact / "b.txt")
    (artefact / "b.txt").write_bytes(b"one")
    assert complete(artefact) != before


@pytest.mark.parametrize("damage", ["", "x\n", None])
def test_without_a_sound_record_nothing_is_trusted(artefact, damage):
    record = artefact / RECORD
    record.unlink()
    if damage is not None:
        record.write_text(damage)
    assert damaged_files(artefact) == [RECORD, *sorted(FILES)]


def test_changed_record_is_noticed(artefact):
    record = artefact / RECORD
    record.write_text(record.read_text().replace("a.txt", "c.txt"))
    assert damaged_files(artefact)[0] == RECORD


def test_artefact_of_the_time_before_records_passes(artefact):
    (artefact / RECORD).unlink()
    (artefact / "manifest.json").write_text("{}")
    (artefact / "a.txt").unlink()
    assert damaged_files(artefact) == []


@pytest.mark.parametrize("manifest", [None, "{", "[]"])
def test_unreadable_manifest_is_damage_and_the_record_counts_for_the_rest(artefact, manifest):
    (artefact / "manifest.json").unlink()
    if manifest is not None:
        (artefact / "manifest.json").write_text(manifest)
    assert damaged_files(artefact) == ["manifest.json"]
    (artefact / "a.txt").write_bytes(b"eno")
    assert damaged_files(artefact) == ["manifest.json", "a.txt"]


def test_what_vanishes_meanwhile_is_missing_and_no_error(artefact, tmp_path):
    (artefact / "a.txt").unlink()
    (artefact / "a.txt").symlink_to(tmp_path / "nowhere")
    (artefact / "added.txt").symlink_to(tmp_path / "nowhere")
    assert damaged_files(artefact) == ["a.txt"]
    assert damaged_files(tmp_path / "nowhere") == ["manifest.json", RECORD]


def test_leftovers_of_killed_writers_are_removed(artefact):
    (artefact / "masks" / ".b.png.12345678.tmp").touch()
    (artefact / "masks" / "c.tmp").touch()
    remove_leftovers(artefact)
    assert sorted(p.name for p in (artefact / "masks").iterdir()) == ["b.png", "c.tmp", "deep"]
