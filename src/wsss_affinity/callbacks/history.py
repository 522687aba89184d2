"""Losses of every epoch, for the manifest."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class LossHistory(pl.Callback):
    """Collects the mean of each loss term over each epoch; survives a resume within an epoch.

    The terms are those that ``training_step`` returns as ``terms``.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the batch to the running sums."""
        images = len(batch["image"])
        self._images += images
        for name, value in outputs["terms"].items():
            before = self._sums.get(name, torch.zeros(()))
            self._sums[name] = before.to(value.device) + images * value

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the epoch."""
        self.epochs.append(
            {name: round(float(total) / self._images, 6) for name, total in self._sums.items()}
        )
        self._sums, self._images = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"epochs": self.epochs, "sums": self._sums, "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the epochs of the interrupted run."""
        self.epochs = list(state_dict["epochs"])
        self._sums = dict(state_dict["sums"])
        self._images = state_dict["images"]
