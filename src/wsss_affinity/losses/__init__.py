"""Losses, plain torch."""

from wsss_affinity.losses.affinity import affinity_loss

__all__ = ["affinity_loss"]
