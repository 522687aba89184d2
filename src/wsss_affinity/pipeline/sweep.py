"""Background thresholds, α and CRF iterations, each scored in one pass over stored scores.

A value chosen by its score has seen the masks. What was fixed beforehand is scored beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_affinity.data.images import load_image, resize_mask
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.layers import DenseCRF, add_background
from wsss_affinity.metrics import ImageCounts, Tally, count_maps, count_thresholds
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.mapping import map_samples
from wsss_affinity.pipeline.scores import (
    best_labels,
    finish_scores,
    read_backgrounds,
    read_labels,
    read_scores,
    resize_scores,
)
from wsss_affinity.pipeline.scoring import Score, make_score, sweep_rows
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.walk import walk_stride

Counts = Callable[[Sample], tuple[ImageCounts, ...]]
Rows = list[dict[str, Any]]


def tally_images(
    context: Context, name: str, samples: Sequence[Sample], work: Counts, *settings: int
) -> list[Tally]:
    """Sum what ``work`` counts in each sample.

    Args:
        context: Says how many classes and workers there are.
        name: For the bar.
        samples: The samples.
        work: Returns one or more counts.
        settings: How many settings each of these has.
    """
    tallies = [Tally(len(context.source.classes) + 1, number) for number in settings]
    for _, counts in map_samples(name, samples, work, num_workers=context.num_workers):
        for tally, image in zip(tallies, counts, strict=True):
            tally.add(image)
    return tallies


@dataclass(frozen=True)
class CountMask:
    """Counts the pixels of an image's stored label map."""

    source: Source
    masks: Records

    def __call__(self, sample: Sample) -> tuple[ImageCounts, ...]:
        """Count them, at the size of the ground truth."""
        target = self.source.read_mask(sample)
        return (count_maps([_labels(self.masks, sample, target)], target),)


