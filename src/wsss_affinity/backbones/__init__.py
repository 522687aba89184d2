"""Backbones: a small contract, a registry, and adapters to torchvision and timm."""

from wsss_affinity.backbones import resnet38d as _resnet38d  # these register their names
from wsss_affinity.backbones import tiny as _tiny
from wsss_affinity.backbones import torchvision as _torchvision
from wsss_affinity.backbones import vgg16 as _vgg16
from wsss_affinity.backbones.base import Backbone, FeatureInfo, HeadStyle, load_weights
from wsss_affinity.backbones.registry import (
    _BUILDERS,
    Spec,
    create_backbone,
    list_backbones,
    register_backbone,
    register_object,
)

#: names of our own networks, before any program registers its own
SHIPPED = frozenset(_BUILDERS)

__all__ = [
    "Backbone",
    "FeatureInfo",
    "HeadStyle",
    "Spec",
    "create_backbone",
    "list_backbones",
    "load_weights",
    "register_backbone",
    "register_object",
]
del _BUILDERS, _resnet38d, _tiny, _torchvision, _vgg16
