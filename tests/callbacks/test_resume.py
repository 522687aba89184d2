"""A fit that was stopped and goes on gives what it would have given: bit for bit."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss_affinity.callbacks import FitCheckpoint, LossHistory
from wsss_affinity.data import Sample, TrainTransform, WSSSDataModule
from wsss_affinity.interrupt import Interrupted, stop_on_signals
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
    """Notes which images each epoch saw, and stops the run at a step: by a kill, or a signal."""

    def __init__(self, kill_at=None, signal_at=None):
        self.kill_at = kill_at
        self.signal_at = signal_at
        self.step = 0
        self.seen = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.step = trainer.global_step + 1
        epoch = self.seen.setdefault(trainer.current_epoch, [])
        epoch += batch["index"].tolist()
        if self.step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer, *_):
        if self.step == self.kill_at:
            raise KilledError


class KilledError(Exception):
    pass


def train(samples, path, *, num_workers=0, batch_size=2, every=600.0, accumulate=1, **stop):
    pl.seed_everything(1, verbose=False)
    net = CAMNet("tiny", 2, dropout=0.5)
    transform = TrainTransform(24, net.backbone.mean, net.backbone.std, long_side=(16, 32))
    data = WSSSDataModule(
        samples, 2, transform, batch_size=batch_size, num_workers=num_workers, seed=1
    )
    history, watch = LossHistory(), Watch(**stop)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path.parent,
        callbacks=[watch, history, FitCheckpoint(path, every)],
    )
    task = CAMTask(net, Optimization("adamw", lr=1e-3), seed=1)
    # whatever ran before must not matter
    torch.manual_seed(torch.seed())
    resume = path if path.is_file() else None
    stopped = None
    with stop_on_signals():
        try:
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        except (KilledError, Interrupted) as error:
            stopped = type(error)
    return SimpleNamespace(
        weights=net.state_dict(), history=history.epochs, seen=watch.seen, stopped=stopped
    )


@pytest.fixture(scope="module")
def uninterrupted(samples, tmp_path_factory):
    return train(samples, tmp_path_factory.mktemp("run") / "resume.ckpt")


def assert_same(found, expected):
    assert found.stopped is None
    assert found.history == expected.history
    assert list(found.weights) == list(expected.weights)
    for name, value in found.weights.items():
        assert torch.equal(value, expected.weights[name]), name


# 7 images, batches of 2, the last one dropped: 3 steps an epoch
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [4, 8])
def test_killed_run_resumes_after_its_last_epoch(
    samples, uninterrupted, tmp_path, num_workers, step
):
    path = tmp_path / "resume.ckpt"
    killed = train(samples, path, num_workers=num_workers, kill_at=step)
    assert killed.stopped is KilledError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume.ckpt"]
    found = train(samples, path, num_workers=num_workers)
    expected = uninterrupted.seen
    assert found.seen == {epoch: expected[epoch] for epoch in range((step - 1) // 3, EPOCHS)}
    assert_same(found, uninterrupted)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 5, 9])
def test_stopped_run_resumes_after_its_last_step(
    samples, uninterrupted, tmp_path, num_workers, step
):
    path = tmp_path / "resume.ckpt"
    stopped = train(samples, path, num_workers=num_workers, signal_at=step)
    assert stopped.stopped is Interrupted
    found = train(samples, path, num_workers=num_workers)
    seen = {
        epoch: stopped.seen.get(epoch, []) + found.seen.get(epoch, []) for epoch in range(EPOCHS)
    }
    assert sum(map(len, stopped.seen.values())) == 2 * step
    assert seen == uninterrupted.seen
    assert_same(found, uninterrupted)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(samples, tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, _n=name, _r=real: (calls.append(_n), _r(*args))[1]
        )
    assert train(samples, tmp_path / "resume.ckpt", kill_at=4).stopped is KilledError
    assert calls == ["fsync", "replace"]


def test_long_epochs_are_saved_within(samples, uninterrupted, tmp_path):
    path = tmp_path / "resume.ckpt"
    for step in (2, 5, 6):
        assert train(samples, path, every=0.0, kill_at=step).stopped is KilledError
    # the kill comes before the checkpoint of its step: a step is lost, not more
    assert torch.load(path, weights_only=True)["global_step"] == 5
    assert_same(train(samples, path), uninterrupted)


@pytest.mark.parametrize("step", [1, 2])
def test_gradients_that_wait_for_their_step_are_not_lost(samples, tmp_path, step):
    """With an update every two batches of three, a stop after the first waits for the second."""
    calm = train(samples, tmp_path / "calm.ckpt", accumulate=2)
    path = tmp_path / "resume.ckpt"
    stopped = train(samples, path, accumulate=2, signal_at=step)
    assert stopped.stopped is Interrupted
    assert_same(train(samples, path, accumulate=2), calm)


def test_workers_change_nothing(samples, uninterrupted, tmp_path):
    found = train(samples, tmp_path / "resume.ckpt", num_workers=2)
    assert found.seen == uninterrupted.seen
    assert_same(found, uninterrupted)


def test_epochs_visit_the_images_in_another_order(uninterrupted):
    orders = uninterrupted.seen
    assert sorted(orders) == [0, 1, 2]
    assert all(len(order) == 6 == len(set(order)) for order in orders.values())
    assert orders[0] != orders[1] != orders[2]


def test_every_epoch_has_its_losses(uninterrupted):
    assert [list(epoch) for epoch in uninterrupted.history] == [["loss"]] * EPOCHS
    assert all(0 < epoch["loss"] < 5 for epoch in uninterrupted.history)
