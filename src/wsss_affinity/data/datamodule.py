"""The DataModule that all tasks share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from wsss_affinity import world
from wsss_affinity.data.dataset import (
    EpochBatches,
    EpochSampler,
    FinishTarget,
    ReadTarget,
    Transform,
    WSSSDataset,
)
from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.interrupt import spare_worker


class WSSSDataModule(pl.LightningDataModule):
    """Feeds a task with batches ``{image, labels, index[, mask]}``.

    CAM training reads ``labels``; AffinityNet and segmentation read ``mask``, the label maps that
    the stage before them made.

    Args:
        samples: What to train on.
        num_classes: Object classes, background not counted.
        transform: Training augmentation.
        batch_size: Images a step, of all processes together; the last, smaller batch of an epoch
            is dropped, unless it is the only one.
        read_target: Gives the label map of a sample, or scores, for the tasks that need one.
        finish_target: Applied to it after the transform, where scores are to become labels.
        max_side: Longer images are reduced to it.
        num_workers: Loading processes; None takes one a core, at most 8.
        seed: Of order and augmentation.

    Raises:
        WSSSError: If there is nothing to train on.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        num_classes: int,
        transform: Transform,
        *,
        batch_size: int,
        read_target: ReadTarget | None = None,
        finish_target: FinishTarget | None = None,
        max_side: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not samples:
            raise WSSSError(
                "the training split holds no image; check data.train_split and data.root"
            )
        self.dataset = WSSSDataset(
            samples,
            num_classes,
            transform,
            read_target=read_target,
            finish_target=finish_target,
            max_side=max_side,
            seed=seed,
        )
        self.batch_size = batch_size
        self.num_workers = resolve_workers(num_workers)
        self.seed = seed

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches in the order of seed and epoch; of several processes each gets its part.

        A Trainer of your own needs ``use_distributed_sampler=False``.

        Raises:
            WSSSError: If the processes cannot share the batches evenly.
        """
        size = world.size()
        if self.batch_size % size:
            raise WSSSError(
                f"a batch_size of {self.batch_size} cannot be shared by {size} processes; "
                f"make it a multiple of {size}"
            )
        if size > 1 and len(self.dataset) < self.batch_size:
            raise WSSSError(
                f"{len(self.dataset)} images are less than a batch of {self.batch_size}, which "
                f"{size} processes cannot share; lower batch_size or use one device"
            )
        return _ResumableLoader(
            self.dataset,
            batch_sampler=EpochBatches(
                EpochSampler(len(self.dataset), self.seed),
                self.batch_size,
                rank=world.rank(),
                size=size,
            ),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=False,
            worker_init_fn=spare_worker,
            # otherwise it draws from the global generator, which dropout needs for itself
            generator=torch.Generator().manual_seed(self.seed),
        )


class _ResumableLoader(DataLoader[dict[str, Any]]):
    """Goes on within an epoch; Lightning keeps its state in checkpoints."""

    batch_sampler: EpochBatches
    _position = (0, 0)  # epoch, and batches of it that were given out
    _resume = (0, 0)  # where to go on

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        # A generator, so that all this happens when the first batch is wanted: Lightning makes the
        # iterator before it tells the sampler the epoch, and workers would fetch epoch 0 at once.
        epoch = self.batch_sampler.sampler.epoch
        start = self._resume[1] if self._resume[0] == epoch else 0
        self._resume = (epoch, 0)
        self.batch_sampler.start = start
        for given, batch in enumerate(super().__iter__(), start + 1):
            self._position = (epoch, given)
            yield batch

    def state_dict(self) -> dict[str, int]:
        epoch, batches = self._position
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = (state["epoch"], state["batches"])


def resolve_workers(num_workers: int | None) -> int:
    """Number of worker processes: as given, or one a core and at most 8.

    Processes of one run that share a machine share its cores.
    """
    if num_workers is not None:
        return num_workers
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
