"""Lightning callbacks of the fits."""

from wsss_affinity.callbacks.checkpoint import FitCheckpoint
from wsss_affinity.callbacks.history import LossHistory
from wsss_affinity.callbacks.progress import FitProgress, progress_bar

__all__ = ["FitCheckpoint", "FitProgress", "LossHistory", "progress_bar"]
