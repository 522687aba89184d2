import json
import multiprocessing
import time

import pytest
import torch.distributed as dist

from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.artifact import (
    ArtifactStore,
    file_fingerprint,
    fingerprint,
    samples_fingerprint,
)


def test_fingerprint_ignores_order_of_keys_only():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})
    assert fingerprint({"beta": 8.0}) != fingerprint({"beta": 4.0})


def test_file_fingerprint_is_of_the_content(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "c").write_bytes(b"other")
    assert file_fingerprint(tmp_path / "a") == file_fingerprint(tmp_path / "b")
    assert file_fingerprint(tmp_path / "a") != file_fingerprint(tmp_path / "c")
    with pytest.raises(WSSSError, match="No such file"):
        file_fingerprint(tmp_path / "d")


def test_samples_fingerprint_follows_labels_and_sizes_not_paths(tmp_path):
    def sample(folder, content=b"12345", labels=(0,)):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "x.jpg"
        path.write_bytes(content)
        return Sample("x", path, labels, mask=path)

    base = samples_fingerprint([sample("one")])
    assert samples_fingerprint([sample("two")]) == base
    assert samples_fingerprint([sample("one", labels=(1,))]) != base
    assert samples_fingerprint([sample("one", content=b"123456")]) != base
    without, with_masks = base
    assert without != with_masks
    bare = Sample("x", tmp_path / "two" / "x.jpg", (0,))
    assert samples_fingerprint([bare]) == (without, without)


def build(work):
    (work / "result.txt").write_text("done")
    return {"value": 3}


def test_made_once_then_reused(tmp_path):
    store = ArtifactStore(tmp_path)
    path, made, told = store.make("stage", "key", build, {"config": {"a": 1}})
    assert made
    assert path == tmp_path / "stage" / "key"
    manifest = store.manifest("stage", "key")
    assert told == manifest
    assert manifest["metrics"] == {"value": 3}
    assert manifest["config"] == {"a": 1}
    assert manifest["versions"]["torch"]
    assert not manifest["resumed"]
    assert manifest["attempts"] == 1
    assert store.make("stage", "key", build, {}) == (path, False, manifest)


def test_failure_leaves_partial_work_and_no_artefact(tmp_path):
    store = ArtifactStore(tmp_path)

    def fail(work):
        (work / "half.txt").write_text("half")
        raise WSSSError("no")

    with pytest.raises(WSSSError, match="no"):
        store.make("stage", "key", fail, {})
    assert not store.has("stage", "key")

    def go_on(work):
        assert (work / "half.txt").read_text() == "half"
        return {}

    store.make("stage", "key", go_on, {})
    assert store.manifest("stage", "key")["resumed"]
    assert (tmp_path / "stage" / "key" / "half.txt").exists()


def test_force_keeps_the_old_one_until_the_new_one_is_whole(tmp_path):
    store = ArtifactStore(tmp_path)
    store.make("stage", "key", build, {})

    def fail(work):
        raise WSSSError("no")

    with pytest.raises(WSSSError):
        store.make("stage", "key", fail, {}, force=True)
    assert (tmp_path / "stage" / "key" / "result.txt").read_text() == "done"

    def other(work):
        (work / "result.txt").write_text("new")
        return {}

    store.make("stage", "key", other, {}, force=True)
    assert (tmp_path / "stage" / "key" / "result.txt").read_text() == "new"
    assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == ["key"]


def slow_build(work):
    with (work / "runs.txt").open("a") as file:
        file.write("run\n")
    time.sleep(0.5)
    return {}


def make_in_process(root, queue):
    said = []
    _, made, _ = ArtifactStore(root).make("stage", "key", slow_build, {}, say=said.append)
    queue.put((made, said))


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=make_in_process, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = sorted((queue.get(timeout=60) for _ in processes), key=lambda r: r[0])
    for process in processes:
        process.join()
    assert [made for made, _ in results] == [False, True]
    assert (tmp_path / "stage" / "key" / "runs.txt").read_text() == "run\n"
    assert "another process is making" in results[0][1][0]
    assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == ["key"]


def share(root, rank, queue):
    """One of two processes that share a run."""
    dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)

    def build(work):
        (work / f"{rank}.txt").write_text("")
        return {"rank": rank}

    store = ArtifactStore(root / "artifacts")
    try:
        path, made, _ = store.make("stage", "key", build, {})
        again = store.make("stage", "key", build, {})
        queue.put((rank, sorted(p.name for p in path.glob("*.txt")), made, again[1]))
    except WSSSError as error:
        queue.put((rank, str(error)))
    dist.destroy_process_group()


def shared(root):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=share, args=(root, r, queue)) for r in range(2)]
    for process in processes:
        process.start()
    results = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return results


def test_processes_of_one_run_build_together_and_the_first_commits(tmp_path):
    results = shared(tmp_path)
    assert results == [(rank, ["0.txt", "1.txt"], True, False) for rank in (0, 1)]
    assert ArtifactStore(tmp_path / "artifacts").manifest("stage", "key")["metrics"] == {"rank": 0}


def test_an_error_of_the_first_process_reaches_all(tmp_path):
    (tmp_path / "artifacts").touch()  # a file where the folder should be
    results = shared(tmp_path)
    assert [rank for rank, _ in results] == [0, 1]
    assert all("cannot write" in message for _, message in results)


def test_damaged_manifest_is_named(tmp_path):
    store = ArtifactStore(tmp_path)
    path, *_ = store.make("stage", "key", build, {})
    (path / "manifest.json").write_text("{")
    with pytest.raises(WSSSError, match=r"manifest.json cannot be read"):
        store.manifest("stage", "key")


def test_manifest_is_valid_json(tmp_path):
    path, *_ = ArtifactStore(tmp_path).make("stage", "key", build, {})
    assert json.loads((path / "manifest.json").read_text())["fingerprint"] == "key"
