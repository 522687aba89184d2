import os
import time

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.inventory import Inventory
from wsss_affinity.pipeline.lock import locked


@pytest.fixture
def chain(tmp_path, add_artifact):
    """Two classifiers that differ in a rate, and walks over each."""
    for key, lr in (("c1", 0.1), ("c2", 0.2)):
        config = {"train_cam": {"lr": lr, "epochs": 3}}
        add_artifact(tmp_path, f"train_cam/{key}", config=config, size=1000)
    walks = (("w1", "c1", 8.0), ("w2", "c1", 4), ("w3", "c2", 8.0), ("w4", "c2", 8))
    for key, classifier, beta in walks:
        config = {"walk": {"beta": beta, "crf": {}, "alphas": [1, 2]}}
        add_artifact(tmp_path, f"random_walk/{key}", f"train_cam/{classifier}", config=config)
    return tmp_path


def test_what_there_is(chain):
    found = Inventory.of(chain).artifacts
    assert list(found) == [f"random_walk/w{n}" for n in "1234"] + ["train_cam/c1", "train_cam/c2"]
    classifier = found["train_cam/c1"]
    assert classifier.needed_by == ("random_walk/w1", "random_walk/w2")
    assert found["random_walk/w3"].inputs == {"train_cam": "train_cam/c2"}
    files = [p for p in classifier.path.iterdir() if p.is_file()]
    assert len(files) == 3  # weights, manifest, checksums
    assert classifier.size == sum(p.stat().st_size for p in files) > 1000
    assert 0 <= classifier.age < 60
    assert (classifier.state, classifier.busy) == ("complete", None)
    manifest = classifier.path / "manifest.json"
    os.utime(manifest, (time.time() - 7200,) * 2)
    assert classifier.age == pytest.approx(7200, abs=60)
    os.utime(manifest, (time.time() + 7200,) * 2)  # a clock that was set back
    assert classifier.age == 0
    assert Inventory.of(chain / "nothing").artifacts == {}


def test_unfinished_locked_damaged(chain):
    def artifact():
        return Inventory.of(chain).artifacts["train_cam/c1"]

    partial = chain / "artifacts" / "train_cam" / "c1.forced.partial"
    partial.mkdir()
    (partial / "x").write_bytes(b"x" * 5000)
    assert (artifact().state, artifact().busy) == ("unfinished", "unfinished")
    assert artifact().size > 6000
    (partial / "x").unlink()
    partial.rmdir()
    with locked(artifact().lock, "it", print):
        assert artifact().busy.startswith(f"in the hands of process {os.getpid()} on ")
    assert artifact().busy is None
    manifest = artifact().path / "manifest.json"
    manifest.write_text("{")
    assert (artifact().state, artifact().busy) == ("damaged", "damaged")
    manifest.unlink()
    assert (artifact().state, artifact().busy) == ("unfinished", "unfinished")
    artifact().path.rename(partial.with_name("c1.partial"))
    assert (artifact().state, artifact().busy) == ("unfinished", "unfinished")
    partial.with_name("c1.partial").rename(partial.with_name("c1.old"))
    assert artifact().busy is None  # deleting it was begun
    assert artifact().size > 1000


def test_found_by_its_beginning(chain, add_artifact):
    inventory = Inventory.of(chain)
    assert inventory.find("w3").name == "random_walk/w3"
    assert inventory.find("train_cam/c2").name == "train_cam/c2"
    with pytest.raises(WSSSError, match=r"'w' begins the names of 4 \(random_walk/w1, .*; give"):
        inventory.find("w")
    with pytest.raises(WSSSError, match=r"'z' begins the name of no artefact; see --artifacts"):
        inventory.find("z")
    add_artifact(chain, "train_cam/c11")
    assert Inventory.of(chain).find("c1").name == "train_cam/c1"  # the whole of a name


def test_why_the_nearest_was_not_reused(chain):
    inventory = Inventory.of(chain)
    found = inventory.artifacts
    # 8 and 8.0 have different fingerprints
    other, differences = inventory.nearest(found["random_walk/w3"])
    assert (other.key, differences) == ("w1", {"train_cam.lr": ("0.2", "0.1")})
    assert inventory.differences(found["random_walk/w3"], found["random_walk/w4"]) == {
        "walk.beta": ("8.0", "8")
    }
    # what an input was made with is told instead of its name
    assert inventory.differences(found["random_walk/w2"], found["random_walk/w3"]) == {
        "walk.beta": ("4", "8.0"),
        "train_cam.lr": ("0.1", "0.2"),
    }


def test_an_input_that_is_gone_or_differs_in_the_images_alone_is_named(chain, add_artifact):
    config = {"train_cam": {"lr": 0.1, "epochs": 3}}
    add_artifact(chain, "train_cam/c3", config=config)
    walk = {"walk": {"beta": 8.0, "crf": {}, "alphas": [1, 2]}}
    add_artifact(chain, "random_walk/w5", "train_cam/c3", config=walk)
    add_artifact(chain, "random_walk/w6", "train_cam/c9", config=walk)
    inventory = Inventory.of(chain)
    found = inventory.artifacts
    for key, classifier in (("w5", "c3"), ("w6", "c9")):
        expected = {"input train_cam": (f"train_cam/{classifier}", "train_cam/c1")}
        here = found[f"random_walk/{key}"]
        assert inventory.differences(here, found["random_walk/w1"]) == expected
    assert inventory.nearest(found["train_cam/c3"]) == (found["train_cam/c1"], {})
    add_artifact(chain, "evaluate/e1")
    inventory = Inventory.of(chain)
    assert inventory.nearest(inventory.artifacts["evaluate/e1"]) is None


def test_settings_by_their_keys(chain):
    settings = Inventory.of(chain).artifacts["random_walk/w1"].settings
    assert settings == {
        "walk.beta": "8.0",
        "walk.crf": "{}",
        "walk.alphas": "[1, 2]",
        "data.classes": '["cat"]',
    }
