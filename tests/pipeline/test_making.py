import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from wsss_affinity import interrupt, world
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline import lock
from wsss_affinity.pipeline.artifact import ArtifactStore
from wsss_affinity.pipeline.checksums import ATTEMPTS, RECORD, damaged_files
from wsss_affinity.pipeline.storage import Records, record_writer

NAMES = [f"{number}.png" for number in range(5)]
fork = multiprocessing.get_context("fork")


class Build:
    """A stage that makes one file a name, keeps what is there, and notes what it made."""

    def __init__(self):
        self.made = []

    def __call__(self, work):
        for name in NAMES:
            if not (work / "masks" / name).exists():
                write_bytes(work / "masks" / name, name.encode())
                self.made.append(name)
        return {"images": len(NAMES)}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


@pytest.fixture
def complete(store):
    path, made, _ = store.make("stage", "key", Build(), {})
    assert made
    return path


def content(folder):
    """Of all files below a folder but those that hold times, by name."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {n: (folder / n).read_bytes() for n in names if n not in (RECORD, "manifest.json")}


def folders(store):
    return sorted(p.name for p in (store.root / "stage").iterdir())


def test_damaged_files_alone_are_made_again(store, complete):
    before, manifest = content(complete), store.manifest("stage", "key")
    (complete / "masks" / "1.png").write_bytes(b"5.png")
    (complete / "masks" / "3.png").unlink()
    os.utime(complete / "masks" / "4.png", ns=(1, 1))  # only looks changed
    build, said = Build(), []
    assert store.make("stage", "key", build, {}, say=said.append)[:2] == (complete, True)
    assert build.made == ["1.png", "3.png"]
    (message,) = said
    assert message == (
        f"{complete} is damaged (masks/1.png, masks/3.png missing or changed since it was made); "
        "making that again"
    )
    assert content(complete) == before
    assert folders(store) == ["key"]
    after = store.manifest("stage", "key")
    assert after["content"] == manifest["content"]
    assert after["resumed"]
    assert store.make("stage", "key", pytest.fail, {}, say=pytest.fail)[:2] == (complete, False)


@pytest.mark.parametrize("content", [None, "{"])
def test_damaged_manifest_is_made_again(store, complete, content):
    manifest = complete / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    build, said = Build(), []
    store.make("stage", "key", build, {}, say=said.append)
    assert build.made == []
    assert "is damaged (manifest.json missing or changed" in said[0]
    assert store.manifest("stage", "key")["metrics"] == {"images": 5}


def test_without_its_record_all_is_made_again(store, complete):
    (complete / RECORD).unlink()
    build, said = Build(), []
    store.make("stage", "key", build, {}, say=said.append)
    assert build.made == NAMES
    assert f"({RECORD}, masks/0.png, masks/1.png and 3 more missing" in said[0]


def test_artefact_of_the_time_before_records_is_kept(store, complete):
    (complete / RECORD).unlink()
    manifest = json.loads((complete / "manifest.json").read_text())
    del manifest["content"]
    (complete / "manifest.json").write_text(json.dumps(manifest))
    (complete / "masks" / "1.png").unlink()
    assert store.make("stage", "key", pytest.fail, {})[:2] == (complete, False)


@pytest.mark.parametrize("step", range(1, 5))
def test_killed_while_a_damaged_one_is_put_back(store, complete, step, monkeypatch):
    """After each of its steps: two removals, the manifest's, the new name."""
    before = content(complete)
    (complete / "masks" / "1.png").write_bytes(b"x")
    (complete / "masks" / "3.png").write_bytes(b"x")
    steps = []

    def dies(real):
        def call(path, *args, **kwargs):
            if str(path).startswith(f"{complete}/") or path == complete:
                if len(steps) == step:
                    raise KeyboardInterrupt
                steps.append(path)
            return real(path, *args, **kwargs)

        return call

    monkeypatch.setattr("pathlib.Path.unlink", dies(type(complete).unlink))
    monkeypatch.setattr("os.replace", dies(os.replace))
    if step < 4:
        with pytest.raises(KeyboardInterrupt):
            store.make("stage", "key", Build(), {}, say=print)
    else:
        with pytest.raises(ZeroDivisionError):
            store.make("stage", "key", lambda work: 1 / 0, {}, say=print)
    monkeypatch.undo()
    build = Build()
    store.make("stage", "key", build, {}, say=print)
    assert build.made == ["1.png", "3.png"]
    assert content(complete) == before
    assert folders(store) == ["key"]


