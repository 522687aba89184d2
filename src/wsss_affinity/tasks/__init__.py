"""LightningModules of the three networks."""

from wsss_affinity.tasks.affinity import AffinityTask
from wsss_affinity.tasks.base import Optimization
from wsss_affinity.tasks.cam import CAMTask
from wsss_affinity.tasks.segmentation import SegmentationTask

__all__ = ["AffinityTask", "CAMTask", "Optimization", "SegmentationTask"]
