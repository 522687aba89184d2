"""A fit that was stopped and goes on gives what it would have given: bit for bit."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss_affinity.callbacks import EpochCheckpoint, LossHistory
from wsss_affinity.data import Sample, TrainTransform, WSSSDataModule
from wsss_affinity.models import CAMNet
from wsss_affinity.tasks import CAMTask, Optimization

EPOCHS = 3


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for index in range(7):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        made.append(Sample(str(index), path, (index % 2,)))
    return made


class Watch(pl.Callback):
    """Notes which images each epoch saw, and stops the run as a kill would."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.seen = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        epoch = self.seen.setdefault(trainer.current_epoch, [])
        epoch += batch["index"].tolist()

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.stop_after:
            raise KilledError


class KilledError(Exception):
    pass


def train(samples, path, *, num_workers, options, stop_after=None):
    pl.seed_everything(1, verbose=False)
    net = CAMNet("tiny", 2, dropout=0.5)
    transform = TrainTransform(24, net.backbone.mean, net.backbone.std, long_side=(16, 32))
    data = WSSSDataModule(samples, 2, transform, batch_size=3, num_workers=num_workers, seed=1)
    history, watch = LossHistory(), Watch(stop_after)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path.parent,
        callbacks=[history, EpochCheckpoint(path), watch],
    )
    task = CAMTask(net, options, seed=1)
    # whatever ran before must not matter
    torch.manual_seed(torch.seed())
    resume = path if path.is_file() else None
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    except KilledError:
        assert stop_after is not None
    return net.state_dict(), history.epochs, watch.seen


@pytest.fixture(scope="module")
def uninterrupted(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "resume.ckpt"
    return train(samples, path, num_workers=0, options=Optimization("adamw", lr=1e-3))


def assert_same(found, expected):
    weights, history, _ = found
    assert history == expected[1]
    assert list(weights) == list(expected[0])
    for name, value in weights.items():
        assert torch.equal(value, expected[0][name]), name


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumed_run_equals_uninterrupted(
    samples, uninterrupted, tmp_path, num_workers, stop_after
):
    path = tmp_path / "resume.ckpt"
    options = Optimization("adamw", lr=1e-3)
    train(samples, path, num_workers=num_workers, options=options, stop_after=stop_after)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume.ckpt"]
    found = train(samples, path, num_workers=num_workers, options=options)
    expected = uninterrupted[2]
    assert found[2] == {epoch: expected[epoch] for epoch in range(stop_after, EPOCHS)}
    assert_same(found, uninterrupted)


def test_workers_change_nothing(samples, uninterrupted, tmp_path):
    options = Optimization("adamw", lr=1e-3)
    found = train(samples, tmp_path / "resume.ckpt", num_workers=2, options=options)
    assert found[2] == uninterrupted[2]
    assert_same(found, uninterrupted)


def test_epochs_visit_the_images_in_another_order(uninterrupted):
    orders = uninterrupted[2]
    assert sorted(orders) == [0, 1, 2]
    # 7 images, batches of 3: the last one is dropped
    assert all(len(order) == 6 == len(set(order)) for order in orders.values())
    assert orders[0] != orders[1] != orders[2]


def test_every_epoch_has_its_losses(uninterrupted):
    history = uninterrupted[1]
    assert [list(epoch) for epoch in history] == [["loss"]] * EPOCHS
    assert all(0 < epoch["loss"] < 5 for epoch in history)
