"""Data sets, transforms and the DataModule."""

from wsss_affinity.data.datamodule import WSSSDataModule
from wsss_affinity.data.dataset import WSSSDataset
from wsss_affinity.data.folder import folder_source
from wsss_affinity.data.shapes import shapes_source
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.data.transforms import TrainTransform
from wsss_affinity.data.voc import VOC_CLASSES, voc_source

__all__ = [
    "VOC_CLASSES",
    "Sample",
    "Source",
    "TrainTransform",
    "WSSSDataModule",
    "WSSSDataset",
    "folder_source",
    "shapes_source",
    "voc_source",
]
