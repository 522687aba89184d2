"""Operators of the method, plain torch: tensors in, tensors out."""

from wsss_affinity.layers.affinity import PairwiseAffinity, pairwise_affinity
from wsss_affinity.layers.attention_affinity import attention_affinity
from wsss_affinity.layers.cam import CAMHead, add_background, normalize_cam
from wsss_affinity.layers.dense_crf import DenseCRF, dense_crf
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.random_walk import RandomWalk, random_walk

__all__ = [
    "CAMHead",
    "DenseCRF",
    "Neighborhood",
    "PairwiseAffinity",
    "RandomWalk",
    "add_background",
    "attention_affinity",
    "dense_crf",
    "normalize_cam",
    "pairwise_affinity",
    "random_walk",
]
