"""Training of the segmentation network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_affinity import world
from wsss_affinity.losses.affinity import UNSURE
from wsss_affinity.models import SegmentationNet
from wsss_affinity.tasks.base import Optimization, Task


class SegmentationTask(Task):
    """Per-pixel classification from pseudo-masks.

    Args:
        model: The network.
        optimization: How to train it.
        seed: Of what is random in the network.
        background: Whether the first output is the background; label 1 has it otherwise.
    """

    def __init__(
        self,
        model: SegmentationNet,
        optimization: Optimization | None = None,
        seed: int = 0,
        background: bool = True,
    ) -> None:
        super().__init__(model, optimization, seed)
        self.background = background
        self.save_hyperparameters({"background": background})

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on ``image`` and ``mask`` ``(B, H, W)``; 255 is ignored."""
        logits, mask = self(batch["image"]), batch["mask"]
        if not self.background:
            mask = torch.where(mask == UNSURE, UNSURE, mask - 1)
        total = F.cross_entropy(logits, mask, ignore_index=UNSURE, reduction="sum")
        # of the whole batch, whose parts hold different numbers of labelled pixels
        count = world.total((mask != UNSURE).sum())
        # a crop may hold no labelled pixel at all, where a mean would be NaN
        return {"loss": world.size() * total / count.clamp_min(1)}
