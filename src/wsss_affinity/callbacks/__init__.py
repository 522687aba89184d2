"""Lightning callbacks of the fits."""

from wsss_affinity.callbacks.checkpoint import EpochCheckpoint
from wsss_affinity.callbacks.history import LossHistory
from wsss_affinity.callbacks.progress import FitProgress, progress_bar

__all__ = ["EpochCheckpoint", "FitProgress", "LossHistory", "progress_bar"]
