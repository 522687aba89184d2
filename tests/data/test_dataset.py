import numpy as np
import pytest
import torch
from PIL import Image

from wsss_affinity.data import Sample, TrainTransform, WSSSDataset
from wsss_affinity.data.dataset import EpochSampler, item_seed, label_vector


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
        made.append(Sample(str(index), path, (0, 2) if index else ()))
    return made


def dataset(samples, **options):
    transform = TrainTransform(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), long_side=(16, 48))
    return WSSSDataset(samples, 3, transform, **options)


def read_mask(sample):
    return np.full((40, 60), int(sample.id), dtype=np.uint8)


def same(first, second):
    assert first.keys() == second.keys()
    return all(
        torch.equal(v, second[k]) if isinstance(v, torch.Tensor) else v == second[k]
        for k, v in first.items()
    )


def test_item(samples):
    data = dataset(samples)
    assert len(data) == 4
    item = data[2]
    assert sorted(item) == ["image", "index", "labels"]
    assert item["image"].shape == (3, 16, 16)
    assert item["image"].dtype == torch.float32
    assert item["labels"].tolist() == [1.0, 0.0, 1.0]
    assert item["index"] == 2
    assert data[0]["labels"].tolist() == [0.0, 0.0, 0.0]


def test_item_with_mask(samples):
    item = dataset(samples, read_target=read_mask)[3]
    assert sorted(item) == ["image", "index", "labels", "mask"]
    assert item["mask"].shape == (16, 16)
    assert item["mask"].dtype == torch.int64
    assert set(item["mask"].unique().tolist()) <= {3, 255}
    assert 3 in item["mask"]


def test_max_side_is_the_size_that_the_transform_sees(samples):
    seen = []

    def transform(image, mask):
        seen.append((image.size, mask))
        return torch.zeros(3, 1, 1), None

    WSSSDataset(samples, 3, transform, max_side=30)[0]
    WSSSDataset(samples, 3, transform)[0]
    assert seen == [((30, 20), None), ((60, 40), None)]


def test_item_depends_on_seed_epoch_and_index_alone(samples):
    data = dataset(samples, read_target=read_mask, seed=5)
    first = data[1, 2]
    torch.manual_seed(99)
    data[0, 0]
    assert same(data[1, 2], first)
    assert same(dataset(samples, read_target=read_mask, seed=5)[1, 2], first)
    assert same(data[2], data[0, 2])
    assert not torch.equal(data[2, 2]["image"], first["image"])
    other = dataset(samples, read_target=read_mask, seed=6)
    assert not torch.equal(other[1, 2]["image"], first["image"])


def test_global_generators_are_left_alone(samples, monkeypatch):
    def refuse(seed):
        raise AssertionError("the GPUs' generators were set")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    dataset(samples)[1, 1]
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_label_vector():
    assert label_vector((1, 3), 4).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert label_vector((), 2).tolist() == [0.0, 0.0]


def test_item_seed():
    seeds = {item_seed(s, e, i) for s in range(3) for e in range(5) for i in range(20)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert item_seed(1, 2, 3) == item_seed(1, 2, 3)


def order(length, seed, epoch):
    sampler = EpochSampler(length, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_sampler_visits_each_once():
    for epoch in range(3):
        found = order(50, 0, epoch)
        assert {e for e, _ in found} == {epoch}
        assert sorted(i for _, i in found) == list(range(50))
    assert len(EpochSampler(50)) == 50


def test_sampler_order_depends_on_seed_and_epoch_alone():
    first = [i for _, i in order(50, 0, 1)]
    torch.manual_seed(7)
    assert [i for _, i in order(50, 0, 1)] == first
    assert [i for _, i in order(50, 0, 2)] != first
    assert [i for _, i in order(50, 1, 1)] != first
    assert first != list(range(50))
