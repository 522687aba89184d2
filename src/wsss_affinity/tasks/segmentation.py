"""Training of the segmentation network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.tasks.base import Task


class SegmentationTask(Task):
    """Per-pixel classification from pseudo-masks; ``model`` is a ``SegmentationNet``."""

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on ``image`` and ``mask`` ``(B, H, W)``; 255 is ignored."""
        logits = self(batch["image"])
        total = F.cross_entropy(logits, batch["mask"], ignore_index=UNSURE, reduction="sum")
        # a crop may hold no labelled pixel at all, where a mean would be NaN
        return {"loss": total / (batch["mask"] != UNSURE).sum().clamp_min(1)}
