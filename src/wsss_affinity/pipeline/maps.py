"""The three stages that make one file an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss_affinity.data.dataset import label_vector
from wsss_affinity.data.images import load_image, resize_mask, save_mask
from wsss_affinity.data.soft_labels import affinity_labels_of
from wsss_affinity.data.source import Sample
from wsss_affinity.data.transforms import to_tensor
from wsss_affinity.files import save_arrays
from wsss_affinity.layers import DenseCRF, add_background, normalize_cam
from wsss_affinity.layers.cam import height_prior
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import load_trained, to_device
from wsss_affinity.pipeline.mapping import map_samples
from wsss_affinity.pipeline.scores import (
    best_labels,
    finish_scores,
    read_scores,
    resize_scores,
    save_scores,
)


@dataclass(frozen=True)
class LoadTensor:
    """Loads a sample's image as a normalised ``(1, 3, H, W)`` tensor."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_side: int | None

    def __call__(self, sample: Sample) -> Tensor:
        """Load it."""
        return to_tensor(load_image(sample.image, self.max_side), self.mean, self.std)[None]


def _images_for(
    net: CAMNet | AffinityNet,
    trained: Path,
    context: Context,
    samples: Sequence[Sample],
    name: str,
    output: Path,
) -> Iterator[tuple[Sample, Tensor]]:
    """Make a trained network ready, and load the images that have no scores in ``output`` yet."""
    load_trained(net, trained)
    to_device(net, context.device)
    load = LoadTensor(net.backbone.mean, net.backbone.std, context.max_side)
    workers, done = context.num_workers, exists(output, ".npz")
    return map_samples(name, samples, load, num_workers=workers, done=done)


def make_cam(context: Context, directory: Path) -> dict[str, Any]:
    """Make the activation maps of the classes present (Ahn & Kwak, CVPR 2018, section 3.1)."""
    samples = context.source.train
    write_cams(context, samples, "make_cam", directory)
    return {"images": len(samples)}


