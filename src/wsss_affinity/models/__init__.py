"""The three networks of the method, plain torch."""

from wsss_affinity.models.affinity_net import AffinityNet
from wsss_affinity.models.cam_net import CAMNet
from wsss_affinity.models.segmentation_net import SegmentationNet

__all__ = ["AffinityNet", "CAMNet", "SegmentationNet"]
