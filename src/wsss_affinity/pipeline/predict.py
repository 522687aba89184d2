"""Masks for a folder of photographs, by a trained segmentation network."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from wsss_affinity import world
from wsss_affinity.backbones import list_backbones
from wsss_affinity.backbones.registry import TARGET
from wsss_affinity.data.check import SampleChecker
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.folder import list_images
from wsss_affinity.data.images import load_image, mask_png, resize_mask
from wsss_affinity.data.source import Problem, Sample, Source, check_unique
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.layers import DenseCRF
from wsss_affinity.models import SegmentationNet
from wsss_affinity.pipeline.artifact import file_fingerprint
from wsss_affinity.pipeline.context import inference_device
from wsss_affinity.pipeline.fit import WEIGHTS, load_trained, to_device
from wsss_affinity.pipeline.mapping import map_images, map_samples
from wsss_affinity.pipeline.maps import LoadTensor, enough_memory
from wsss_affinity.pipeline.scores import best_labels
from wsss_affinity.pipeline.storage import Records, RecordWriter
from wsss_affinity.pipeline.train import NETWORK

log = logging.getLogger(__name__)

#: in the folder of the masks: what they were made from
_NOTE = "predict.json"


def segment(
    name: str,
    network: tuple[SegmentationNet, dict[str, Any]],
    samples: Sequence[Sample],
    output: RecordWriter,
    *,
    num_workers: int,
    device: torch.device,
    scales: Sequence[float],
    flip: bool,
    skip: bool,
    crf: DenseCRF | None = None,
) -> list[Problem]:
    """Store the mask of every sample at the image's own size, as a PNG.

    Args:
        name: For the bar.
        network: As :func:`load_network` returns it.
        samples: The photographs; those that have a mask there already are passed over.
        output: Takes the masks.
        num_workers: Loading processes.
        device: Where the network runs.
        scales: Factors of test-time augmentation.
        flip: Whether mirror images take part.
        skip: Whether to go on without photographs that fail.
        crf: Refines the probabilities.

    Returns:
        The photographs that failed.

    Raises:
        WSSSError: If a photograph fails and is not to be skipped.
    """
    net, description = network
    to_device(net, device)
    max_side = description["max_side"]

    @torch.inference_mode()
    def work(_: Sample, image: Tensor) -> NDArray[np.float32]:
        with enough_memory(image):
            scores = net.probabilities(image.to(device), scales=scales, flip=flip)[0]
        array: NDArray[np.float32] = scores.cpu().numpy()
        return array

    return map_images(
        name,
        samples,
        LoadTensor(net.mean, net.std, max_side),
        work,
        FinishPrediction(max_side, len(description["classes"]), description["background"], crf),
        output={"masks": output},
        num_workers=num_workers,
        skip=skip,
    )


@dataclass(frozen=True)
class FinishPrediction:
    """Turns the probabilities of labels into the mask of a photograph."""

    max_side: int | None
    num_classes: int
    background: bool
    crf: DenseCRF | None

    def __call__(self, sample: Sample, probabilities: NDArray[np.float32]) -> dict[str, bytes]:
        """Refine by a dense CRF if asked to, take the best label, at the photograph's size."""
        scores = torch.from_numpy(probabilities)
        if self.crf is not None:
            scores = self.crf(np.asarray(load_image(sample.image, self.max_side)), scores)
        mask = best_labels(scores, torch.arange(self.num_classes), self.background)
        width, height = load_image(sample.image).size
        return {"masks": mask_png(resize_mask(mask, (height, width)))}


def load_network(
    directory: Path, *, backbone: nn.Module | None = None, trust: bool = False
) -> tuple[SegmentationNet, dict[str, Any]]:
    """Load a trained segmentation network and its description, from its artefact alone.

    Args:
        directory: Of a ``train_segmentation`` artefact.
        backbone: The like of the object it was trained on (``run_pipeline(cfg, backbone=…)``). It
            becomes part of the network, and gets the trained weights.
        trust: Whether to import and call what the artefact names by an import path.

    Raises:
        WSSSError: If the directory holds none, or the network's backbone needs one of the above.
    """
    description = _describe(directory)
    encoder = description["encoder"] if backbone is None else backbone
    if isinstance(encoder, Mapping) and not trust:
        raise WSSSError(
            f"{directory / NETWORK} names code to be run, {TARGET}={encoder.get(TARGET)}; if you "
            "trust where it comes from, set predict.trust=true, or trust=True in load_network"
        )
    if isinstance(encoder, str) and "@" in encoder and encoder not in list_backbones():
        kind = encoder.partition("@")[0]
        raise WSSSError(
            f"{directory / NETWORK}: the network was trained on an object, a {kind}, which no file "
            f"holds; give one like it in Python, load_network(folder, backbone={kind}(…))"
        )
    description.setdefault("background", True)  # networks of version 0.1.0 do not say
    net = SegmentationNet(
        num_classes=len(description["classes"]) + int(description["background"]),
        architecture=description["architecture"],
        encoder=encoder,
    )
    load_trained(net, directory)
    return net, description


def load_own_network(cfg: DictConfig, directory: Path) -> tuple[SegmentationNet, dict[str, Any]]:
    """Load a network; code that the artefact names is run if the configuration names the same.

    Raises:
        WSSSError: As :func:`load_network` does.
    """
    own: Any = None
    with suppress(OmegaConfBaseException):  # to predict, a configuration need not name a backbone
        own = cfg.train_segmentation.encoder
        own = OmegaConf.to_container(own, resolve=True) if OmegaConf.is_config(own) else own
    same = json.loads(json.dumps(own)) == _describe(directory)["encoder"]
    return load_network(directory, trust=cfg.predict.trust or same)


def _describe(directory: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads((directory / NETWORK).read_text())
    except (OSError, ValueError) as error:
        raise WSSSError(
            f"{directory} holds no trained segmentation network; run the pipeline first with the "
            "same options, or set predict.network to the folder of a train_segmentation artefact"
        ) from error
    return description


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
    names = list_images(root, [output.resolve()])  # masks below the photographs are none
    stems = [name.rsplit(".", 1)[0] for name in names]
    check_unique(stems, f"{root} (two images whose names differ in the suffix alone)")
    samples = [Sample(stem, root / name, ()) for stem, name in zip(stems, names, strict=True)]
    loaded = load_own_network(cfg, network)
    if world.rank() == 0:
        _claim(cfg, network, samples, output)
    world.barrier()
    if cfg.data.on_error == "skip":
        samples = _readable(samples, resolve_workers(cfg.data.num_workers))
    failed = segment(
        "predict",
        loaded,
        samples,
        RecordWriter(output, ".png"),
        num_workers=resolve_workers(cfg.data.num_workers),
        device=inference_device(cfg.trainer.accelerator),
        scales=cfg.predict.scales,
        flip=cfg.predict.flip,
        skip=cfg.data.on_error == "skip",
    )
    if failed:
        log.warning("%d photographs have no mask: %s …", len(failed), failed[0].message)
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
    note = output / _NOTE
    content = {
        "network": file_fingerprint(network / WEIGHTS),
        "images": str(Path(cfg.predict.images).resolve()),
        "scales": list(cfg.predict.scales),
        "flip": cfg.predict.flip,
    }
    stored = Records(output, ".png")
    there = [sample for sample in samples if sample.id in stored]
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
        stored.file(sample.id).unlink()
    write_bytes(note, (json.dumps(content, indent=2) + "\n").encode())
