"""One progress bar a stage."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm

from wsss_affinity import world


def progress_bar(name: str, total: int, initial: int = 0) -> tqdm[Any]:
    """A bar over images with images/s and time left; a line now and then where no one watches.

    Of several processes rank 0 alone shows one.
    """
    return tqdm(
        disable=world.rank() > 0,
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
        batches = int(trainer.num_training_batches)
        # a data set smaller than a batch is all of it
        batch = min(loader.batch_sampler.batch_size, len(loader.dataset))
        # the batches of a whole epoch are counted until the next one begins
        done = trainer.current_epoch * batches + (trainer.fit_loop.batch_idx + 1) % batches
        self.bar = progress_bar(
            self.name, batch * batches * (trainer.max_epochs or 0), batch * done
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
                self.loss = float(outputs["terms"]["loss"])
                self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
            self.bar.update(len(batch["image"]) * world.size())

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar before the error is printed."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
