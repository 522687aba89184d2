"""Looks at the settings of all stages before the first of them runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss_affinity.data.transforms import TrainTransform
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.layers.dense_crf import DenseCRF
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.random_walk import random_walk
from wsss_affinity.models import AffinityNet, AttentionNet, CAMNet, SegmentationNet
from wsss_affinity.models.cam_methods import check_cam_method
from wsss_affinity.pipeline.context import backbone_options
from wsss_affinity.pipeline.storage import FORMATS
from wsss_affinity.tasks.base import Optimization, optimizer_class

_DTYPES = ("float16", "float32")


def check_settings(cfg: DictConfig, stages: Collection[str], classes: Sequence[str] = ()) -> None:
    """Refuse values that a stage would stumble over, hours later perhaps.

    Args:
        cfg: The whole configuration.
        stages: Names of the stages that are going to run.
        classes: Of the data set.

    Raises:
        WSSSError: With the key and what was expected.
    """
    _whole(cfg.seed, "seed", 0)
    _one_of(cfg.artifacts.format, FORMATS, "artifacts.format")
    if cfg.data.num_workers is not None:
        _whole(cfg.data.num_workers, "data.num_workers", 0)
    if cfg.data.max_side is not None:
        _whole(cfg.data.max_side, "data.max_side", 1)
    for name in ("train_cam", "train_affinity", "train_segmentation"):
        if name in stages:
            _whole(cfg[name].batch_size, f"{name}.batch_size", 1)
            # without training something else must have made the weights
            least = 1 if name == "train_segmentation" or cfg[name].weights is None else 0
            _whole(cfg[name].max_epochs, f"{name}.max_epochs", least)
            with _key(f"{name}.optimization"):
                Optimization(**cfg[name].optimization)
            _positive(cfg[name].optimization.lr, f"{name}.optimization.lr")
            optimizer_class(cfg[name].optimization.name)
            with _key(f"{name}.transform"):
                TrainTransform(mean=IMAGENET_MEAN, std=IMAGENET_STD, **cfg[name].transform)
    for name in ("affinity_labels", "walk", "evaluate"):
        _whole(cfg[name].crf.num_iterations, f"{name}.crf.num_iterations", 0)
        with _key(f"{name}.crf"):
            DenseCRF(**cfg[name].crf)
    dropout = cfg.train_cam.dropout
    if dropout is not None and not (_is_number(dropout) and 0 <= dropout < 1):
        raise WSSSError(f"train_cam.dropout must be null or lie in [0, 1), got {dropout!r}")
    if "make_cam" in stages:
        if cfg.cams_from is None:
            check_cam_method(cfg.cam.method)
            _scales(cfg.cam.scales, "cam.scales")
            _whole(cfg.cam.store_stride, "cam.store_stride", 1)
        _one_of(cfg.cam.store_dtype, _DTYPES, "cam.store_dtype")
        _height_prior(cfg.cam.height_prior, classes)
    if "affinity_labels" in stages:
        _one_of(cfg.affinity_labels.format, ("hard", "soft"), "affinity_labels.format")
        _positive(cfg.affinity_labels.alpha_low, "affinity_labels.alpha_low")
        _positive(cfg.affinity_labels.alpha_high, "affinity_labels.alpha_high")
    if "train_cam" in stages:
        _builds(cfg, "train_cam", CAMNet, num_classes=1)
    if "train_affinity" in stages:
        _crop(cfg)
        _builds(cfg, "train_affinity", AffinityNet)
    if "random_walk" in stages:
        _walk(cfg)
    if "train_segmentation" in stages:
        section = cfg.train_segmentation
        encoder = OmegaConf.to_container(section, resolve=True)["encoder"]  # type: ignore[index, call-overload]
        SegmentationNet(2, architecture=section.architecture, encoder=encoder)
    if "evaluate" in stages:
        _evaluate(cfg.evaluate)


def _whole(value: Any, key: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WSSSError(f"{key} must be a whole number of at least {least}, got {value!r}")


def _one_of(value: Any, choices: tuple[str, ...], key: str) -> None:
    if value not in choices:
        raise WSSSError(f"{key} must be {' or '.join(map(repr, choices))}, got {value!r}")


def _height_prior(prior: Any, classes: Sequence[str]) -> None:
    if not OmegaConf.is_dict(prior):
        raise WSSSError(f"cam.height_prior must be a mapping, {{}} for none, got {prior!r}")
    for name, value in prior.items():
        if name not in classes:
            raise WSSSError(
                f"cam.height_prior: {name!r} is no class; {did_you_mean(name, classes)}"
            )
        numbers = list(value) if OmegaConf.is_list(value) else []
        if len(numbers) != 2 or not all(map(_is_number, numbers)) or not numbers[1] > 0:
            raise WSSSError(
                f"cam.height_prior.{name} must be [centre, spread] with a positive spread, "
                f"e.g. [0.0, 0.2], got {value}"
            )


def _scales(value: Any, key: str) -> None:
    _positives(value, key)
    if not len(value):
        raise WSSSError(f"{key} must hold at least one factor, e.g. [0.5,1.0], got []")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(value: Any, key: str) -> None:
    if not _is_number(value) or not value > 0:
        raise WSSSError(f"{key} must be a positive number, got {value!r}")


def _positives(value: Any, key: str) -> None:
    values: list[Any] = list(value) if OmegaConf.is_list(value) else [None]
    if not all(_is_number(v) and v > 0 for v in values):
        raise WSSSError(f"{key} must be a list of positive numbers, e.g. [0.5,1.0], got {value!r}")


def _builds(
    cfg: DictConfig, stage: str, kind: type[CAMNet] | type[AffinityNet], **options: Any
) -> None:
    """Build a network without memory for its weights, and without those that it starts from."""
    options |= {"output_stride": cfg[stage].output_stride, **backbone_options(cfg)}
    try:
        with torch.device("meta"):
            kind(**options | {"weights": None})
    except WSSSError as error:
        raise WSSSError(f"backbone with {stage}.output_stride: {error}") from error


def _crop(cfg: DictConfig) -> None:
    section = cfg.train_affinity
    with _key("train_affinity.radius"):
        neighborhood = Neighborhood(section.radius)
    with _key("train_affinity.border"):
        neighborhood.valid(1, 1, section.border)
    if section.transform.crop_size % section.output_stride:
        raise WSSSError(
            f"train_affinity.transform.crop_size must be a multiple of output_stride "
            f"{section.output_stride}, got {section.transform.crop_size}"
        )


def _walk(cfg: DictConfig) -> None:
    walk, radius = cfg.walk, cfg.train_affinity.radius
    if walk.affinity == "attention":
        radius = walk.attention.radius
        if walk.attention.weights is None:
            raise WSSSError(
                "walk.attention.weights must be imagenet or the path of a state dict, got null: "
                "at random the attention says nothing"
            )
        with torch.device("meta"), _key("walk.attention"):
            AttentionNet(**{**walk.attention, "weights": None})
    _one_of(walk.padding, ("masked", "psa"), "walk.padding")
    _one_of(walk.store_dtype, _DTYPES, "walk.store_dtype")
    _positive(walk.alpha, "walk.alpha")
    _positives(walk.alpha_sweep, "walk.alpha_sweep")
    for name in ("beta", "tol"):  # the walk tells their range
        if not _is_number(walk[name]):
            raise WSSSError(f"walk.{name} must be a positive number, got {walk[name]!r}")
    with _key("walk"):
        neighborhood = Neighborhood(radius)
        neighborhood.valid(1, 1, walk.border)
        random_walk(
            torch.zeros(1, 0, 1, 1),
            torch.zeros(1, len(neighborhood), 1, 1),
            radius=radius,
            beta=walk.beta,
            num_steps=walk.num_steps,
            method=walk.method,
            tol=walk.tol,
        )


def _evaluate(section: DictConfig) -> None:
    _scales(section.scales, "evaluate.scales")
    threshold = section.cam_threshold
    if not _is_number(threshold) or not 0 <= threshold < 1:
        raise WSSSError(f"evaluate.cam_threshold must be at least 0 and below 1, got {threshold!r}")
    _positive(section.cam_alpha, "evaluate.cam_alpha")
    _positives(section.cam_alphas, "evaluate.cam_alphas")
    if not OmegaConf.is_list(section.crf_iterations):
        raise WSSSError(
            "evaluate.crf_iterations must be a list of whole numbers, e.g. [0,1,5,10], "
            f"got {section.crf_iterations!r}"
        )
    for number in section.crf_iterations:
        _whole(number, "evaluate.crf_iterations", 0)
    name = section.submission_name
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        raise WSSSError(
            "evaluate.submission_name must be the name of a folder, e.g. comp6_test_cls, or null, "
            f"got {name!r}"
        )


@contextmanager
def _key(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise WSSSError(f"{name}: {error}") from error
