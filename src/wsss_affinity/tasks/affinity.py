"""Training of AffinityNet."""

from __future__ import annotations

from torch import Tensor

from wsss_affinity import world
from wsss_affinity.errors import WSSSError
from wsss_affinity.layers.neighborhood import Border
from wsss_affinity.losses import affinity_loss
from wsss_affinity.models import AffinityNet
from wsss_affinity.tasks.base import Optimization, Task


class AffinityTask(Task):
    """Pairwise affinities from affinity labels.

    Args:
        model: The network.
        optimization: How to train it.
        seed: Of what is random in the network.
        border: Which pairs count at the border, see :func:`~wsss_affinity.losses.affinity_loss`.
    """

    model: AffinityNet

    def __init__(
        self,
        model: AffinityNet,
        optimization: Optimization | None = None,
        seed: int = 0,
        border: Border = "full",
    ) -> None:
        super().__init__(model, optimization, seed)
        self.border = border
        self.save_hyperparameters({"border": border})

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Affinity loss on ``image`` and ``mask``, the labels of the pixels or of the grid."""
        affinity = self(batch["image"])
        labels = batch["mask"]
        if labels.shape[-2:] != affinity.shape[-2:]:
            labels = downsample_labels(labels, self.model.stride)
        return affinity_loss(
            affinity,
            labels,
            radius=self.model.radius,
            border=self.border,
            sum_counts=world.total,
        )


def downsample_labels(label_map: Tensor, stride: int) -> Tensor:
    """Take the label at the centre of every ``stride × stride`` cell.

    Args:
        label_map: ``(B, H, W)``; H and W multiples of ``stride``.
        stride: Of the feature grid.

    Returns:
        ``(B, H / stride, W / stride)``.

    Raises:
        WSSSError: If H or W is no multiple of ``stride``.
    """
    height, width = label_map.shape[-2:]
    if height % stride or width % stride:
        raise WSSSError(
            f"AffinityNet is trained on crops whose side is a multiple of its output stride "
            f"{stride}, got {height}×{width}; change train_affinity.transform.crop_size"
        )
    return label_map[:, stride // 2 :: stride, stride // 2 :: stride]
