import numpy as np
import pytest
import torch

from wsss_affinity.data.images import mask_png
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import decode_arrays
from wsss_affinity.pipeline.scores import (
    best_labels,
    decode_scores,
    encode_scores,
    finish_scores,
    read_backgrounds,
    read_labels,
    read_scores,
    resize_scores,
)
from wsss_affinity.pipeline.storage import RecordWriter


def test_scores_survive_the_record(tmp_path):
    scores = torch.rand(2, 3, 4)
    writer = RecordWriter(tmp_path, ".npz")
    writer.write("x", encode_scores(torch.tensor([1, 5]), scores, (12, 16)))
    classes, read, size = read_scores(writer.stored, "x")
    assert classes.tolist() == [1, 5]
    assert size == (12, 16)
    assert torch.allclose(read, scores, atol=5e-4)
    assert resize_scores(read, size).shape == (2, 12, 16)
    assert resize_scores(read[:0], size).shape == (0, 12, 16)


def test_float32_is_exact_and_float16_is_not():
    scores = torch.tensor([[[1 / 3]]])
    for dtype, difference in (("float32", 0.0), ("float16", 1e-4)):
        data = encode_scores(torch.tensor([0]), scores, (1, 1), dtype=dtype)
        assert decode_arrays(data, "")["scores"].dtype == dtype
        found = (decode_scores(data, "")[1] - scores).abs().item()
        assert found <= difference
        assert (found > 0) == (dtype == "float16")


def test_further_backgrounds(tmp_path):
    writer, maps = RecordWriter(tmp_path, ".npz"), (torch.zeros(2, 1, 1), (1, 1))
    more = torch.full((3, 1, 1), 0.5)
    writer.write("x", encode_scores(torch.tensor([0]), *maps, backgrounds=more))
    assert read_backgrounds(writer.stored, "x").tolist() == [[[0.5]]] * 3
    writer.write("x", encode_scores(torch.tensor([0]), *maps))
    with pytest.raises(
        WSSSError, match=r"x\.npz holds no further background maps; run random_walk"
    ):
        read_backgrounds(writer.stored, "x")


def test_label_map_of_a_record(tmp_path):
    labels = np.array([[0, 3, 255]], dtype=np.uint8)
    writer = RecordWriter(tmp_path, ".png")
    writer.write("sub/x", mask_png(labels))
    assert read_labels(writer.stored, "sub/x").tolist() == labels.tolist()
    writer.write("sub/x", b"no image")
    with pytest.raises(WSSSError, match=r"^mask .*sub/x\.png cannot be read .*; replace it$"):
        read_labels(writer.stored, "sub/x")


def test_the_last_cell_may_reach_outside():
    scores = torch.tensor([[[1.0, 1.0, 0.0]]])
    finished = finish_scores(scores, (8, 20), 8)
    assert finished.shape == (1, 8, 20)
    # centres of the cells are at 4, 12 and 20
    assert finished[0, 0, :12].tolist() == [1.0] * 12
    assert finished[0, 0, 19].item() == pytest.approx(1 - 7.5 / 8)


@pytest.mark.parametrize(
    ("background", "classes", "expected"),
    [(True, [4], [[0, 5]]), (False, [4, 7], [[5, 8]])],
)
def test_best_labels(background, classes, expected):
    scores = torch.tensor([[[0.7, 0.1]], [[0.3, 0.9]]])
    labels = best_labels(scores, torch.tensor(classes), background)
    assert labels.dtype == np.uint8
    assert labels.tolist() == expected


def test_no_map_at_all():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert best_labels(torch.zeros(1, 1, 2), nothing, True).tolist() == [[0, 0]]
    assert best_labels(torch.zeros(0, 1, 2), nothing, False).tolist() == [[255, 255]]
