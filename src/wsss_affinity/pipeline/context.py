"""What a stage is given."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from wsss_affinity.backbones import register_object
from wsss_affinity.backbones.registry import TARGET
from wsss_affinity.config import BACKBONE_KEYS
from wsss_affinity.data.datamodule import resolve_workers
from wsss_affinity.data.source import Problem, Sample, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet
from wsss_affinity.pipeline.storage import RecordWriter, record_writer
from wsss_affinity.tasks import Optimization


@dataclass(frozen=True)
class Context:
    """The composed configuration, the checked data set, and the artefacts a stage reads.

    Attributes:
        cfg: The whole configuration.
        source: The data set, unusable photographs left out, and of ``train`` those that an
            input holds nothing of.
        inputs: Directory of each artefact that the stage reads, by stage.
        failed: Images that an input holds nothing of, by stage.
    """

    cfg: DictConfig
    source: Source
    inputs: Mapping[str, Path] = field(default_factory=dict)
    failed: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)

    @property
    def num_workers(self) -> int:
        """Worker processes for data and maps."""
        return resolve_workers(self.cfg.data.num_workers)

    @property
    def skip(self) -> bool:
        """Whether the work goes on without images that fail."""
        return bool(self.cfg.data.on_error == "skip")

    def writer(self, folder: Path, suffix: str) -> RecordWriter:
        """Open a folder of the stage's artefact for records, in the format that is asked for."""
        return record_writer(folder, suffix, self.cfg.artifacts.format)

    def scored(self, stage: str) -> tuple[Sample, ...]:
        """Images to score that the artefact of a stage holds."""
        return leave_out(self.source.score, self.failed.get(stage, ()))

    @property
    def max_side(self) -> int | None:
        """Working size of long images."""
        value: int | None = self.cfg.data.max_side
        return value

    @property
    def device(self) -> torch.device:
        """Where map stages run their networks."""
        return inference_device(self.cfg.trainer.accelerator)

    def plain(self, key: str) -> dict[str, Any]:
        """A section of the configuration as plain Python."""
        section = OmegaConf.to_container(OmegaConf.select(self.cfg, key), resolve=True)
        assert isinstance(section, dict)
        return {str(name): value for name, value in section.items()}

    def optimization(self, stage: str) -> Optimization:
        """How a stage trains."""
        return Optimization(**self.plain(f"{stage}.optimization"))

    def cam_net(self) -> CAMNet:
        """The classifier, untrained."""
        section = self.cfg.train_cam
        options = {"output_stride": section.output_stride, "dropout": section.dropout}
        return CAMNet(num_classes=len(self.source.classes), **options, **self._backbone())

    def affinity_net(self) -> AffinityNet:
        """AffinityNet, untrained."""
        section = self.cfg.train_affinity
        options = {"output_stride": section.output_stride, "radius": section.radius}
        return AffinityNet(**options, **self._backbone())

    def segmentation_net(self) -> SegmentationNet:
        """The segmentation network, untrained."""
        section = self.cfg.train_segmentation
        return SegmentationNet(
            num_classes=len(self.source.classes) + int(self.source.background),
            architecture=section.architecture,
            encoder=self.plain("train_segmentation")["encoder"],
            weights=section.weights,
            freeze_batchnorm=section.freeze_batchnorm,
        )

    def _backbone(self) -> dict[str, Any]:
        return backbone_options(self.cfg)


def backbone_options(cfg: DictConfig) -> dict[str, Any]:
    """The section ``backbone`` as arguments of a network.

    Raises:
        WSSSError: If it is not whole.
    """
    section = OmegaConf.to_container(cfg.backbone, resolve=True)
    assert isinstance(section, dict)
    options = {str(name): value for name, value in section.items()}
    absent = [key for key in BACKBONE_KEYS if key not in options]
    if absent or (TARGET in options and isinstance(options["name"], str)):
        what = f"lacks {', '.join(absent)}" if absent else f"has a name beside {TARGET}"
        raise WSSSError(
            f"the backbone's configuration {what}; begin it with `defaults: [target, _self_]`, or "
            "choose backbone=target on the command line"
        )
    spec = options.pop("name")
    if isinstance(spec, dict):  # it holds the arguments
        options = {key: options[key] for key in BACKBONE_KEYS if key in options}
    return {"backbone": spec, **options}


def with_backbone(cfg: DictConfig, module: nn.Module) -> DictConfig:
    """The configuration with a network of the caller's own as its backbone.

    Its class, layers and weights are part of the fingerprints; every stage starts from a copy.
    With ``backbone=registered`` and no name the section's other keys are for it; otherwise they are
    another network's.
    """
    changed = copy.deepcopy(cfg)
    section: dict[str, Any] = {"weights": None, "freeze_batchnorm": False, "freeze_stages": 0}
    if OmegaConf.is_missing(cfg.backbone, "name"):
        section = {str(name): value for name, value in cfg.backbone.items_ex(resolve=False)}
    OmegaConf.update(changed, "backbone", section | {"name": register_object(module)}, merge=False)
    return changed


def leave_out(samples: Sequence[Sample], problems: Iterable[Problem]) -> tuple[Sample, ...]:
    """The samples without those that failed."""
    bad = {problem.id for problem in problems}
    return tuple(sample for sample in samples if sample.id not in bad)


def inference_device(accelerator: str) -> torch.device:
    """CUDA where the trainer's accelerator allows it and there is one, the CPU elsewhere."""
    allowed = accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if allowed and torch.cuda.is_available() else "cpu")
