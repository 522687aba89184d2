"""Training of one network as a stage: resumable, ending in one file of weights."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from wsss_affinity import interrupt, world
from wsss_affinity.callbacks import FitCheckpoint, FitProgress, LossHistory
from wsss_affinity.data.datamodule import WSSSDataModule
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.checksums import CHECKPOINT
from wsss_affinity.pipeline.context import inference_device
from wsss_affinity.tasks.base import Task

log = logging.getLogger(__name__)

WEIGHTS = "weights.pt"


def fit(
    name: str,
    task: Task,
    datamodule: WSSSDataModule,
    directory: Path,
    *,
    max_epochs: int,
    trainer: Mapping[str, Any],
) -> dict[str, Any]:
    """Train, from the last checkpoint where there is one, and write ``weights.pt``.

    All processes of a run call it, see :mod:`wsss_affinity.pipeline.launch`.

    Args:
        name: For the bar.
        task: What to train.
        datamodule: What to train on.
        directory: Gets the weights, and a checkpoint that is kept until the artefact is complete.
        max_epochs: Epochs in all.
        trainer: Further arguments of Lightning's Trainer.

    Returns:
        ``epochs``: the losses of each.

    Raises:
        Interrupted: If a stop was requested; the next call goes on after the step it was at.
        WSSSError: If the loss is not finite at the end, or the Trainer refuses its arguments
            or would use more devices than there are processes.
    """
    quiet_lightning()
    checkpoint = directory / CHECKPOINT
    resume = world.broadcast(world.rank() == 0 and _can_be_resumed(checkpoint))
    history = LossHistory()
    several = world.size() > 1
    device = inference_device(trainer.get("accelerator", "auto"))
    # PSPNet, for one, does not use the end of its encoder
    strategy = "ddp_find_unused_parameters_true" if several else "auto"
    try:
        runner = pl.Trainer(
            max_epochs=max_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=directory,
            callbacks=[history, FitProgress(name), FitCheckpoint(checkpoint)],
            use_distributed_sampler=False,  # ours gives each process its part
            # there is none for the CPU, where each process has its own statistics
            sync_batchnorm=several and device.type == "cuda",
            # the processes are there already, whatever started them
            plugins=[TorchElasticEnvironment() if several else LightningEnvironment()],
            **{"strategy": strategy, **trainer},
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise WSSSError(f"trainer: {error}; see conf/trainer/default.yaml") from error
    if runner.world_size != world.size():
        raise WSSSError(
            f"trainer.devices and trainer.num_nodes ask for {runner.world_size} devices, but this "
            f"run has {world.size()} process; start it by the command line wsss-affinity, which "
            "starts one for each device, or by torchrun within wsss_affinity.pipeline.launch.joined"
        )
    task.to(memory_format=torch.channels_last)  # a third faster on CPU, and no slower on CUDA
    try:
        runner.fit(
            task,
            datamodule=datamodule,
            ckpt_path=checkpoint if resume else None,
            weights_only=True,
        )
    except SystemExit as error:
        interrupt.check()
        raise KeyboardInterrupt from error  # Lightning turns Ctrl-C into an exit without a word
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise WSSSError(
            f"{name}: BatchNorm cannot learn from a batch of one image; raise {name}.batch_size "
            "(or give more images), or set backbone.freeze_batchnorm=true"
        ) from error
    if history.epochs and not history.epochs[-1].get("loss", 0.0) < float("inf"):
        raise WSSSError(
            f"{name}: the loss is not finite after {max_epochs} epochs; lower "
            f"{name}.optimization.lr or set trainer.gradient_clip_val"
        )
    if world.rank() == 0:
        save_weights(task.model, directory / WEIGHTS)
    return {"epochs": history.epochs}


def _can_be_resumed(checkpoint: Path) -> bool:
    """Whether there is a checkpoint, and a sound one: a power failure may leave half of it."""
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WSSSError(
            f"{checkpoint} cannot be read ({error.strerror}); mend that and run again"
        ) from error
    except Exception:  # torch raises many kinds
        log.warning("%s is damaged; this training starts anew", checkpoint)
        return False
    return True


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict; the same weights give the same bytes."""
    buffer = io.BytesIO()
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_trained(model: nn.Module, directory: Path) -> nn.Module:
    """Load the weights that :func:`fit` left, and set evaluation mode.

    Raises:
        WSSSError: If they are missing, damaged or of another network.
    """
    path = directory / WEIGHTS
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise WSSSError(
            f"weights {path} cannot be loaded ({str(error).splitlines()[0]}); "
            "remove that folder and run again"
        ) from error
    return model.eval()


def to_device(model: nn.Module, device: torch.device) -> None:
    """Move a network for inference; channels last is the faster layout on CPU and CUDA."""
    model.to(device)
    model.to(memory_format=torch.channels_last)


def quiet_lightning() -> None:
    """Leave the terminal to the bars."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*No positive-weight.*",
        ".*`weights_only`.*",
        ".*use `self.log.*sync_dist=True.*",  # what is logged is the mean already
        ".*training batches.*",
        ".*pin_memory.*",
        ".*`srun` command is available.*",
        ".*in eval mode at the start of training.*",  # frozen on purpose
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