def _labels(masks: Records, sample: Sample, like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The label map of a sample at the size of another one."""
    return resize_mask(read_labels(masks, sample.id), (like.shape[0], like.shape[1]))


@dataclass(frozen=True)
class CountCam:
    """Counts the pixels of an image's activation maps under every background.

    Attributes:
        source: The data set. Without background there is one setting, the best class.
        cams: The maps.
        thresholds: Ascending.
        alphas: Of the background score ``(1 - max CAM)^α``.
    """

    source: Source
    cams: Records
    thresholds: tuple[float, ...]
    alphas: tuple[float, ...]

    def __call__(self, sample: Sample) -> tuple[ImageCounts, ...]:
        """Count them for the thresholds, and for α."""
        target = self.source.read_mask(sample)
        classes, cam, _ = read_scores(self.cams, sample.id)
        cam = resize_scores(cam, (target.shape[0], target.shape[1]))
        if not self.source.background:
            return (count_maps([best_labels(cam, classes, False)], target),)
        # without any class a map of zeros stands in, which exceeds no threshold
        score = cam.amax(0) if len(cam) else cam.new_zeros(target.shape)
        best = best_labels(cam, classes, False) if len(cam) else np.zeros_like(target)
        maps = [best_labels(add_background(cam, a), classes, True) for a in self.alphas]
        return count_thresholds(score.numpy(), best, target, self.thresholds), count_maps(
            maps, target
        )


def score_cam(context: Context) -> tuple[list[Score], dict[str, Rows]]:
    """Score the activation maps, with background thresholds and α."""
    source, section = context.source, context.cfg.evaluate
    cams, samples = Records(context.inputs["make_cam"], ".npz"), context.scored("make_cam")
    detail: dict[str, Any] = {"source": source, "split": "score", "stage": "make_cam"}
    detail["missing"] = len(source.score) - len(samples)
    if not source.background:
        work = CountCam(source, cams, (), ())
        (tally,) = tally_images(context, "evaluate: CAM", samples, work, 1)
        return [make_score("CAM", tally, **detail)], {}
    fixed = float(section.cam_threshold)
    thresholds = tuple(sorted({fixed, *(step / 100 for step in range(1, 100))}))
    alphas = _with(float(section.cam_alpha), section.cam_alphas)
    work = CountCam(source, cams, thresholds, alphas)
    tally, by_alpha = tally_images(
        context, "evaluate: CAM", samples, work, len(thresholds), len(alphas)
    )
    default, best = thresholds.index(fixed), tally.best()
    scores = [
        make_score("CAM", tally, default, threshold=fixed, **detail),
        make_score("CAM, best", tally, best, threshold=thresholds[best], saw_masks=True, **detail),
    ]
    return scores, {
        "CAM, threshold": sweep_rows(tally, ({"threshold": t} for t in thresholds), default),
        "CAM, alpha": sweep_rows(
            by_alpha, ({"alpha": a} for a in alphas), alphas.index(float(section.cam_alpha))
        ),
    }


@dataclass(frozen=True)
class CountWalk:
    """Counts the pixels of an image's pseudo-mask, and of what other settings would have made.

    Attributes:
        source: The data set.
        masks: The pseudo-masks.
        scores: The walked scores.
        max_side: Longer images are worked on at this size.
        stride: Of AffinityNet.
        crf: Its parameters, but for the iterations.
        settings: Places of the background among those stored (None for the one that the stage
            took) and CRF iterations; the first is that of the stage, whose masks are read.
    """

    source: Source
    masks: Records
    scores: Records
    max_side: int | None
    stride: int
    crf: DenseCRF
    settings: tuple[tuple[int | None, int], ...]

    def __call__(self, sample: Sample) -> tuple[ImageCounts, ...]:
        """Count them, at the size of the ground truth."""
        target = self.source.read_mask(sample)
        maps = [_labels(self.masks, sample, target)]
        if len(self.settings) > 1:
            size = target.shape[0], target.shape[1]
            maps += [resize_mask(labels, size) for labels in self.other_masks(sample)]
        return (count_maps(maps, target),)

    def other_masks(self, sample: Sample) -> list[NDArray[np.uint8]]:
        """The masks of all settings but the first, at the size the walk worked at."""
        classes, scores, size = read_scores(self.scores, sample.id)
        wanted = self.settings[1:]
        places = list(dict.fromkeys(place for place, _ in wanted))
        others = any(place is not None for place in places)
        stored = read_backgrounds(self.scores, sample.id) if others else None
        stacks: list[Tensor] = []
        for place in places:
            if place is not None and stored is not None:
                # the walk is linear: this is the one that the other α would have given
                stack = torch.cat([stored[place : place + 1], scores[1:]])
            else:
                stack = scores
            stacks.append(finish_scores(stack, size, self.stride))
        refined: dict[tuple[int | None, int], Tensor] = {
            (place, 0): stack for place, stack in zip(places, stacks, strict=True)
        }
        iterations = sorted({n for _, n in wanted if n > 0})
        if iterations and len(scores):
            image = np.asarray(load_image(sample.image, self.max_side))
            results = self.crf.snapshots(image, stacks, iterations)
            for place, row in zip(places, results, strict=True):
                refined |= {(place, n): r for n, r in zip(iterations, row, strict=True)}
        background = self.source.background
        return [
            best_labels(refined.get((p, n), refined[p, 0]), classes, background) for p, n in wanted
        ]


def score_walk(context: Context) -> tuple[list[Score], dict[str, Rows]]:
    """Score the pseudo-masks, beside those of other α and numbers of CRF iterations."""
    source, walk = context.source, context.cfg.walk
    own = int(walk.crf.num_iterations)
    alphas: dict[float | None, int | None] = {None: None}
    if source.background:
        alphas = {float(alpha): place for place, alpha in enumerate(walk.alpha_sweep)}
        alphas[float(walk.alpha)] = None
    taken = float(walk.alpha) if source.background else None
    iterations = {own, *(int(n) for n in context.cfg.evaluate.crf_iterations)}
    settings = [(alpha, n) for alpha in alphas for n in sorted(iterations)]
    settings.sort(key=lambda setting: setting != (taken, own))  # that of the stage comes first
    work = CountWalk(
        source=source,
        masks=Records(context.inputs["random_walk"] / "masks", ".png"),
        scores=Records(context.inputs["random_walk"] / "scores", ".npz"),
        max_side=context.max_side,
        stride=walk_stride(context),
        crf=DenseCRF(**context.plain("walk.crf")),
        settings=tuple((alphas[alpha], n) for alpha, n in settings),
    )
    samples = context.scored("random_walk")
    (tally,) = tally_images(context, "evaluate: masks", samples, work, len(settings))
    detail: dict[str, Any] = {"source": source, "split": "score", "stage": "random_walk"}
    detail["missing"] = len(source.score) - len(samples)
    scores = [make_score("pseudo-masks", tally, 0, alpha=taken, crf_iterations=own, **detail)]
    best = tally.best()
    if best:
        chosen: dict[str, Any] = {"alpha": settings[best][0], "crf_iterations": settings[best][1]}
        scores.append(
            make_score("pseudo-masks, best", tally, best, saw_masks=True, **chosen, **detail)
        )
    rows = sweep_rows(tally, ({"alpha": a, "crf_iterations": n} for a, n in settings), 0)
    return scores, {"pseudo-masks": rows} if len(rows) > 1 else {}


def _with(value: float, others: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({value, *(float(other) for other in others)}))
