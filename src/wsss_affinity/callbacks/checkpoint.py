"""The checkpoint that an interrupted fit resumes from."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from wsss_affinity import interrupt, world
from wsss_affinity.files import write_error


class FitCheckpoint(pl.Callback):
    """Writes the whole training state, atomically, to one file, and stops where that was asked for.

    The state is written after every epoch, within long epochs now and then, and after the step
    during which a stop was requested (Ctrl-C or SIGTERM, in any of the
    processes). It must be the last callback that keeps a state of its own.

    Args:
        path: The file.
        every: Seconds between two checkpoints within an epoch.

    Raises:
        Interrupted: After the checkpoint, where a stop was requested.
    """

    def __init__(self, path: Path, every: float = 600.0) -> None:
        self.path = path
        self.every = every
        self._saved = time.monotonic()
        self._on_sigterm: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember who handles SIGTERM."""
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give SIGTERM back to them: Lightning's handler would exit without a checkpoint."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time to, or to stop."""
        if trainer.is_last_batch:
            return  # the end of the epoch comes next, and saves
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients that wait for their step are not part of a checkpoint
        due = time.monotonic() - self._saved >= self.every
        # one process alone may have been told to stop, and no two clocks agree
        due, stop = world.either(due, interrupt.requested())
        if due or stop:
            self._save(trainer)
        if stop:
            raise interrupt.Interrupted

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)
        if any(world.either(interrupt.requested())):
            raise interrupt.Interrupted

    def _save(self, trainer: pl.Trainer) -> None:
        """Write beside the file, then rename over it."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())  # or a power failure leaves an empty one
                os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise write_error(self.path, error) from error
        self._saved = time.monotonic()
