"""Activation maps of ``val``, made with its labels given and scored, as in the published code."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from wsss_affinity.data.source import Problem, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.context import Context, leave_out
from wsss_affinity.pipeline.maps import write_cams
from wsss_affinity.pipeline.scoring import Score, make_score
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.sweep import CountCam, tally_images


def check_val_cam(cfg: DictConfig, source: Source) -> None:
    """Refuse what :func:`score_val_cam` cannot do.

    Raises:
        WSSSError: If it is asked for and no image of ``val`` has a label.
    """
    if cfg.evaluate.val_cam and source.val and not any(s.labels for s in source.val):
        raise WSSSError(
            "evaluate.val_cam gives the CAM the labels of the val images, but this data set has "
            "none for them; set evaluate.val_cam=false"
        )


def score_val_cam(context: Context, folder: Path) -> tuple[Score, list[Problem]]:
    """Make and score them at the threshold that was fixed beforehand.

    Args:
        context: With the artefact of ``train_cam``.
        folder: Gets the maps.

    Returns:
        The score, and images that failed.
    """
    source, section = context.source, context.cfg.evaluate
    samples = source.val
    if section.val_drop_last:
        batch = int(context.cfg.train_cam.batch_size)
        samples = samples[: len(samples) // batch * batch]
    failed = write_cams(context, samples, "evaluate: val CAM", folder)
    cams = Records(folder, ".npz")
    threshold = float(section.cam_threshold) if source.background else None
    if threshold is None:
        work = CountCam(source, cams, (), ())
    else:
        work = CountCam(source, cams, (threshold,), (float(section.cam_alpha),))
    # of the thresholds and of α; without background there is one
    settings = (1,) if threshold is None else (1, 1)
    left = leave_out(samples, failed)
    tally = tally_images(context, "evaluate: val CAM", left, work, *settings)[0]
    score = make_score(
        "CAM, val",
        tally,
        source=source,
        split="val",
        stage="train_cam",
        threshold=threshold,
        missing=len(failed),
    )
    return score, failed
