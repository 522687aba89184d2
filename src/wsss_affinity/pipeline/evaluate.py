"""The stage that scores what the others made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.data.images import load_mask, resize_mask
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.files import write_bytes
from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.metrics import ThresholdSweep, class_iou, confusion_matrix, mean_iou
from wsss_affinity.pipeline.context import Context
from wsss_affinity.pipeline.mapping import map_samples
from wsss_affinity.pipeline.maps import read_scores, resize_scores
from wsss_affinity.pipeline.predict import segment
from wsss_affinity.pipeline.sheet import contact_sheet

METRICS = "metrics.json"


@dataclass(frozen=True)
class Score:
    """One line of the table, with all that is needed to know what it means.

    Attributes:
        name: What was scored.
        stage: The stage that made it.
        split: Where: ``"score"`` (training images) or ``"val"`` (unseen ones).
        images: How many.
        miou: Mean IoU over the labels that occur.
        iou: IoU of each label that occurs, background first.
        labels_given: Whether image-level labels were used at inference.
        threshold: Background threshold, where there is one.
        saw_masks: Whether masks chose it.
        crf: Whether a dense CRF refined the result.
        coverage: Share of pixels that have a label, where not all have.
    """

    name: str
    stage: str
    split: str
    images: int
    miou: float
    iou: dict[str, float] = field(default_factory=dict)
    labels_given: bool = True
    threshold: float | None = None
    saw_masks: bool = False
    crf: bool = False
    coverage: float | None = None


def evaluate(context: Context, directory: Path) -> dict[str, Any]:
    """Score every artefact at hand against the masks, where there are masks.

    Leaves ``metrics.json``, the contact sheet, and the predictions for ``val``.
    """
    made, source = context.inputs, context.source
    scores: list[Score] = []
    if source.score:
        if "make_cam" in made:
            scores += _score_cam(context)
        if "affinity_labels" in made:
            scores.append(_score_labels(context))
        if "random_walk" in made:
            folder = made["random_walk"] / "masks"
            confusion = _confusion(context, "evaluate: masks", source.score, folder)
            crf = bool(context.cfg.walk.crf.num_iterations)
            detail = {"stage": "random_walk", "split": "score", "crf": crf}
            scores.append(_score("pseudo-masks", confusion, source, source.score, **detail))
    if "train_segmentation" in made and source.val:
        folder = directory / "predictions"
        segment(
            "evaluate: predict",
            made["train_segmentation"],
            source.val,
            folder,
            num_workers=context.num_workers,
            device=context.device,
            scales=context.cfg.evaluate.scales,
            flip=context.cfg.evaluate.flip,
        )
        confusion = _confusion(context, "evaluate: val", source.val, folder)
        detail = {"stage": "train_segmentation", "split": "val", "labels_given": False}
        scores.append(_score("segmentation", confusion, source, source.val, **detail))
    content = {"classes": list(source.classes), "scores": [asdict(s) for s in scores]}
    write_bytes(directory / METRICS, (json.dumps(content, indent=2) + "\n").encode())
    contact_sheet(context, directory / "contact_sheet.png", context.cfg.evaluate.sheet_images)
    return {"images": len(source.score) + len(source.val), **content}


def _score(
    name: str,
    confusion: NDArray[np.int64],
    source: Source,
    samples: tuple[Sample, ...],
    **detail: Any,
) -> Score:
    labels = ("background", *source.classes)
    values = class_iou(confusion)
    iou = {n: round(float(v), 4) for n, v in zip(labels, values, strict=True) if np.isfinite(v)}
    return Score(
        name=name, images=len(samples), miou=round(mean_iou(confusion), 4), iou=iou, **detail
    )


@dataclass(frozen=True)
class _CountCam:
    source: Source
    cams: Path

    def __call__(self, sample: Sample) -> NDArray[np.int64]:
        target = self.source.read_mask(sample)
        classes, cam, _ = read_scores(self.cams / f"{sample.id}.npz")
        sweep = ThresholdSweep(len(self.source.classes))
        if len(classes) == 0:
            nothing = np.zeros(target.shape)
            return sweep.update(nothing, nothing.astype(np.int64), target)
        score, best = resize_scores(cam, (target.shape[0], target.shape[1])).max(0)
        return sweep.update(score.numpy(), classes[best].numpy(), target)


def _score_cam(context: Context) -> list[Score]:
    source = context.source
    sweep = ThresholdSweep(len(source.classes))
    work = _CountCam(source, context.inputs["make_cam"])
    workers = context.num_workers
    for _, counts in map_samples("evaluate: CAM", source.score, work, num_workers=workers):
        sweep.counts += counts
    best, _ = sweep.best()
    fixed = float(context.cfg.evaluate.cam_threshold)
    return [
        _score(
            name,
            sweep.confusion(threshold),
            source,
            source.score,
            stage="make_cam",
            split="score",
            threshold=threshold,
            saw_masks=saw_masks,
        )
        for name, threshold, saw_masks in (("CAM", fixed, False), ("CAM, best", best, True))
    ]


@dataclass(frozen=True)
class _CountMask:
    source: Source
    folder: Path

    def __call__(self, sample: Sample) -> tuple[NDArray[np.int64], int, int]:
        target = self.source.read_mask(sample)
        mask = load_mask(self.folder / f"{sample.id}.png")
        prediction = resize_mask(mask, (target.shape[0], target.shape[1]))
        confusion = confusion_matrix(prediction, target, len(self.source.classes) + 1)
        known = target != UNSURE
        return confusion, int((known & (prediction != UNSURE)).sum()), int(known.sum())


def _confusion(
    context: Context, name: str, samples: tuple[Sample, ...], folder: Path
) -> NDArray[np.int64]:
    return _count(context, name, samples, folder)[0]


def _count(
    context: Context, name: str, samples: tuple[Sample, ...], folder: Path
) -> tuple[NDArray[np.int64], float]:
    labels = len(context.source.classes) + 1
    total, labelled, known = np.zeros((labels, labels), dtype=np.int64), 0, 0
    work = _CountMask(context.source, folder)
    for _, result in map_samples(name, samples, work, num_workers=context.num_workers):
        total += result[0]
        labelled += result[1]
        known += result[2]
    return total, labelled / max(known, 1)


def _score_labels(context: Context) -> Score:
    source = context.source
    folder = context.inputs["affinity_labels"] / "labels"
    confusion, coverage = _count(context, "evaluate: labels", source.score, folder)
    detail = {"stage": "affinity_labels", "split": "score", "coverage": round(coverage, 4)}
    return _score("affinity labels", confusion, source, source.score, crf=True, **detail)
