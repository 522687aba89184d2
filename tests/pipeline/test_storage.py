import io
import os
import pickle
import signal
import tarfile
from multiprocessing import get_context
from urllib.parse import unquote

import numpy as np
import pytest

from wsss_affinity import world
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import shard, storage
from wsss_affinity.pipeline.storage import Records, record_writer

#: what a data set may call its images
ODD_IDS = (
    "2007_000032",
    "zurich/zurich_000000_000019",
    "v1.5/img.small.2",
    ".hidden",
    "__meta__/x",
    "per%2Ecent",
    "with space",
    "线条/ü",
    "a" * 180,
    "Upper.NPZ",
)


TEN = {f"{i}": bytes([i]) * 600 for i in range(10)}


def write(folder, records, format, suffix=".npz"):
    with record_writer(folder, suffix, format) as writer:
        for id, data in records.items():
            writer.write(id, data)


def tars(folder):
    return sorted(path.name for path in (folder / "shards").glob("*.tar"))


@pytest.mark.parametrize("format", storage.FORMATS)
def test_what_was_written_is_read(tmp_path, format):
    records = {id: bytes([number]) * (number * 300) for number, id in enumerate(ODD_IDS)}
    write(tmp_path, records, format)
    stored = Records(tmp_path, ".npz")
    assert {id: stored.read(id) for id in reversed(ODD_IDS)} == records
    assert [id in stored for id in ODD_IDS] == [True] * len(ODD_IDS)
    assert [id in stored for id in ("2007_000033", "zurich", "")] == [False] * 3
    assert (tmp_path / "2007_000032.npz").exists() == (format == "files")


@pytest.mark.parametrize("format", storage.FORMATS)
def test_a_record_that_is_not_there(tmp_path, format):
    write(tmp_path, {"a": b"1"}, format)
    with pytest.raises(WSSSError, match=r"b\.npz cannot be read \(No such file or directory\); re"):
        Records(tmp_path, ".npz").read("b")


def test_shards_are_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    records = {id: id.encode() for id in ODD_IDS}
    write(tmp_path, records, "shards")
    urls = [str(path) for path in (tmp_path / "shards").glob("*.tar")]
    found = webdataset.WebDataset(urls, shardshuffle=False)
    assert {unquote(s["__key__"]): s["npz"] for s in found} == records


def test_any_tar_reader_opens_a_shard(tmp_path):
    write(tmp_path, {"x/a.b": b"one", "y": b"two"}, "shards", ".png")
    with tarfile.open(tmp_path / "shards" / "0-000000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    assert members == {"x/a%2Eb.png": b"one", "y.png": b"two"}


def test_a_shard_is_full_by_count_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD_RECORDS", 4)
    write(tmp_path / "count", {f"{i}": b"" for i in range(10)}, "shards")
    assert tars(tmp_path / "count") == ["0-000000.tar", "0-000001.tar", "0-000002.tar"]
    monkeypatch.setattr(storage, "SHARD_BYTES", 100)
    write(tmp_path / "bytes", {f"{i}": bytes(50) for i in range(4)}, "shards")
    assert tars(tmp_path / "bytes") == ["0-000000.tar", "0-000001.tar"]


def test_the_same_records_give_the_same_bytes(tmp_path):
    records = {f"i{i}": os.urandom(700) for i in range(5)}
    for name in ("one", "two"):
        write(tmp_path / name, records, "shards")
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / name / "shards").iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert sorted(one) == ["0-000000.npy", "0-000000.tar"]


def test_a_later_run_goes_on_behind_whole_shards(tmp_path):
    write(tmp_path, {"a": b"1", "b": b"2"}, "shards")
    # what is there already is not stored twice
    write(tmp_path, {"b": b"2", "c": b"3"}, "shards")
    assert tars(tmp_path) == ["0-000000.tar", "0-000001.tar"]
    with tarfile.open(tmp_path / "shards" / "0-000001.tar") as tar:
        assert tar.getnames() == ["c.npz"]
    stored = Records(tmp_path, ".npz")
    assert [stored.read(id) for id in "abc"] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(("first", "second"), [("files", "shards"), ("shards", "files")])
def test_a_run_may_go_on_in_the_other_format(tmp_path, first, second):
    write(tmp_path, {"x/a": b"1"}, first)
    write(tmp_path, {"b": b"2"}, second)
    stored = Records(tmp_path, ".npz")
    assert ("x/a" in stored, "b" in stored, "c" in stored) == (True, True, False)
    assert (stored.read("x/a"), stored.read("b")) == (b"1", b"2")
    # a record in a file is not stored in a shard too
    shards = len(tars(tmp_path))
    write(tmp_path, {"x/a": b"1", "b": b"2"}, "shards")
    assert len(tars(tmp_path)) == shards


def test_an_error_keeps_finished_records(tmp_path):
    def work():
        with record_writer(tmp_path, ".png", "shards") as writer:
            writer.write("a", b"1")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert Records(tmp_path, ".png").read("a") == b"1"


