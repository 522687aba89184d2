import errno
import os
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from wsss_affinity.callbacks import FitCheckpoint, FitProgress, LossHistory, progress_bar
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet
from wsss_affinity.tasks import AffinityTask, CAMTask, Optimization, SegmentationTask


def items(count):
    """Bright squares on dark ground: label 1 and its mask."""
    made = []
    for index in range(count):
        mask = torch.zeros(64, 64, dtype=torch.int64)
        if index % 2:
            mask[16:48, 16:48] = 1
        image = mask.float().expand(3, 64, 64) + 0.05 * torch.randn(3, 64, 64)
        labels = torch.tensor([float(index % 2), 1.0 - index % 2])
        made.append({"image": image, "labels": labels, "mask": mask, "index": index})
    return made


def fit(
    folder, callbacks, *, epochs=2, count=4, batch_size=2, ckpt_path=None, task=None, **options
):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **options,
    )
    task = task or CAMTask(CAMNet("tiny", 2), Optimization("adamw", lr=1e-4))
    loader = torch.utils.data.DataLoader(items(count), batch_size=batch_size)
    trainer.fit(task, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Keep(FitProgress):
    """Notes where the bar began."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.start = self.bar.n


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bar_counts_images(tmp_path, accumulate):
    progress = Keep("train_cam")
    fit(tmp_path, [progress], accumulate_grad_batches=accumulate)
    assert (progress.start, progress.bar.n, progress.bar.total) == (0, 8, 8)
    assert progress.bar.desc.startswith("train_cam")
    assert progress.bar.unit == "img"
    assert 0 < progress.loss < 5


def test_bar_of_a_set_smaller_than_a_batch(tmp_path):
    progress = Keep("train_cam")
    fit(tmp_path, [progress], count=3, batch_size=16)
    assert (progress.bar.n, progress.bar.total) == (6, 6)


def test_resumed_bar_begins_where_the_run_was(tmp_path):
    path = tmp_path / "resume.ckpt"
    fit(tmp_path, [FitCheckpoint(path)], epochs=1)
    progress = Keep("train_cam")
    fit(tmp_path, [progress], epochs=3, ckpt_path=path)
    assert (progress.start, progress.bar.n, progress.bar.total) == (4, 12, 12)


def test_progress_bar():
    bar = progress_bar("make_cam", 10, 3)
    assert (bar.desc.rstrip(": "), bar.total, bar.n) == ("make_cam", 10, 3)
    bar.close()


def test_history_is_the_mean_over_the_epoch(tmp_path):
    class Fixed(CAMTask):
        values = iter([1.0, 2.0, 3.0, 5.0])

        def loss(self, batch):
            loss = super().loss(batch)["loss"] * 0 + next(self.values)
            return {"loss": loss, "bg": loss / 4}

    history = LossHistory()
    fit(tmp_path, [history], task=Fixed(CAMNet("tiny", 2)))
    assert history.epochs == [{"loss": 1.5, "bg": 0.375}, {"loss": 4.0, "bg": 1.0}]


def test_history_is_kept_in_the_checkpoint(tmp_path):
    path = tmp_path / "resume.ckpt"
    first = LossHistory()
    fit(tmp_path, [first, FitCheckpoint(path)], epochs=1)
    again = LossHistory()
    fit(tmp_path, [again], epochs=2, ckpt_path=path)
    assert len(first.epochs) == 1
    assert len(again.epochs) == 2
    assert again.epochs[0] == first.epochs[0]


def test_checkpoint_is_one_file_of_the_last_epoch(tmp_path):
    path = tmp_path / "resume.ckpt"
    trainer = fit(tmp_path, [FitCheckpoint(path)])
    assert [p.name for p in tmp_path.iterdir()] == ["resume.ckpt"]
    state = torch.load(path, weights_only=True)
    assert (state["epoch"], state["global_step"]) == (1, 4)
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(state["state_dict"][name], value)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "it is read-only")]
)
def test_failed_checkpoint_keeps_the_old_one(tmp_path, code, said):
    path = tmp_path / "resume.ckpt"
    path.write_bytes(b"old")

    def half_written(temporary):
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    trainer = SimpleNamespace(save_checkpoint=half_written, is_global_zero=True)
    with pytest.raises(WSSSError, match=rf"cannot write .*resume\.ckpt: {said}"):
        FitCheckpoint(path).on_train_epoch_end(trainer, None)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["resume.ckpt"]


@pytest.mark.parametrize(
    "task",
    [
        lambda o: CAMTask(CAMNet("tiny", 2), o),
        lambda o: AffinityTask(AffinityNet("tiny", radius=3), o),
        lambda o: SegmentationTask(SegmentationNet(2, "Unet", "resnet18"), o),
    ],
    ids=["cam", "affinity", "segmentation"],
)
def test_training_lowers_the_loss(tmp_path, task):
    history = LossHistory()
    options = Optimization("adamw", lr=3e-4)
    fit(tmp_path, [history], epochs=3, task=task(options))
    losses = [epoch["loss"] for epoch in history.epochs]
    assert losses[-1] < 0.9 * losses[0]
