"""The stages that make activation maps and affinity labels, and what map stages share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss_affinity.data.dataset import label_vector
from wsss_affinity.data.images import load_image, mask_png
from wsss_affinity.data.soft_labels import affinity_labels_of
from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.data.transforms import to_tensor
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import encode_arrays
from wsss_affinity.layers import DenseCRF, add_background, normalize_cam
from wsss_affinity.layers.cam import height_prior
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.models.cam_methods import cam_function
from wsss_affinity.models.multi_scale import multi_scale_sum, out_of_memory
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import load_trained, to_device
from wsss_affinity.pipeline.mapping import map_images
from wsss_affinity.pipeline.scores import encode_scores, read_scores, resize_scores
from wsss_affinity.pipeline.storage import Records


@dataclass(frozen=True)
class LoadTensor:
    """Loads a sample's image as a normalised ``(1, 3, H, W)`` tensor."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_side: int | None

    def __call__(self, sample: Sample) -> Tensor:
        """Load it."""
        return to_tensor(load_image(sample.image, self.max_side), self.mean, self.std)[None]


def prepare(net: CAMNet | AffinityNet, trained: Path, context: Context) -> LoadTensor:
    """Make a trained network ready, and what loads images for it."""
    load_trained(net, trained)
    to_device(net, context.device)
    return LoadTensor(net.backbone.mean, net.backbone.std, context.max_side)


@contextmanager
def enough_memory(image: Tensor) -> Iterator[None]:
    """Say what to do where a network has too little memory for an image ``(1, 3, H, W)``.

    Raises:
        WSSSError: If so.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        raise WSSSError(
            f"it does not fit into memory with {image.shape[3]}×{image.shape[2]} pixels; lower "
            "data.max_side"
        ) from error


def made(context: Context, problems: Sequence[Problem]) -> dict[str, Any]:
    """What the manifest of a map stage keeps.

    Args:
        context: Of the stage.
        problems: Images that failed in it.
    """
    before = dict.fromkeys(problem for known in context.failed.values() for problem in known)
    return {
        "images": len(context.source.train) - len(problems),
        "failed": [[problem.id, problem.message] for problem in (*before, *problems)],
    }


def make_cam(context: Context, directory: Path) -> dict[str, Any]:
    """Make the activation maps of the classes present (Ahn & Kwak, CVPR 2018, section 3.1)."""
    return made(context, write_cams(context, context.source.train, "make_cam", directory))


def write_cams(
    context: Context, samples: Sequence[Sample], name: str, directory: Path
) -> list[Problem]:
    """Store the activation maps of samples, by the classifier of ``train_cam``.

    Returns:
        The images that failed.
    """
    section = context.cfg.cam
    net = context.cam_net()
    load = prepare(net, context.inputs["train_cam"], context)
    maps = cam_function(net, section.method)
    options = {"scales": section.scales, "flip": section.flip}

    @torch.inference_mode()
    def work(sample: Sample, image: Tensor) -> dict[str, bytes]:
        height, width = image.shape[-2:]
        grid = -(-height // section.store_stride), -(-width // section.store_stride)
        present = label_vector(sample.labels, len(context.source.classes)).nonzero().flatten()
        with enough_memory(image):
            cam = multi_scale_sum(
                lambda images: maps(images, present), image.to(context.device), size=grid, **options
            )[0].cpu()
        scores = normalize_cam(cam[present] * prior(context, present, grid))
        size, dtype = (height, width), section.store_dtype
        return {"cams": encode_scores(present, scores, size, dtype=dtype)}

    output = {"cams": context.writer(directory, ".npz")}
    workers, skip = context.num_workers, context.skip
    return map_images(name, samples, load, work, output=output, num_workers=workers, skip=skip)


def prior(context: Context, present: Tensor, grid: tuple[int, int]) -> Tensor:
    """What ``cam.height_prior`` says of the classes, ``(n, h, 1)``; 1 where it says nothing."""
    weights = torch.ones(len(present), grid[0], 1)
    for row, index in enumerate(present.tolist()):
        known = context.cfg.cam.height_prior.get(context.source.classes[index])
        if known is not None:
            weights[row] = height_prior(grid[0], *known)
    return weights


@dataclass(frozen=True)
class LabelImage:
    """Makes the affinity labels of one image.

    Attributes:
        cams: The activation maps.
        soft: Whether to keep the CRFs' probabilities.
        max_side: Longer images are worked on at this size.
        alpha_low: Of the background in the first CRF.
        alpha_high: Of the background in the second CRF; None for data without background.
        crf: Their parameters.
    """

    cams: Records
    soft: bool
    max_side: int | None
    alpha_low: float
    alpha_high: float | None
    crf: DenseCRF

    def __call__(self, sample: Sample) -> dict[str, bytes]:
        """Make them, PNG and ``.npz`` (Ahn & Kwak, CVPR 2018, section 3.2)."""
        image = np.asarray(load_image(sample.image, self.max_side))
        classes, cam, size = read_scores(self.cams, sample.id)
        cam = resize_scores(cam, size)
        low = self.crf(image, add_background(cam, self.alpha_low))
        high = None
        if self.alpha_high is not None:
            high = self.crf(image, add_background(cam, self.alpha_high))
        labels = affinity_labels_of(low, high, classes).numpy().astype(np.uint8)
        records = {"labels": mask_png(labels)}
        if self.soft:
            stacks = {"low": low} if high is None else {"low": low, "high": high}
            arrays = {name: stack.numpy() for name, stack in stacks.items()}
            records["soft"] = encode_arrays(arrays, compress=True)
        return records


def make_affinity_labels(context: Context, directory: Path) -> dict[str, Any]:
    """Find the pixels whose label is sure, by two dense CRFs an image.

    Without background there is one: what it calls background is unsure.
    """
    section = context.cfg.affinity_labels
    work = LabelImage(
        cams=Records(context.inputs["make_cam"], ".npz"),
        soft=section.format == "soft",
        max_side=context.max_side,
        alpha_low=section.alpha_low,
        alpha_high=section.alpha_high if context.source.background else None,
        crf=DenseCRF(**context.plain("affinity_labels.crf")),
    )
    output = {"labels": context.writer(directory / "labels", ".png")}
    if work.soft:
        output["soft"] = context.writer(directory / "soft", ".npz")
    problems = map_images(
        "affinity_labels",
        context.source.train,
        work,
        num_workers=context.num_workers,
        output=output,
        skip=context.skip,
    )
    return made(context, problems)