def test_ranks_write_shards_of_their_own(tmp_path, monkeypatch):
    for rank, ids in ((0, "ace"), (10, "xyz"), (1, "bdf"), (1, "gh")):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        write(tmp_path, {id: id.encode() for id in ids}, "shards")
    assert tars(tmp_path) == ["0-000000.tar", "1-000000.tar", "1-000001.tar", "10-000000.tar"]
    stored = Records(tmp_path, ".npz")
    assert all(stored.read(id) == id.encode() for id in "acebdfghxyz")


def write_and_die(folder, count):
    """Write ten records and get killed before the ``count``-th rename."""
    replace, seen = os.replace, []

    def dying_replace(source, target):
        seen.append(target)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying_replace
    write(folder, TEN, "shards")


# before the second shard's index has its name, and between that and the shard's own
@pytest.mark.parametrize("count", [3, 4])
def test_a_kill_loses_the_shard_in_hand_alone(tmp_path, monkeypatch, count):
    monkeypatch.setattr(storage, "SHARD_RECORDS", 3)
    process = get_context("fork").Process(target=write_and_die, args=(tmp_path, count))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [id in Records(tmp_path, ".npz") for id in TEN] == [True] * 3 + [False] * 7
    write(tmp_path, TEN, "shards")
    left = sorted(p.name for p in (tmp_path / "shards").iterdir() if p.suffix != ".tmp")
    assert left == [f"0-00000{n}.{kind}" for n in range(4) for kind in ("npy", "tar")]
    stored = Records(tmp_path, ".npz")
    assert {id: stored.read(id) for id in TEN} == TEN


def test_a_full_disk_is_told_and_leaves_no_shard(tmp_path, monkeypatch):
    writer = record_writer(tmp_path, ".png", "shards")
    writer.write("a", b"1")

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WSSSError, match=r"0-000000\.npy: the disk is full; free some space"):
            writer.close()
    assert list((tmp_path / "shards").iterdir()) == []
    writer.close()  # nothing is lost if there is room again
    assert Records(tmp_path, ".png").read("a") == b"1"


def test_damage_is_told(tmp_path):
    write(tmp_path, {"a": bytes(5000)}, "shards")
    tar = tmp_path / "shards" / "0-000000.tar"
    tar.write_bytes(tar.read_bytes()[:4000])
    with pytest.raises(WSSSError, match=r"0-000000\.tar is damaged \(it ends before a\.npz does\)"):
        Records(tmp_path, ".npz").read("a")
    index = tar.with_suffix(".npy")
    index.write_bytes(b"nonsense")
    with pytest.raises(WSSSError, match=r"0-000000\.npy cannot be read .* remove the artefact's"):
        Records(tmp_path, ".npz").read("a")


@pytest.mark.parametrize("lost", ["0-000001.tar", "0-000001.npy"])
def test_what_was_in_a_damaged_shard_is_made_again(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(storage, "SHARD_RECORDS", 4)
    write(tmp_path, TEN, "shards")
    before = {p.name: p.read_bytes() for p in (tmp_path / "shards").iterdir()}
    (tmp_path / "shards" / lost).unlink()
    stored = Records(tmp_path, ".npz")
    assert [id for id in TEN if id not in stored] == ["4", "5", "6", "7"]
    write(tmp_path, TEN, "shards")
    assert {p.name: p.read_bytes() for p in (tmp_path / "shards").iterdir()} == before


def read_two(stored):
    return stored.read("0"), stored.read("7")


@pytest.mark.parametrize("format", storage.FORMATS)
def test_worker_processes_read(tmp_path, format):
    write(tmp_path, {f"{i}": bytes([i]) for i in range(9)}, format)
    stored = Records(tmp_path, ".npz")
    assert "3" in stored  # looked up here; the copy looks up for itself
    assert vars(pickle.loads(pickle.dumps(stored))) == {"folder": tmp_path, "suffix": ".npz"}
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(read_two, (stored,)) == (b"\0", b"\7")


def test_an_index_takes_forty_bytes_a_record(tmp_path):
    write(tmp_path, {f"{i}": b"" for i in range(1000)}, "shards")
    stored = Records(tmp_path, ".npz")
    assert "5" in stored
    _, keys, rows = stored._index
    assert keys.nbytes + rows.nbytes == 40_000


def test_every_key_is_found_also_one_that_ends_in_zero(tmp_path):
    # one key in 256 does
    ids = [f"image {i}" for i in range(2000)]
    assert any(len(shard.key(id)) < 16 for id in ids)
    write(tmp_path, {id: id.encode() for id in ids}, "shards")
    stored = Records(tmp_path, ".npz")
    assert all(id in stored and stored.read(id) == id.encode() for id in ids)
    assert not any(f"picture {i}" in stored for i in range(2000))


def test_arrays_pass_through(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, scores=np.arange(6.0).reshape(2, 3))
    write(tmp_path, {"a": buffer.getvalue()}, "shards")
    with np.load(io.BytesIO(Records(tmp_path, ".npz").read("a"))) as arrays:
        assert arrays["scores"].tolist() == [[0, 1, 2], [3, 4, 5]]
