"""Masks for a folder of photographs, by a trained segmentation network."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.folder import list_images
from wsss_affinity.data.images import load_image, resize_mask, save_mask
from wsss_affinity.data.source import Sample, Source, check_unique
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.layers import DenseCRF
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.artifact import file_fingerprint
from wsss_affinity.pipeline.context import inference_device
from wsss_affinity.pipeline.fit import WEIGHTS, load_trained, to_device
from wsss_affinity.pipeline.mapping import map_samples
from wsss_affinity.pipeline.maps import LoadTensor, exists
from wsss_affinity.pipeline.scores import best_labels
from wsss_affinity.pipeline.train import NETWORK

log = logging.getLogger(__name__)

#: in the folder of the masks: what they were made from
_NOTE = "predict.json"


def segment(
    name: str,
    network: Path,
    samples: Sequence[Sample],
    output: Path,
    *,
    num_workers: int,
    device: torch.device,
    scales: Sequence[float],
    flip: bool,
    crf: DenseCRF | None = None,
) -> None:
    """Write the mask of every sample at the image's own size, as ``<output>/<id>.png``.

    Args:
        name: For the bar.
        network: Directory of a ``train_segmentation`` artefact.
        samples: The photographs; those that have a mask there already are passed over.
        output: Folder of the masks.
        num_workers: Loading processes.
        device: Where the network runs.
        scales: Factors of test-time augmentation.
        flip: Whether mirror images take part.
        crf: Refines the probabilities.

    Raises:
        WSSSError: If the network or a photograph cannot be read.
    """
    net, description = load_network(network)
    to_device(net, device)
    max_side, classes = description["max_side"], torch.arange(len(description["classes"]))
    load = LoadTensor(net.mean, net.std, max_side)
    results = map_samples(name, samples, load, num_workers=num_workers, done=exists(output, ".png"))
    with torch.inference_mode():
        for sample, image in results:
            scores = net.probabilities(image.to(device), scales=scales, flip=flip)[0].cpu()
            if crf is not None:
                scores = crf(np.asarray(load_image(sample.image, max_side)), scores)
            mask = best_labels(scores, classes, description["background"])
            width, height = load_image(sample.image).size
            save_mask(output / f"{sample.id}.png", resize_mask(mask, (height, width)))


def load_network(directory: Path) -> tuple[SegmentationNet, dict[str, Any]]:
    """Load a trained segmentation network and its description, from its artefact alone.

    Raises:
        WSSSError: If the directory holds none.
    """
    try:
        description: dict[str, Any] = json.loads((directory / NETWORK).read_text())
    except (OSError, ValueError) as error:
        raise WSSSError(
            f"{directory} holds no trained segmentation network; run the pipeline first with the "
            "same options, or set predict.network to the folder of a train_segmentation artefact"
        ) from error
    description.setdefault("background", True)  # networks of version 0.1.0 do not say
    net = SegmentationNet(
        num_classes=len(description["classes"]) + int(description["background"]),
        architecture=description["architecture"],
        encoder=description["encoder"],
    )
    load_trained(net, directory)
    return net, description


def predict(cfg: DictConfig, network: Path) -> Path:
    """Segment every photograph below ``predict.images``.

    Args:
        cfg: The configuration; its section ``predict`` says what and where.
        network: Directory of a ``train_segmentation`` artefact.

    Returns:
        Folder of the masks, palette PNGs named like the photographs.

    Raises:
        WSSSError: If there is no photograph, one cannot be read, or the folder of the masks is
            that of the photographs or holds masks of other origin.
    """
    root, output = Path(cfg.predict.images), Path(cfg.predict.masks)
    if root.resolve().is_relative_to(output.resolve()):
        raise WSSSError(
            f"predict.masks ({output}) holds the photographs ({root}); choose another folder"
        )
    # masks below the photographs are no photographs
    inside = output.resolve()
    names = [n for n in list_images(root) if not (root / n).resolve().is_relative_to(inside)]
    stems = [name.rsplit(".", 1)[0] for name in names]
    check_unique(stems, f"{root} (two images whose names differ in the suffix alone)")
    samples = [Sample(stem, root / name, ()) for stem, name in zip(stems, names, strict=True)]
    _claim(cfg, network, samples, output)
    if cfg.data.on_error == "skip":
        samples = _readable(samples, resolve_workers(cfg.data.num_workers))
    segment(
        "predict",
        network,
        samples,
        output,
        num_workers=resolve_workers(cfg.data.num_workers),
        device=inference_device(cfg.trainer.accelerator),
        scales=cfg.predict.scales,
        flip=cfg.predict.flip,
    )
    return output


def _readable(samples: Sequence[Sample], num_workers: int) -> list[Sample]:
    """Leave out photographs that cannot be read, and say how many."""
    checker = SampleChecker(Source((), ()))
    results = map_samples("check images", samples, checker, num_workers=num_workers)
    kept, problems = [], []
    for sample, problem in results:
        if problem is None:
            kept.append(sample)
        else:
            problems.append(problem)
    if problems:
        log.warning("%d photographs are left out: %s …", len(problems), problems[0].message)
    return kept


def _claim(cfg: DictConfig, network: Path, samples: Sequence[Sample], output: Path) -> None:
    """Note in the folder of the masks what they are made from, and remove those of another run."""
    load_network(network)  # or say that there is none, before anything is removed
    note = output / _NOTE
    content = {
        "network": file_fingerprint(network / WEIGHTS),
        "images": str(Path(cfg.predict.images).resolve()),
        "scales": list(cfg.predict.scales),
        "flip": cfg.predict.flip,
    }
    there = [s for s in samples if (output / f"{s.id}.png").is_file()]
    try:
        before = json.loads(note.read_text())
    except (OSError, ValueError):
        before = None
    if before == content:
        return
    if there and before is None:
        raise WSSSError(
            f"{output} holds {there[0].id}.png, which mode=predict did not make; choose another "
            "folder with predict.masks"
        )
    for sample in there:
        (output / f"{sample.id}.png").unlink()
    write_bytes(note, (json.dumps(content, indent=2) + "\n").encode())
