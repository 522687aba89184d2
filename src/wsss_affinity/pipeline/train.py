"""The three stages that train a network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_affinity.backbones import Backbone
from wsss_affinity.checkpoint import load_published
from wsss_affinity.data.datamodule import WSSSDataModule
from wsss_affinity.data.dataset import ReadTarget
from wsss_affinity.data.soft_labels import pool_soft_labels
from wsss_affinity.data.source import Sample
from wsss_affinity.data.transforms import TrainTransform
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import decode_arrays, write_bytes
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import fit
from wsss_affinity.pipeline.scores import read_labels
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.tasks import AffinityTask, CAMTask, SegmentationTask
from wsss_affinity.tasks.base import Task

NETWORK = "network.json"


def train_cam(context: Context, directory: Path) -> dict[str, Any]:
    """Train the classifier on image-level labels."""
    pl.seed_everything(context.cfg.seed, verbose=False)
    net = context.cam_net()
    _start_from(context.cfg.train_cam.weights, net)
    task = CAMTask(net, context.optimization("train_cam"), seed=context.cfg.seed)
    return _train(context, directory, "train_cam", task, net.backbone)


def train_affinity(context: Context, directory: Path) -> dict[str, Any]:
    """Train AffinityNet on the affinity labels, from the weights the classifier started from."""
    pl.seed_everything(context.cfg.seed, verbose=False)
    net = context.affinity_net()
    _start_from(context.cfg.train_affinity.weights, net)
    labels, stride = context.inputs["affinity_labels"], net.stride
    reading: dict[str, Any] = {
        "read_target": partial(_stored_mask, Records(labels / "labels", ".png"))
    }
    if context.cfg.affinity_labels.format == "soft":
        reading = {
            "read_target": partial(_soft_labels, Records(labels / "soft", ".npz")),
            "finish_target": partial(_pool_soft, context.source.background, stride),
        }
    task = AffinityTask(
        net,
        context.optimization("train_affinity"),
        seed=context.cfg.seed,
        border=context.cfg.train_affinity.border,
    )
    return _train(context, directory, "train_affinity", task, net.backbone, **reading)


def train_segmentation(context: Context, directory: Path) -> dict[str, Any]:
    """Train the segmentation network on pseudo-masks, or on real ones as the upper bound."""
    pl.seed_everything(context.cfg.seed, verbose=False)
    section = context.cfg.train_segmentation
    masks: ReadTarget
    if section.target == "ground_truth":
        masks = context.source.read_mask
        if any(sample.mask is None for sample in context.source.train):
            raise WSSSError(
                "train_segmentation.target=ground_truth needs a mask for every training image; "
                "use target=pseudo_masks"
            )
    else:
        masks = partial(_stored_mask, Records(context.inputs["random_walk"] / "masks", ".png"))
    net = context.segmentation_net()
    task = SegmentationTask(
        net,
        context.optimization("train_segmentation"),
        seed=context.cfg.seed,
        background=context.source.background,
    )
    metrics = _train(context, directory, "train_segmentation", task, net, read_target=masks)
    description = {
        "classes": list(context.source.classes),
        "background": context.source.background,
        "architecture": section.architecture,
        "encoder": context.plain("train_segmentation")["encoder"],
        "max_side": context.max_side,
    }
    write_bytes(directory / NETWORK, (json.dumps(description, indent=2) + "\n").encode())
    return metrics


def _start_from(weights: str | None, net: CAMNet | AffinityNet) -> None:
    if weights is not None:
        load_published(net, weights)


def _train(
    context: Context,
    directory: Path,
    stage: str,
    task: Task,
    statistics: Backbone | SegmentationNet,
    **reading: Any,
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
        max_side=context.max_side,
        num_workers=context.num_workers,
        seed=context.cfg.seed,
        **reading,
    )
    metrics = fit(
        stage,
        task,
        datamodule,
        directory,
        max_epochs=section.max_epochs,
        trainer=context.plain("trainer"),
    )
    return {"images": section.max_epochs * len(context.source.train), **metrics}


def _stored_mask(masks: Records, sample: Sample) -> NDArray[np.uint8]:
    return read_labels(masks, sample.id)


def _soft_labels(labels: Records, sample: Sample) -> NDArray[np.float32]:
    arrays = decode_arrays(labels.read(sample.id), labels.file(sample.id))
    stacks = [arrays[name] for name in ("low", "high") if name in arrays]
    return np.concatenate(stacks).astype(np.float32)


def _pool_soft(background: bool, stride: int, stacks: Tensor, sample: Sample) -> Tensor:
    classes = torch.tensor(sample.labels, dtype=torch.int64)
    low, high = stacks.chunk(2) if background else (stacks, None)
    return pool_soft_labels(low, high, classes, stride)


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
