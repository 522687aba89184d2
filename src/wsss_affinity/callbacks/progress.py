"""One progress bar a stage."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm


def progress_bar(name: str, total: int, initial: int = 0) -> tqdm[Any]:
    """A bar over images with images/s and time left; a line now and then where no one watches."""
    return tqdm(
        desc=f"{name:<18}",
        total=total,
        initial=initial,
        unit="img",
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,
    )


class FitProgress(pl.Callback):
    """One bar over all epochs of a fit, with the loss beside it.

    Args:
        name: Name of the stage.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm[Any] | None = None
        self.loss = float("nan")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where the run begins or resumes."""
        loader: Any = trainer.train_dataloader
        # a data set smaller than a batch is all of it
        epoch = int(trainer.num_training_batches) * min(loader.batch_size, len(loader.dataset))
        self.bar = progress_bar(
            self.name, epoch * (trainer.max_epochs or 0), epoch * trainer.current_epoch
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance by the batch."""
        if self.bar is not None:
            # reading the loss waits for the device, so not every step
            if batch_idx % 10 == 0:
                self.loss = float(outputs["loss"])
                self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
            self.bar.update(len(batch["image"]))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar before the error is printed."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
