"""Looks at the settings of all stages before the first of them runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.layers.dense_crf import DenseCRF
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.random_walk import random_walk
from wsss_affinity.models import SegmentationNet
from wsss_affinity.tasks.base import Optimization, optimizer_class


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
    if cfg.data.num_workers is not None:
        _whole(cfg.data.num_workers, "data.num_workers", 0)
    if cfg.data.max_side is not None:
        _whole(cfg.data.max_side, "data.max_side", 1)
    for name in ("train_cam", "train_affinity", "train_segmentation"):
        if name in stages:
            _whole(cfg[name].batch_size, f"{name}.batch_size", 1)
            _whole(cfg[name].max_epochs, f"{name}.max_epochs", 1)
            with _key(f"{name}.optimization"):
                Optimization(**cfg[name].optimization)
            optimizer_class(cfg[name].optimization.name)
    for name in ("affinity_labels", "walk", "evaluate"):
        with _key(f"{name}.crf"):
            DenseCRF(**cfg[name].crf)
    if "make_cam" in stages:
        _scales(cfg.cam.scales, "cam.scales")
        _whole(cfg.cam.store_stride, "cam.store_stride", 1)
        _one_of(cfg.cam.store_dtype, ("float16", "float32"), "cam.store_dtype")
        _height_prior(cfg.cam.height_prior, classes)
    if "affinity_labels" in stages:
        _one_of(cfg.affinity_labels.format, ("hard", "soft"), "affinity_labels.format")
    if "train_affinity" in stages:
        _crop(cfg)
    if "random_walk" in stages:
        _walk(cfg)
    if "train_segmentation" in stages:
        section = cfg.train_segmentation
        SegmentationNet(2, architecture=section.architecture, encoder=section.encoder)
    if "evaluate" in stages:
        _evaluate(cfg.evaluate)


def _whole(value: Any, key: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WSSSError(f"{key} must be a whole number of at least {least}, got {value!r}")


def _one_of(value: Any, choices: tuple[str, ...], key: str) -> None:
    if value not in choices:
        raise WSSSError(f"{key} must be {' or '.join(map(repr, choices))}, got {value!r}")


def _height_prior(prior: Any, classes: Sequence[str]) -> None:
    for name, value in prior.items():
        if name not in classes:
            raise WSSSError(
                f"cam.height_prior: {name!r} is no class; {did_you_mean(name, classes)}"
            )
        numbers = list(value) if OmegaConf.is_list(value) else []
        if len(numbers) != 2 or not all(isinstance(v, (int, float)) for v in numbers):
            numbers = [0, 0]
        if not numbers[1] > 0:
            raise WSSSError(
                f"cam.height_prior.{name} must be [centre, spread] with a positive spread, "
                f"e.g. [0.0, 0.2], got {value}"
            )


def _scales(value: Any, key: str) -> None:
    numbers = list(value) if value else []
    if not numbers or not all(isinstance(v, (int, float)) and v > 0 for v in numbers):
        raise WSSSError(f"{key} must be a list of positive factors, e.g. [0.5,1.0], got {numbers}")


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
    _one_of(walk.padding, ("masked", "psa"), "walk.padding")
    if not walk.alpha > 0:
        raise WSSSError(f"walk.alpha must be positive, got {walk.alpha}")
    if not all(alpha > 0 for alpha in walk.alpha_sweep):
        raise WSSSError(f"walk.alpha_sweep must be positive numbers, got {walk.alpha_sweep}")
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
    if not 0 <= section.cam_threshold < 1:
        raise WSSSError(
            f"evaluate.cam_threshold must be at least 0 and below 1, got {section.cam_threshold}"
        )
    for alpha in (section.cam_alpha, *section.cam_alphas):
        if not alpha > 0:
            raise WSSSError(
                f"evaluate.cam_alpha and evaluate.cam_alphas must be positive, got {alpha}"
            )
    _whole(section.crf.num_iterations, "evaluate.crf.num_iterations", 0)
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
