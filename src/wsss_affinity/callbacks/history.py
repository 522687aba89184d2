"""Losses of every epoch, for the manifest."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class LossHistory(pl.Callback):
    """Collects the mean of each logged loss term over each epoch; survives a resume."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what Lightning averaged."""
        logged = trainer.callback_metrics
        self.epochs.append(
            {
                name.removeprefix("train/").removesuffix("_epoch"): round(float(value), 6)
                for name, value in logged.items()
                if name.endswith("_epoch")
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the epochs of the interrupted run."""
        self.epochs = list(state_dict["epochs"])