def test_forced_begins_anew_and_goes_on_where_it_was_interrupted(store, tmp_path):
    old = tmp_path / "stage" / "key.partial" / "masks" / "0.png"
    write_bytes(old, b"of an earlier try")

    class Stopped(Build):
        def __call__(self, work):
            write_bytes(work / "masks" / "0.png", b"0.png")
            raise interrupt.Interrupted

    with pytest.raises(interrupt.Interrupted):
        store.make("stage", "key", Stopped(), {}, force=True)
    assert folders(store) == ["key.forced.partial", "key.partial"]
    build = Build()
    path, *_ = store.make("stage", "key", build, {}, force=True)
    assert build.made == NAMES[1:]
    assert (path / "masks" / "0.png").read_bytes() == b"0.png"
    assert folders(store) == ["key"]
    assert store.manifest("stage", "key")["attempts"] == 2


@pytest.mark.parametrize("call", [1, 2])
def test_killed_while_a_forced_one_replaces_the_old(store, complete, call, monkeypatch):
    def build(work):
        write_bytes(work / "new.txt", b"new")
        return {}

    real, moved = os.replace, []

    def dies(source, target):
        if str(target).endswith(("key", "key.old")):
            moved.append(target)
            if len(moved) == call:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        store.make("stage", "key", build, {}, force=True)
    monkeypatch.undo()
    store.make("stage", "key", pytest.fail, {}, force=True)
    assert (complete / "new.txt").exists()
    assert folders(store) == ["key"]


