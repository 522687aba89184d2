"""The DataModule that all tasks share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from wsss_affinity.data.dataset import (
    EpochSampler,
    FinishTarget,
    ReadTarget,
    Transform,
    WSSSDataset,
)
from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError


class WSSSDataModule(pl.LightningDataModule):
    """Feeds a task with batches ``{image, labels, index[, mask]}``.

    CAM training reads ``labels``; AffinityNet and segmentation read ``mask``, the label maps that
    the stage before them made.

    Args:
        samples: What to train on.
        num_classes: Object classes, background not counted.
        transform: Training augmentation.
        batch_size: Images a step; the last, smaller batch of an epoch is dropped, unless it is
            the only one.
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
        """Batches in the order of seed and epoch."""
        return _LateLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(self.dataset), self.seed),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            drop_last=len(self.dataset) >= self.batch_size,
            pin_memory=False,
            # otherwise it draws from the global generator, which dropout needs for itself
            generator=torch.Generator().manual_seed(self.seed),
        )


class _LateLoader(DataLoader[dict[str, Any]]):
    """Asks the sampler for an order when the first batch is wanted.

    In a resumed run Lightning makes the iterator before it tells the sampler the epoch, and worker
    processes would fetch batches of epoch 0 at once.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()


def resolve_workers(num_workers: int | None) -> int:
    """Number of worker processes: as given, or one a core and at most 8."""
    if num_workers is not None:
        return num_workers
    affinity = getattr(os, "sched_getaffinity", None)
    return min(8, len(affinity(0)) if affinity else os.cpu_count() or 1)
