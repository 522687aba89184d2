"""The three stages that make one file an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsss_affinity.data.dataset import label_vector
from wsss_affinity.data.images import load_image, resize_mask, save_mask
from wsss_affinity.data.source import Sample
from wsss_affinity.data.transforms import to_tensor
from wsss_affinity.files import load_arrays, save_arrays
from wsss_affinity.layers import DenseCRF, add_background, normalize_cam
from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import load_trained, to_device
from wsss_affinity.pipeline.mapping import map_samples


@dataclass(frozen=True)
class LoadTensor:
    """Loads a sample's image as a normalised ``(1, 3, H, W)`` tensor."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_side: int | None

    def __call__(self, sample: Sample) -> Tensor:
        """Load it."""
        return to_tensor(load_image(sample.image, self.max_side), self.mean, self.std)[None]


def save_scores(path: Path, classes: Tensor, scores: Tensor, size: tuple[int, int]) -> None:
    """Write class scores: ``classes`` (n,), ``scores`` (n', h, w) float16, ``size`` (H, W)."""
    arrays: dict[str, NDArray[Any]] = {
        "classes": classes.cpu().numpy().astype(np.int16),
        "scores": scores.cpu().numpy().astype(np.float16),
        "size": np.asarray(size, dtype=np.int32),
    }
    save_arrays(path, arrays)


def read_scores(path: Path) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Read what :func:`save_scores` wrote, as ``(classes, scores float32, size)``."""
    arrays = load_arrays(path)
    height, width = (int(side) for side in arrays["size"])
    classes = torch.from_numpy(arrays["classes"].astype(np.int64))
    return classes, torch.from_numpy(arrays["scores"].astype(np.float32)), (height, width)


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(n, h, w)`` bilinearly to ``(n, H, W)``; n may be 0."""
    if len(scores) == 0:
        return scores.new_zeros(0, *size)
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def _images_for(
    net: CAMNet | AffinityNet, context: Context, trained: str, name: str, output: Path
) -> Iterator[tuple[Sample, Tensor]]:
    """Make a trained network ready, and load the images that have no scores in ``output`` yet."""
    load_trained(net, context.inputs[trained])
    to_device(net, context.device)
    load = LoadTensor(net.backbone.mean, net.backbone.std, context.max_side)
    workers, done = context.num_workers, exists(output, ".npz")
    return map_samples(name, context.source.train, load, num_workers=workers, done=done)


def make_cam(context: Context, directory: Path) -> dict[str, Any]:
    """Make the activation maps of the classes present (Ahn & Kwak, CVPR 2018, section 3.1)."""
    section = context.cfg.cam
    net = context.cam_net()
    samples = context.source.train
    results = _images_for(net, context, "train_cam", "make_cam", directory)
    with torch.inference_mode():
        for sample, image in results:
            height, width = image.shape[-2:]
            grid = -(-height // section.store_stride), -(-width // section.store_stride)
            cam = net.multi_scale_cam(
                image.to(context.device), size=grid, scales=section.scales, flip=section.flip
            )[0]
            present = label_vector(sample.labels, len(context.source.classes)).nonzero().flatten()
            scores = normalize_cam(cam[present.to(cam.device)])
            save_scores(directory / f"{sample.id}.npz", present, scores, (height, width))
    return {"images": len(samples)}


def exists(directory: Path, suffix: str) -> Callable[[Sample], bool]:
    """Tell which samples have a file in the directory."""
    return lambda sample: (directory / f"{sample.id}{suffix}").is_file()


@dataclass(frozen=True)
class LabelImage:
    """Makes and writes the affinity labels of one image."""

    cams: Path
    output: Path
    max_side: int | None
    alpha_low: float
    alpha_high: float
    crf: DenseCRF

    def __call__(self, sample: Sample) -> None:
        """Make them (Ahn & Kwak, CVPR 2018, section 3.2)."""
        image = np.asarray(load_image(sample.image, self.max_side))
        classes, cam, size = read_scores(self.cams / f"{sample.id}.npz")
        cam = resize_scores(cam, size)
        low = self.crf(image, add_background(cam, self.alpha_low))
        high = self.crf(image, add_background(cam, self.alpha_high))
        save_mask(self.output / f"{sample.id}.png", affinity_labels_of(low, high, classes))


def affinity_labels_of(low: Tensor, high: Tensor, classes: Tensor) -> NDArray[np.uint8]:
    """Combine two CRF results into labels; background wins conflicts.

    Args:
        low: ``(n + 1, H, W)`` from a small α: sure where it says object.
        high: ``(n + 1, H, W)`` from a large α: sure where it says background.
        classes: ``(n,)``, 0-based class of each map.

    Returns:
        ``(H, W)`` uint8: 0 background, 1… classes, 255 unsure.
    """
    names = torch.cat([torch.tensor([UNSURE]), classes + 1])
    labels = names[low.argmax(0)]
    labels[high.argmax(0) == 0] = 0
    return labels.numpy().astype(np.uint8)


def make_affinity_labels(context: Context, directory: Path) -> dict[str, Any]:
    """Find the pixels whose label is sure, by two dense CRFs an image."""
    section = context.cfg.affinity_labels
    samples = context.source.train
    work = LabelImage(
        cams=context.inputs["make_cam"],
        output=directory / "labels",
        max_side=context.max_side,
        alpha_low=section.alpha_low,
        alpha_high=section.alpha_high,
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
    crf: DenseCRF | None

    def __call__(self, sample: Sample) -> None:
        """Upsample, refine by a dense CRF if asked to, take the best label."""
        classes, scores, size = read_scores(self.scores / f"{sample.id}.npz")
        # a cell is worth `stride` pixels, also the last one, which may reach outside
        padded = scores.shape[1] * self.stride, scores.shape[2] * self.stride
        scores = resize_scores(scores, padded)[:, : size[0], : size[1]].contiguous()
        original = load_image(sample.image)
        if self.crf is not None:
            scores = self.crf(np.asarray(load_image(sample.image, self.max_side)), scores)
        names = torch.cat([torch.tensor([0]), classes + 1])
        mask = names[scores.argmax(0)].numpy().astype(np.uint8)
        mask = resize_mask(mask, (original.height, original.width))
        save_mask(self.output / f"{sample.id}.png", mask)


def walk_options(context: Context) -> dict[str, Any]:
    """Arguments of ``AffinityNet.propagate``."""
    names = ("beta", "num_steps", "method", "tol", "border", "padding")
    section = context.plain("walk")
    return {name: section[name] for name in names}


def make_random_walk(context: Context, directory: Path) -> dict[str, Any]:
    """Spread the activation maps along affinities (Ahn & Kwak, CVPR 2018, section 3.3)."""
    section = context.cfg.walk
    net = context.affinity_net()
    samples = context.source.train
    folder = directory / "scores"
    options = walk_options(context)
    results = _images_for(net, context, "train_affinity", "random_walk", folder)
    with torch.inference_mode():
        for sample, image in results:
            classes, cam, size = read_scores(context.inputs["make_cam"] / f"{sample.id}.npz")
            scores = add_background(resize_scores(cam, size), section.alpha)
            walked = net.propagate(
                image.to(context.device), scores[None].to(context.device), **options
            )[0]
            save_scores(folder / f"{sample.id}.npz", classes, walked, size)
    work = FinishMask(
        scores=folder,
        output=directory / "masks",
        max_side=context.max_side,
        stride=net.stride,
        crf=DenseCRF(**context.plain("walk.crf")) if section.crf.num_iterations else None,
    )
    _drain(context, "random_walk: masks", work, exists(work.output, ".png"))
    return {"images": len(samples)}
