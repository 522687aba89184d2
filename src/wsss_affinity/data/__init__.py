"""Data sets, transforms and the DataModule."""

from wsss_affinity.data.camvid import camvid_source
from wsss_affinity.data.cityscapes import cityscapes_source
from wsss_affinity.data.coco import coco_source
from wsss_affinity.data.datamodule import WSSSDataModule
from wsss_affinity.data.dataset import WSSSDataset
from wsss_affinity.data.folder import folder_source
from wsss_affinity.data.mask_labels import labels_from_masks
from wsss_affinity.data.shapes import shapes_source
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.data.transforms import TrainTransform
from wsss_affinity.data.voc import VOC_CLASSES, voc_source
from wsss_affinity.data.voc12 import voc12_source

__all__ = [
    "VOC_CLASSES",
    "Sample",
    "Source",
    "TrainTransform",
    "WSSSDataModule",
    "WSSSDataset",
    "camvid_source",
    "cityscapes_source",
    "coco_source",
    "folder_source",
    "labels_from_masks",
    "shapes_source",
    "voc12_source",
    "voc_source",
]
