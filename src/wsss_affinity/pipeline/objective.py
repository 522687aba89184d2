"""The one number that a sweep compares its points by; larger is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from wsss_affinity.data.images import resize_mask
from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.metrics import mean_iou
from wsss_affinity.pipeline.context import Context, leave_out
from wsss_affinity.pipeline.mapping import map_samples
from wsss_affinity.pipeline.maps import LoadTensor, prepare
from wsss_affinity.pipeline.plan import stage_graph
from wsss_affinity.pipeline.runner import RunResult
from wsss_affinity.pipeline.scores import read_labels
from wsss_affinity.pipeline.scoring import rounded
from wsss_affinity.pipeline.storage import Records
from wsss_affinity.pipeline.sweep import CountMask, tally_images
from wsss_affinity.summary import scores_by_name

_MASKS, _EVIDENCE = "pseudo_masks.miou", "pseudo_masks.evidence"
#: the stages that each objective needs
_OBJECTIVES: dict[str, tuple[str, ...]] = {
    _MASKS: ("random_walk",),
    _EVIDENCE: ("train_cam", "random_walk"),
    "cam.miou": ("make_cam", "evaluate"),
    "affinity_labels.miou": ("affinity_labels", "evaluate"),
    "segmentation.miou": ("train_segmentation", "evaluate"),
}
#: images that the evidence is looked for in, at most
_LOOKED_AT = 500


@dataclass(frozen=True)
class Objective:
    """What a point of a sweep is worth.

    Attributes:
        name: As in the configuration.
        value: Larger is better.
    """

    name: str
    value: float


def check_objective(cfg: DictConfig) -> None:
    """Refuse an objective that cannot come of the stages.

    Raises:
        WSSSError: If it is not known, or a stage that it needs is not among them.
    """
    name = cfg.objective
    if name is None:
        return
    if name not in _OBJECTIVES:
        raise WSSSError(f"objective is {name!r}; {did_you_mean(str(name), _OBJECTIVES)}")
    absent = [stage for stage in _OBJECTIVES[name] if stage not in stage_graph(cfg)]
    if absent:
        raise WSSSError(f"objective {name} needs {absent[0]}, which is not among pipeline.stages")


def objective(cfg: DictConfig, result: RunResult) -> Objective | None:
    """Tell what a run is worth.

    ``<stage>.miou`` is what ``evaluate`` says of it; that of the pseudo-masks does not need
    ``evaluate``, so that a sweep over the walk can end with the walk. ``pseudo_masks.evidence``
    needs no masks, see :func:`evidence`. Where the configuration names none, it is
    ``pseudo_masks.miou`` where there are masks to score with, ``pseudo_masks.evidence`` where
    there are none, and ``segmentation.miou`` where there are no pseudo-masks.

    Args:
        cfg: Of the run.
        result: What it left.

    Returns:
        None if none is named and there is none.

    Raises:
        WSSSError: If there are no masks for the one that is named, or no classifier for the
            evidence.
    """
    source = result.source
    walk = result.stages.get("random_walk")
    name = cfg.objective
    if name is None:
        no_masks = source is None or not source.score
        name = "segmentation.miou" if walk is None else _EVIDENCE if no_masks else _MASKS
    value = scores_by_name(result.scores).get(name)
    if value is None and walk is not None and source is not None:
        context = Context(cfg, source, failed={"random_walk": walk.failed})
        masks = Records(walk.path / "masks", ".png")
        if name == _MASKS and source.score:
            work = CountMask(source, masks)
            (tally,) = tally_images(context, "objective", context.scored("random_walk"), work, 1)
            value = rounded(mean_iou(tally.confusion[0]))
        elif name == _EVIDENCE and "train_cam" in stage_graph(cfg):
            if "train_cam" not in result.stages:
                raise WSSSError(
                    f"objective {name} needs the artefact of train_cam, which is gone; add "
                    "train_cam to pipeline.only, or choose another objective"
                )
            trained = result.stages["train_cam"].path
            samples = leave_out(source.train, walk.failed)
            value = rounded(evidence(context, samples, masks, trained))
    if value is not None:
        return Objective(name, float(value))
    if cfg.objective is None:
        return None
    lacks = "is no classifier" if name == _EVIDENCE else "are no masks"
    raise WSSSError(f"objective {name} cannot be told, there {lacks} for it; choose another")


def evidence(context: Context, samples: Sequence[Sample], masks: Records, trained: Path) -> float:
    r"""How well masks hold what the classifier goes by, told without ground truth.

    The mean over images and their labels c of

    .. math:: p_c(\text{only the pixels of } c) - p_c(\text{all others})
        - \frac{|\text{pixels of } c|}{|\text{image}|}

    where p is the classifier's probability and pixels left out have the mean colour. An object
    that is whole and alone comes near 1; nothing at all, or the whole image, is worth 0 or less.

    It is made for comparing walks, CRFs and affinities over the maps of one classifier: another
    one (other backbone, other seed) has other probabilities. It believes the classifier: what
    always stands beside a class (rails beside trains) counts as part of it, and parts of an object
    that tell nothing are not missed.

    Args:
        context: Of the run.
        samples: At most 500 of them, evenly spread, are looked at.
        masks: Their pseudo-masks.
        trained: The artefact of ``train_cam``.

    Returns:
        NaN if no image has a label.
    """
    net = context.cam_net()
    load = LoadWithMask(prepare(net, trained, context), masks)
    chosen = [sample for sample in samples if sample.labels]
    chosen = chosen[:: max(1, -(-len(chosen) // _LOOKED_AT))]
    found: list[float] = []
    with torch.inference_mode():
        results = map_samples("objective", chosen, load, num_workers=context.num_workers)
        for sample, (image, mask) in results:
            image = image.to(context.device)
            for label in sample.labels:
                inside = torch.from_numpy(mask == label + 1).to(image)
                # normalised, so that 0 is the mean colour
                alone, rest = net(torch.cat([image * inside, image * (1 - inside)])).sigmoid()
                found.append(float(alone[label] - rest[label] - inside.mean()))
    return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True)
class LoadWithMask:
    """Loads an image and its pseudo-mask at the size that the image is worked on at."""

    image: LoadTensor
    masks: Records

    def __call__(self, sample: Sample) -> tuple[Tensor, NDArray[np.uint8]]:
        """Load both."""
        image = self.image(sample)
        mask = read_labels(self.masks, sample.id)
        return image, resize_mask(mask, (image.shape[-2], image.shape[-1]))
