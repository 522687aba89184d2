import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss_affinity.data import Sample, TrainTransform, WSSSDataModule
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.dataset import EpochSampler
from wsss_affinity.errors import WSSSError

TRANSFORM = TrainTransform(8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), long_side=(8, 16))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for index in range(7):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)
        made.append(Sample(str(index), path, (index % 2,)))
    return made


def read_mask(sample):
    return np.full((12, 16), int(sample.id), dtype=np.uint8)


def module(samples, **options):
    options = {"batch_size": 3, "num_workers": 0, "seed": 2, **options}
    return WSSSDataModule(samples, 2, TRANSFORM, **options)


def test_batch(samples):
    batch = next(iter(module(samples, read_target=read_mask).train_dataloader()))
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes == {"image": (3, 3, 8, 8), "labels": (3, 2), "index": (3,), "mask": (3, 8, 8)}
    for index, mask in zip(batch["index"].tolist(), batch["mask"], strict=True):
        assert set(mask.unique().tolist()) - {255} == {index}
    assert batch["labels"].argmax(1).tolist() == (batch["index"] % 2).tolist()


def test_workers_change_nothing(samples):
    loaders = [
        module(samples, read_target=read_mask, num_workers=n).train_dataloader() for n in (0, 2)
    ]
    for epoch in (0, 3):
        for loader in loaders:
            loader.batch_sampler.sampler.set_epoch(epoch)
        alone, shared = (list(loader) for loader in loaders)
        assert len(alone) == len(shared) == 2
        for first, second in zip(alone, shared, strict=True):
            assert first.keys() == second.keys()
            assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_global_generator_is_left_alone(samples):
    before = torch.get_rng_state()
    list(module(samples).train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 7), (3, [3, 3]), (4, [4]), (7, [7]), (8, [7]), (100, [7])]
)
def test_smaller_batch_is_dropped_unless_it_is_the_only_one(samples, batch_size, sizes):
    loader = module(samples, batch_size=batch_size).train_dataloader()
    assert [len(batch["index"]) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_nothing_to_train_on():
    with pytest.raises(WSSSError) as caught:
        module([])
    assert str(caught.value) == (
        "the training split holds no image; check data.train_split and data.root"
    )


def test_resolve_workers(monkeypatch):
    assert resolve_workers(0) == 0
    assert resolve_workers(20) == 20
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)), raising=False)
    assert resolve_workers(None) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert resolve_workers(None) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert resolve_workers(None) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert resolve_workers(None) == 1


@pytest.fixture
def of_two(monkeypatch):
    """Make this one of two processes."""

    def choose(rank):
        monkeypatch.setattr("wsss_affinity.world.rank", lambda: rank)
        monkeypatch.setattr("wsss_affinity.world.size", lambda: 2)

    return choose


def test_two_processes_share_the_batches_of_one(samples, of_two):
    def indices(epoch):
        loader = module(samples, batch_size=2).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        return [batch["index"].tolist() for batch in loader]

    alone = [indices(epoch) for epoch in range(2)]
    of_two(0)
    first = [indices(epoch) for epoch in range(2)]
    of_two(1)
    second = [indices(epoch) for epoch in range(2)]
    for epoch in range(2):
        parts = zip(first[epoch], second[epoch], strict=True)
        assert [a + b for a, b in parts] == alone[epoch]
        assert [len(batch) for batch in alone[epoch]] == [2, 2, 2]


def test_batches_that_cannot_be_shared(samples, of_two):
    of_two(0)
    with pytest.raises(WSSSError, match=r"a batch_size of 3 cannot be shared by 2 processes"):
        module(samples, batch_size=3).train_dataloader()
    with pytest.raises(WSSSError, match=r"7 images are less than a batch of 8"):
        module(samples, batch_size=8).train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_goes_on_within_an_epoch(samples, num_workers):
    def batches(loader, epoch):
        loader.batch_sampler.sampler.set_epoch(epoch)
        return [batch["index"].tolist() for batch in loader]

    made = []

    def note(sample):
        made.append(int(sample.id))
        return read_mask(sample)

    options = {"batch_size": 2, "num_workers": num_workers, "read_target": note}
    first, again = (module(samples, **options).train_dataloader() for _ in range(2))
    whole = {epoch: batches(first, epoch) for epoch in (1, 2)}
    first.batch_sampler.sampler.set_epoch(1)
    for _ in zip(range(2), first, strict=False):
        pass
    state = first.state_dict()
    assert state == {"epoch": 1, "batches": 2}
    made.clear()
    again.load_state_dict(state)
    assert len(again) == 3
    assert batches(again, 1) == whole[1][2:]
    if num_workers == 0:
        assert made == whole[1][2]  # the others were not even loaded
    assert again.state_dict() == {"epoch": 1, "batches": 3}
    assert batches(again, 1) == whole[1]  # only once
    again.load_state_dict(state)
    assert batches(again, 2) == whole[2]  # and only in that epoch


class Listen(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).extend(batch["index"].tolist())
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_says_the_epoch(samples, tmp_path, num_workers):
    listen = Listen()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(listen, datamodule=module(samples, num_workers=num_workers))
    sampler = EpochSampler(7, seed=2)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert listen.seen[epoch] == [index for _, index in sampler][:6]
    assert listen.seen[0] != listen.seen[1]
