"""The checkpoint that a killed fit resumes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytorch_lightning as pl

from wsss_affinity.files import write_error


class EpochCheckpoint(pl.Callback):
    """Writes the whole training state after every epoch, atomically, to one file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write beside the file, then rename over it."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise write_error(self.path, error) from error
