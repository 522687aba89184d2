"""Training of the classifier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wsss_affinity.tasks.base import Task


class CAMTask(Task):
    """Multi-label classification from image-level labels; ``model`` is a ``CAMNet``."""

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multi-label soft margin loss on ``image`` and ``labels`` ``(B, C)``."""
        return {"loss": F.multilabel_soft_margin_loss(self(batch["image"]), batch["labels"])}