def write_cams(context: Context, samples: Sequence[Sample], name: str, directory: Path) -> None:
    """Write the activation maps of samples, ``<id>.npz``, by the classifier of ``train_cam``."""
    section = context.cfg.cam
    net = context.cam_net()
    results = _images_for(net, context.inputs["train_cam"], context, samples, name, directory)
    with torch.inference_mode():
        for sample, image in results:
            height, width = image.shape[-2:]
            grid = -(-height // section.store_stride), -(-width // section.store_stride)
            cam = net.multi_scale_cam(
                image.to(context.device), size=grid, scales=section.scales, flip=section.flip
            )[0].cpu()
            present = label_vector(sample.labels, len(context.source.classes)).nonzero().flatten()
            scores = normalize_cam(cam[present] * _prior(context, present, grid))
            path = directory / f"{sample.id}.npz"
            save_scores(path, present, scores, (height, width), dtype=section.store_dtype)


def _prior(context: Context, present: Tensor, grid: tuple[int, int]) -> Tensor:
    """What ``cam.height_prior`` says of the classes, ``(n, h, 1)``; 1 where it says nothing."""
    prior = torch.ones(len(present), grid[0], 1)
    for row, index in enumerate(present.tolist()):
        known = context.cfg.cam.height_prior.get(context.source.classes[index])
        if known is not None:
            prior[row] = height_prior(grid[0], *known)
    return prior


def exists(directory: Path, suffix: str) -> Callable[[Sample], bool]:
    """Tell which samples have a file in the directory."""
    return lambda sample: (directory / f"{sample.id}{suffix}").is_file()


@dataclass(frozen=True)
class LabelImage:
    """Makes and writes the affinity labels of one image.

    Attributes:
        cams: Folder of the activation maps.
        output: Folder of the labels.
        soft: Folder of the CRFs' probabilities; None does not keep them.
        max_side: Longer images are worked on at this size.
        alpha_low: Of the background in the first CRF.
        alpha_high: Of the background in the second CRF; None for data without background.
        crf: Their parameters.
    """

    cams: Path
    output: Path
    soft: Path | None
    max_side: int | None
    alpha_low: float
    alpha_high: float | None
    crf: DenseCRF

    def __call__(self, sample: Sample) -> None:
        """Make them (Ahn & Kwak, CVPR 2018, section 3.2)."""
        image = np.asarray(load_image(sample.image, self.max_side))
        classes, cam, size = read_scores(self.cams / f"{sample.id}.npz")
        cam = resize_scores(cam, size)
        low = self.crf(image, add_background(cam, self.alpha_low))
        high = None
        if self.alpha_high is not None:
            high = self.crf(image, add_background(cam, self.alpha_high))
        if self.soft is not None:
            stacks = {"low": low} if high is None else {"low": low, "high": high}
            arrays = {name: stack.numpy() for name, stack in stacks.items()}
            save_arrays(self.soft / f"{sample.id}.npz", arrays, compress=True)
        labels = affinity_labels_of(low, high, classes).numpy().astype(np.uint8)
        save_mask(self.output / f"{sample.id}.png", labels)


def make_affinity_labels(context: Context, directory: Path) -> dict[str, Any]:
    """Find the pixels whose label is sure, by two dense CRFs an image.

    Without background there is one: what it calls background is unsure.
    """
    section = context.cfg.affinity_labels
    samples = context.source.train
    work = LabelImage(
        cams=context.inputs["make_cam"],
        output=directory / "labels",
        soft=directory / "soft" if section.format == "soft" else None,
        max_side=context.max_side,
        alpha_low=section.alpha_low,
        alpha_high=section.alpha_high if context.source.background else None,
        crf=DenseCRF(**context.plain("affinity_labels.crf")),
    )
    _drain(context, "affinity_labels", work, exists(work.output, ".png"))
    return {"images": len(samples)}


def _drain(
    context: Context, name: str, work: Callable[[Sample], None], done: Callable[[Sample], bool]
) -> None:
    for _ in map_samples(
        name, context.source.train, work, num_workers=context.num_workers, done=done
    ):
        pass


@dataclass(frozen=True)
class FinishMask:
    """Turns walked scores into the pseudo-mask of one image and writes it."""

    scores: Path
    output: Path
    max_side: int | None
    stride: int
    background: bool
    crf: DenseCRF | None

    def __call__(self, sample: Sample) -> None:
        """Upsample, refine by a dense CRF if asked to, take the best label."""
        classes, scores, size = read_scores(self.scores / f"{sample.id}.npz")
        scores = finish_scores(scores, size, self.stride)
        original = load_image(sample.image)
        if self.crf is not None and len(scores):
            scores = self.crf(np.asarray(load_image(sample.image, self.max_side)), scores)
        mask = best_labels(scores, classes, self.background)
        mask = resize_mask(mask, (original.height, original.width))
        save_mask(self.output / f"{sample.id}.png", mask)


def walk_options(context: Context) -> dict[str, Any]:
    """Arguments of ``AffinityNet.propagate``."""
    names = ("beta", "num_steps", "method", "tol", "border", "padding")
    section = context.plain("walk")
    return {name: section[name] for name in names}


def make_random_walk(context: Context, directory: Path) -> dict[str, Any]:
    """Spread the activation maps along affinities (Ahn & Kwak, CVPR 2018, section 3.3).

    The walk is linear: the backgrounds of other α walk along, so that these can be scored too.
    """
    section = context.cfg.walk
    net = context.affinity_net()
    samples = context.source.train
    folder = directory / "scores"
    options = walk_options(context)
    # the background's own α comes first, then the others
    alphas = [section.alpha, *section.alpha_sweep] if context.source.background else []
    trained = context.inputs["train_affinity"]
    results = _images_for(net, trained, context, samples, "random_walk", folder)
    with torch.inference_mode():
        for sample, image in results:
            classes, cam, size = read_scores(context.inputs["make_cam"] / f"{sample.id}.npz")
            cam = resize_scores(cam, size)
            backgrounds = [add_background(cam, alpha)[:1] for alpha in alphas]
            scores = torch.cat([*backgrounds, cam])[None]
            walked = net.propagate(image.to(context.device), scores.to(context.device), **options)
            first, rest = walked[0, : len(alphas)], walked[0, len(alphas) :]
            path = folder / f"{sample.id}.npz"
            scores = torch.cat([first[:1], rest])
            others, dtype = first[1:], section.store_dtype
            save_scores(path, classes, scores, size, backgrounds=others, dtype=dtype)
    work = FinishMask(
        scores=folder,
        output=directory / "masks",
        max_side=context.max_side,
        stride=net.stride,
        background=context.source.background,
        crf=DenseCRF(**context.plain("walk.crf")) if section.crf.num_iterations else None,
    )
    _drain(context, "random_walk: masks", work, exists(work.output, ".png"))
    return {"images": len(samples)}
