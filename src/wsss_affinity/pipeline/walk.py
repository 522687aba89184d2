"""The stage that walks, and turns what it comes to into pseudo-masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss_affinity.data.images import load_image, mask_png, resize_mask
from wsss_affinity.data.source import Sample
from wsss_affinity.layers import DenseCRF, add_background
from wsss_affinity.models import AttentionNet
from wsss_affinity.models.walking_net import WalkingNet
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.fit import to_device
from wsss_affinity.pipeline.mapping import map_images
from wsss_affinity.pipeline.maps import LoadTensor, enough_memory, made, prepare
from wsss_affinity.pipeline.scores import (
    best_labels,
    decode_scores,
    encode_scores,
    finish_scores,
    read_scores,
    resize_scores,
)
from wsss_affinity.pipeline.storage import Records


@dataclass(frozen=True)
class LoadWalk:
    """Loads what the walk of an image starts from, unless the image has walked already.

    Attributes:
        image: Loads the image.
        cams: The activation maps.
        alphas: Of the backgrounds that walk along.
        walked: The walked scores.
    """

    image: LoadTensor
    cams: Records
    alphas: tuple[float, ...]
    walked: Records

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor] | None:
        """Image ``(1, 3, H, W)``, classes ``(n,)``, scores with backgrounds first ``(k, H, W)``."""
        if sample.id in self.walked:
            return None
        classes, cam, size = read_scores(self.cams, sample.id)
        cam = resize_scores(cam, size)
        backgrounds = [add_background(cam, alpha)[:1] for alpha in self.alphas]
        return self.image(sample), classes, torch.cat([*backgrounds, cam])


@dataclass(frozen=True)
class FinishMask:
    """Turns walked scores into the pseudo-mask of one image.

    Attributes:
        walked: The walked scores that were there from the start.
        max_side: Longer images are refined at this size.
        stride: Of AffinityNet.
        background: Whether there is one.
        crf: Refines the scores.
    """

    walked: Records
    max_side: int | None
    stride: int
    background: bool
    crf: DenseCRF | None

    def __call__(self, sample: Sample, record: bytes | None) -> dict[str, bytes]:
        """Upsample, refine by a dense CRF if asked to, take the best label.

        Args:
            sample: The image.
            record: Its walked scores; None if they were there from the start.

        Returns:
            The mask, and the scores if they are new.
        """
        new = {} if record is None else {"scores": record}
        name = self.walked.file(sample.id)
        classes, scores, size = decode_scores(record or self.walked.read(sample.id), name)
        scores = finish_scores(scores, size, self.stride)
        original = load_image(sample.image)
        if self.crf is not None and len(scores):
            scores = self.crf(np.asarray(load_image(sample.image, self.max_side)), scores)
        mask = best_labels(scores, classes, self.background)
        mask = resize_mask(mask, (original.height, original.width))
        return {**new, "masks": mask_png(mask)}


def walk_options(context: Context) -> dict[str, Any]:
    """Arguments of ``AffinityNet.propagate``."""
    names = ("beta", "num_steps", "method", "tol", "border", "padding")
    section = context.plain("walk")
    return {name: section[name] for name in names}


def walk_stride(context: Context) -> int:
    """Side of a cell of walked scores, in pixels."""
    if context.cfg.walk.affinity == "attention":
        with torch.device("meta"):  # no memory for its weights
            return AttentionNet(context.cfg.walk.attention.name, weights=None).stride
    return int(context.cfg.train_affinity.output_stride)


def _walking_net(context: Context) -> tuple[WalkingNet, LoadTensor]:
    """What predicts affinities, and what loads images for it."""
    if context.cfg.walk.affinity == "attention":
        vit = AttentionNet(**context.plain("walk.attention"))
        to_device(vit, context.device)
        return vit, LoadTensor(vit.mean, vit.std, context.max_side)
    net = context.affinity_net()
    return net, prepare(net, context.inputs["train_affinity"], context)


def make_random_walk(context: Context, directory: Path) -> dict[str, Any]:
    """Spread the activation maps along affinities (Ahn & Kwak, CVPR 2018, section 3.3).

    The walk is linear: the backgrounds of other α walk along, so that these can be scored too.
    """
    section = context.cfg.walk
    output = {
        "scores": context.writer(directory / "scores", ".npz"),
        "masks": context.writer(directory / "masks", ".png"),
    }
    walked = output["scores"].stored
    # the background's own α comes first, then the others
    alphas = (section.alpha, *section.alpha_sweep) if context.source.background else ()
    net, image = _walking_net(context)
    load = LoadWalk(image, Records(context.inputs["make_cam"], ".npz"), alphas, walked)
    options = walk_options(context)

    @torch.inference_mode()
    def work(sample: Sample, start: tuple[Tensor, Tensor, Tensor] | None) -> bytes | None:
        if start is None:
            return None
        image, classes, stack = start
        with enough_memory(image):
            maps = net.propagate(
                image.to(context.device), stack[None].to(context.device), **options
            )[0]
        first, rest = maps[: len(alphas)], maps[len(alphas) :]
        return encode_scores(
            classes,
            torch.cat([first[:1], rest]),
            (image.shape[2], image.shape[3]),
            backgrounds=first[1:],
            dtype=section.store_dtype,
        )

    finish = FinishMask(
        walked=walked,
        max_side=context.max_side,
        stride=net.stride,
        background=context.source.background,
        crf=DenseCRF(**context.plain("walk.crf")) if section.crf.num_iterations else None,
    )
    problems = map_images(
        "random_walk",
        context.source.train,
        load,
        work,
        finish,
        num_workers=context.num_workers,
        output=output,
        skip=context.skip,
    )
    return made(context, problems)
