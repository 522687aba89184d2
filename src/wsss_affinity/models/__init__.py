"""The networks of the method, plain torch.

Those that need timm or segmentation-models-pytorch are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsss_affinity.models.affinity_net import AffinityNet
from wsss_affinity.models.cam_net import CAMNet

if TYPE_CHECKING:
    from wsss_affinity.models.attention_net import AttentionNet
    from wsss_affinity.models.segmentation_net import SegmentationNet

__all__ = ["AffinityNet", "AttentionNet", "CAMNet", "SegmentationNet"]

_LATER = {"AttentionNet": "attention_net", "SegmentationNet": "segmentation_net"}

if not TYPE_CHECKING:  # or a checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
