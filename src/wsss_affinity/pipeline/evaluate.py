"""The stage that scores what the others made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wsss_affinity import world
from wsss_affinity.data.source import Problem, Sample, Source
from wsss_affinity.files import write_bytes
from wsss_affinity.layers import DenseCRF
from wsss_affinity.pipeline.context import Context, leave_out
from wsss_affinity.pipeline.predict import load_own_network, segment
from wsss_affinity.pipeline.scoring import Score, make_score
from wsss_affinity.pipeline.sheet import contact_sheet
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.submission import file_values, write_submission
from wsss_affinity.pipeline.sweep import CountMask, score_cam, score_walk, tally_images
from wsss_affinity.pipeline.val_cam import score_val_cam

METRICS = "metrics.json"
SUBMISSION = "submission.tar.gz"


def evaluate(context: Context, directory: Path) -> dict[str, Any]:
    """Score every artefact at hand against the masks, where there are masks.

    Leaves ``metrics.json``, the contact sheet, the predictions for ``val``, and where the data
    set has test images without masks the archive for VOC's server.
    """
    made, source = context.inputs, context.source
    hand_in = "train_segmentation" in made and hands_in(context.cfg, source)
    scores: list[Score] = []
    sweeps: dict[str, list[dict[str, Any]]] = {}
    failed: list[Problem] = []
    if source.score:
        for stage, score_stage in (
            ("make_cam", score_cam),
            ("affinity_labels", _score_labels),
            ("random_walk", score_walk),
        ):
            if stage in made:
                lines, rows = score_stage(context)
                scores += lines
                sweeps |= rows
    if "train_cam" in made and source.val and context.cfg.evaluate.val_cam:
        score, failed = score_val_cam(context, directory / "val_cams")
        scores.append(score)
    if "train_segmentation" in made and source.val:
        score, problems = _score_segmentation(context, directory / "predictions")
        scores.append(score)
        failed += problems
    masks = directory / "test"
    if hand_in:
        # the server wants all of them
        _predict(context, "evaluate: test", source.test, masks, skip=False)
    if context.cfg.cam.height_prior:
        scores = [replace(s, location_prior=not s.trained_on_masks) for s in scores]
    content = {
        "classes": list(source.classes),
        "scores": [asdict(score) for score in scores],
        "sweeps": sweeps,
        "submission": SUBMISSION if hand_in else None,
        "failed": [[problem.id, problem.message] for problem in failed],
    }
    if world.rank() == 0:
        if hand_in:
            name = str(context.cfg.evaluate.submission_name)
            predicted = Records(masks, ".png")
            write_submission(directory / SUBMISSION, source, source.test, predicted, name)
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_bytes(directory / METRICS, text.encode())
        contact_sheet(context, directory / "contact_sheet.png", context.cfg.evaluate.sheet_images)
    handed_in = len(source.test) if hand_in else 0
    return {"images": len(source.score) + len(source.val) + handed_in, **content}


def hands_in(cfg: DictConfig, source: Source) -> bool:
    """Whether predictions for ``test`` are to go to VOC's server.

    Raises:
        WSSSError: If they are, and this data set's labels have no values there.
    """
    wanted = bool(source.test) and cfg.evaluate.submission_name is not None
    if wanted:
        file_values(source)
    return wanted


def _score_labels(context: Context) -> tuple[list[Score], dict[str, list[dict[str, Any]]]]:
    source = context.source
    work = CountMask(source, Records(context.inputs["affinity_labels"] / "labels", ".png"))
    samples = context.scored("affinity_labels")
    (tally,) = tally_images(context, "evaluate: labels", samples, work, 1)
    score = make_score(
        "affinity labels",
        tally,
        source=source,
        split="score",
        stage="affinity_labels",
        crf_iterations=int(context.cfg.affinity_labels.crf.num_iterations),
        missing=len(source.score) - len(samples),
    )
    return [score], {}


def _score_segmentation(context: Context, folder: Path) -> tuple[Score, list[Problem]]:
    source, cfg = context.source, context.cfg
    failed = _predict(context, "evaluate: predict", source.val, folder, skip=context.skip)
    samples = leave_out(source.val, failed)
    work = CountMask(source, Records(folder, ".png"))
    (tally,) = tally_images(context, "evaluate: val", samples, work, 1)
    score = make_score(
        "segmentation",
        tally,
        source=source,
        split="val",
        stage="train_segmentation",
        labels_given=False,
        trained_on_masks=cfg.train_segmentation.target == "ground_truth",
        crf_iterations=int(cfg.evaluate.crf.num_iterations),
        missing=len(failed),
    )
    return score, failed


def _predict(
    context: Context, name: str, samples: Sequence[Sample], output: Path, *, skip: bool
) -> list[Problem]:
    section = context.cfg.evaluate
    return segment(
        name,
        load_own_network(context.cfg, context.inputs["train_segmentation"]),
        samples,
        context.writer(output, ".png"),
        num_workers=context.num_workers,
        device=context.device,
        scales=section.scales,
        flip=section.flip,
        skip=skip,
        crf=DenseCRF(**context.plain("evaluate.crf")) if section.crf.num_iterations else None,
    )
