import errno
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import decode_arrays, encode_arrays, make_directory, write_bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_bytes_makes_parents_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "it is read-only; choose a writable output_dir"),
        (errno.EACCES, "it is read-only; choose a writable output_dir"),
        (errno.EIO, "Input/output error; mend that"),
    ],
)
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, code, said):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def half_written(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(WSSSError) as caught:
        write_bytes(path, b"something new")
    assert str(caught.value).startswith(f"cannot write {path}: {said} and run")
    assert "finished work is kept" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, data):
        self.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file.bin", b"x")
    assert names(tmp_path) == []


def test_failed_rename_leaves_nothing(tmp_path):
    target = tmp_path / "taken"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(WSSSError, match=r"cannot write .*taken"):
        write_bytes(target, b"x")
    assert names(tmp_path) == ["taken"]


def test_make_directory(tmp_path):
    assert make_directory(tmp_path / "a" / "b").is_dir()
    assert make_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(WSSSError, match=r"cannot write .*file.*: (File exists|Not a directory)"):
        make_directory(tmp_path / "file")


def test_make_directory_on_a_read_only_disk(tmp_path, monkeypatch):
    def refuse(self, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WSSSError, match="it is read-only; choose a writable output_dir"):
        make_directory(tmp_path / "out")


def test_arrays_come_back(tmp_path):
    arrays = {
        "scores": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        "none": np.zeros((0, 4), dtype=np.int16),
    }
    back = decode_arrays(encode_arrays(arrays), "a.npz")
    assert list(back) == ["scores", "none"]
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(WSSSError, match=r"a\.npz is damaged .*allow_pickle"):
        decode_arrays(path.read_bytes(), path)


def cut(data):
    return data[:-40]


def flip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.getinfo("x.npy").header_offset
    flipped = bytearray(data)
    flipped[start + 300] ^= 0xFF
    return bytes(flipped)


def empty(data):
    return b""


def text(data):
    return b"this is no archive"


@pytest.mark.parametrize("damage", [cut, flip, empty, text])
def test_damaged_archive_is_an_error(damage):
    data = damage(encode_arrays({"x": np.arange(500)}))
    with pytest.raises(WSSSError) as caught:
        decode_arrays(data, "a.npz")
    assert str(caught.value).startswith("a.npz is damaged (")
    assert str(caught.value).endswith("remove the artefact's folder and run again")


def test_compressed_arrays_come_back():
    arrays = {"x": np.zeros(5000)}
    data = encode_arrays(arrays, compress=True)
    assert len(data) < len(encode_arrays(arrays)) / 10
    np.testing.assert_array_equal(decode_arrays(data, "")["x"], arrays["x"])