@pytest.mark.parametrize("kind", ["tar", "npy"])
def test_half_of_a_shard_goes_when_fewer_processes_make_it_again(store, monkeypatch, kind):
    def build(work):
        with record_writer(work / "masks", ".png", "shards") as writer:
            for name in "ab":
                writer.write(name, name.encode())
        return {}

    monkeypatch.setattr(world, "rank", lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr("wsss_affinity.pipeline.artifact.led", lambda function: function())
        path, *_ = store.make("stage", "key", build, {})
    (path / "masks" / "shards" / f"2-000000.{kind}").write_bytes(b"damaged")
    monkeypatch.setattr(world, "rank", lambda: 0)
    store.make("stage", "key", build, {}, say=print)
    shards = path / "masks" / "shards"
    assert sorted(p.name for p in shards.iterdir()) == ["0-000000.npy", "0-000000.tar"]
    assert Records(path / "masks", ".png").read("b") == b"b"


@pytest.mark.parametrize("late", [False, True])
def test_reader_comes_while_a_forced_one_replaces_the_old(store, complete, monkeypatch, late):
    """Between the two renames nothing is there; the reader waits for the lock."""
    away = complete.with_name("key.away")
    manifest = store.manifest("stage", "key")

    def look(directory):
        first = not steps
        steps.append("look")
        damaged = damaged_files(directory) if late else None
        if first:
            os.replace(complete, away)
        return damaged_files(directory) if damaged is None else damaged

    @contextmanager
    def wait(*_):
        steps.append("wait")
        os.replace(away, complete)
        yield

    steps = []
    monkeypatch.setattr("wsss_affinity.pipeline.making.damaged_files", look)
    monkeypatch.setattr("wsss_affinity.pipeline.making.locked", wait)
    assert store.make("stage", "key", pytest.fail, {}) == (complete, False, manifest)
    assert steps == ["look", "wait", "look"]


def slow_build(work):
    write_bytes(work / "0.txt", b"")
    time.sleep(60)


def test_owner_that_was_killed_is_succeeded_and_its_time_counts(store, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    process = fork.Process(target=store.make, args=("stage", "key", slow_build, {}))
    process.start()
    note = store.root / "stage" / "key.partial" / ATTEMPTS
    deadline = time.monotonic() + 30
    while not (note.exists() and json.loads(note.read_text())["seconds"] > 0.3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    said = []
    path, made, _ = store.make("stage", "key", Build(), {}, say=said.append)
    process.join()
    assert made
    assert (path / "0.txt").exists()
    assert said[-1].startswith(f"process {process.pid} on ")
    manifest = store.manifest("stage", "key")
    assert manifest["attempts"] == 2
    assert manifest["resumed"]
    assert 0.3 < manifest["wall_time_s"] < 30


def test_owner_whose_lock_was_taken_stops_and_commits_nothing(store, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)

    def build(work):
        (key,) = (store.root / "stage").glob("key.lock")
        token = json.loads(key.read_text())["token"]
        stolen = json.loads(key.read_text()) | {"token": "other"}
        key.with_name(f"key.lock.{token}").write_text(json.dumps(stolen))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # as a stage does between two images
            interrupt.check()
            time.sleep(0.01)

    with pytest.raises(WSSSError, match=r"key was taken over by another process.*run the same"):
        store.make("stage", "key", build, {})
    assert not interrupt.requested()
    assert not store.has("stage", "key")
    assert len(list((store.root / "stage").glob("key.lock*"))) == 2


def test_lock_lost_at_the_very_end(store):
    def build(work):
        (store.root / "stage" / "key.lock").unlink()
        return {}

    with pytest.raises(WSSSError, match="was taken over"):
        store.make("stage", "key", build, {})
    assert not store.has("stage", "key")


def test_a_stop_that_was_asked_for_stays_one(store):
    def build(work):
        raise interrupt.Interrupted

    with pytest.raises(interrupt.Interrupted):
        store.make("stage", "key", build, {})
    assert folders(store) == ["key.partial"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system may not be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path):
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def test_full_disk_is_one_sentence_and_goes_on_when_there_is_room(small_disk):
    (small_disk / "other").write_bytes(bytes(160 * 1024))
    store, data = ArtifactStore(small_disk / "artifacts"), os.urandom(8 * 1024)

    def build(work):
        for number in range(20):
            path = work / f"{number}.png"
            if not path.exists():
                write_bytes(path, data)
        return {}

    made = []
    for _ in range(2):  # the second time there is no room even for its lock
        with pytest.raises(WSSSError, match=r"^cannot write .*: the disk is full; free some space"):
            store.make("stage", "key", build, {})
        partial = small_disk / "artifacts" / "stage" / "key.partial"
        made.append({p.name for p in partial.glob("*.png")})
        assert 5 < len(made[-1]) < 15
        assert all((partial / name).read_bytes() == data for name in made[-1])
        assert not list(partial.glob("*.tmp"))
        assert not store.has("stage", "key")
        assert not list(partial.parent.glob("key.lock*"))
        fill(small_disk / "rest")
    assert made[0] == made[1]

    (small_disk / "rest").unlink(missing_ok=True)
    (small_disk / "other").unlink()
    path, *_ = store.make("stage", "key", build, {})
    assert len(list(path.glob("*.png"))) == 20
    assert damaged_files(path, content=True) == []
    assert store.manifest("stage", "key")["resumed"]


def test_waiters_do_not_wait_for_a_reader(store, complete):
    """What is there is reused without the lock."""
    with lock.locked(complete.with_name("key.lock"), "it", print):
        done = []
        thread = threading.Thread(
            target=lambda: done.append(store.make("stage", "key", pytest.fail, {})[:2])
        )
        thread.start()
        thread.join(10)
        assert done == [(complete, False)]
