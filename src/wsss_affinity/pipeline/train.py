"""The three stages that train a network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from wsss_affinity.backbones import Backbone
from wsss_affinity.data.datamodule import WSSSDataModule
from wsss_affinity.data.dataset import ReadMask
from wsss_affinity.data.images import load_mask
from wsss_affinity.data.source import Sample
from wsss_affinity.data.transforms import TrainTransform
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import fit
from wsss_affinity.tasks import AffinityTask, CAMTask, SegmentationTask
from wsss_affinity.tasks.base import Network, Task

NETWORK = "network.json"


def train_cam(context: Context, directory: Path) -> dict[str, Any]:
    """Train the classifier on image-level labels."""
    pl.seed_everything(context.cfg.seed, verbose=False)
    net = context.cam_net()
    return _train(context, directory, "train_cam", CAMTask, net, net.backbone)


def train_affinity(context: Context, directory: Path) -> dict[str, Any]:
    """Train AffinityNet on the affinity labels, from the weights the classifier started from."""
    pl.seed_everything(context.cfg.seed, verbose=False)
    net = context.affinity_net()
    masks = partial(_stored_mask, context.inputs["affinity_labels"] / "labels")
    return _train(context, directory, "train_affinity", AffinityTask, net, net.backbone, masks)


def train_segmentation(context: Context, directory: Path) -> dict[str, Any]:
    """Train the segmentation network on pseudo-masks, or on real ones as the upper bound."""
    pl.seed_everything(context.cfg.seed, verbose=False)
    section = context.cfg.train_segmentation
    masks: ReadMask
    if section.target == "ground_truth":
        masks = context.source.read_mask
        if any(sample.mask is None for sample in context.source.train):
            raise WSSSError(
                "train_segmentation.target=ground_truth needs a mask for every training image; "
                "use target=pseudo_masks"
            )
    else:
        masks = partial(_stored_mask, context.inputs["random_walk"] / "masks")
    net = context.segmentation_net()
    metrics = _train(context, directory, "train_segmentation", SegmentationTask, net, net, masks)
    description = {
        "classes": list(context.source.classes),
        "architecture": section.architecture,
        "encoder": section.encoder,
        "max_side": context.max_side,
    }
    write_bytes(directory / NETWORK, (json.dumps(description, indent=2) + "\n").encode())
    return metrics


def _train(
    context: Context,
    directory: Path,
    stage: str,
    task: type[Task],
    net: Network,
    statistics: Backbone | SegmentationNet,
    masks: ReadMask | None = None,
) -> dict[str, Any]:
    section = context.cfg[stage]
    transform = TrainTransform(
        mean=statistics.mean, std=statistics.std, **_tuples(context.plain(f"{stage}.transform"))
    )
    datamodule = WSSSDataModule(
        context.source.train,
        len(context.source.classes),
        transform,
        batch_size=section.batch_size,
        read_mask=masks,
        max_side=context.max_side,
        num_workers=context.num_workers,
        seed=context.cfg.seed,
    )
    metrics = fit(
        stage,
        task(net, context.optimization(stage), seed=context.cfg.seed),
        datamodule,
        directory,
        max_epochs=section.max_epochs,
        trainer=context.plain("trainer"),
    )
    return {"images": section.max_epochs * len(context.source.train), **metrics}


def _stored_mask(folder: Path, sample: Sample) -> NDArray[np.uint8]:
    return load_mask(folder / f"{sample.id}.png")


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
