"""Backbones: a small contract, a registry, and adapters to torchvision and timm."""

from wsss_affinity.backbones import tiny as _tiny  # registers its names
from wsss_affinity.backbones import torchvision as _torchvision  # registers its names
from wsss_affinity.backbones.base import Backbone, FeatureInfo, load_weights
from wsss_affinity.backbones.registry import (
    create_backbone,
    list_backbones,
    register_backbone,
)

__all__ = [
    "Backbone",
    "FeatureInfo",
    "create_backbone",
    "list_backbones",
    "load_weights",
    "register_backbone",
]
del _tiny, _torchvision
