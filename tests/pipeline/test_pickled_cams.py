import os

import numpy as np
import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.foreign_cams import read_cams
from wsss_affinity.pipeline.pickled_cams import convert_cams

CLASSES = tuple("abcdefgh")


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_psa_and_irn(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    maps = np.random.default_rng(0).random((2, 5, 6), dtype=np.float32)
    np.save(tmp_path / "in/psa.npy", {3: maps[0], np.int64(7): np.asfortranarray(maps[1])})
    irn = {"keys": torch.tensor([1, 4]), "cam": torch.rand(2, 3, 3), "high_res": maps}
    np.save(tmp_path / "in/sub/irn.npy", irn)
    assert convert_cams(tmp_path / "in", tmp_path / "out") == 2
    for name, labels in (("psa", (3, 7)), ("sub/irn", (1, 4))):
        found = read_cams(tmp_path / "out" / f"{name}.npz", CLASSES)
        assert tuple(found) == labels
        assert np.array_equal(np.stack(list(found.values())), maps)


@pytest.mark.parametrize("wrap", [lambda harm: {0: harm}, lambda harm: harm])
def test_nothing_is_run(tmp_path, wrap):
    np.save(tmp_path / "x.npy", np.array(wrap(Harm(tmp_path / "harm")), dtype=object))
    with pytest.raises(WSSSError, match=r"x.npy is no dictionary of maps .*it holds .*mkdir"):
        convert_cams(tmp_path, tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_tensors_are_unpickled_as_carefully(tmp_path):
    class Tensor:  # claims to be the storage of one
        def __reduce__(self):
            import io
            import pickle

            data = io.BytesIO()
            pickle.dump(Harm(tmp_path / "harm"), data, protocol=2)
            return torch.storage._load_from_bytes, (data.getvalue(),)

    np.save(tmp_path / "x.npy", {0: Tensor()})
    with pytest.raises(WSSSError, match=r"no dictionary of maps .*[Ww]eights.only"):
        convert_cams(tmp_path, tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_other_files(tmp_path):
    with pytest.raises(WSSSError, match=r"holds no .npy file; give the folder of the maps"):
        convert_cams(tmp_path, tmp_path / "out")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(WSSSError, match=r"x.npy is no dictionary of maps as PSA or IRN write"):
        convert_cams(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: {1: np.zeros((2, 3))}}, r"x.npy .* for 0 the shape \(\) and type object, after \[\]"),
        (
            {3: np.zeros((1, 2, 3))},
            r"one map \(h, w\) a class, got for 3 the shape \(1, 2, 3\) and",
        ),
        (
            {"keys": np.array([1, 4, 1]), "high_res": np.zeros((3, 2, 2))},
            r"got for 1 the shape \(2, 2\) and type float64, after \[1, 4\]\); remove it",
        ),
    ],
)
def test_what_is_no_map(tmp_path, content, message):
    np.save(tmp_path / "x.npy", content)
    with pytest.raises(WSSSError, match=message):
        convert_cams(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
