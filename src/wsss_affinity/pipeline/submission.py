"""The archive that PASCAL VOC's evaluation server takes."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.data.images import mask_png
from wsss_affinity.data.source import Sample, Source
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes
from wsss_affinity.pipeline.scores import read_labels
from wsss_affinity.pipeline.storage import Records

_FOLDER = "results/VOC2012/Segmentation"


def file_values(source: Source) -> NDArray[np.uint8]:
    """The value that stands for each label in the data set's mask files, ``(L,)``.

    Raises:
        WSSSError: If labels and values are not one to one, as with classes left out.
    """
    labels = ("background", *source.classes)
    values = np.zeros(len(labels), dtype=np.uint8)
    for label in range(0 if source.background else 1, len(labels)):
        found = [value for value, meant in enumerate(source.mask_values) if meant == label]
        if len(found) != 1:
            raise WSSSError(
                f"the masks of the test images cannot be handed in: {len(found)} values of the "
                f"data set's masks mean {labels[label]!r}, and there must be one; keep all "
                "classes (data.classes=null), or set evaluate.submission_name=null"
            )
        values[label] = found[0]
    return values


def write_submission(
    path: Path, source: Source, samples: Iterable[Sample], masks: Records, name: str
) -> None:
    """Pack predictions as ``results/VOC2012/Segmentation/<name>/<id>.png`` in a ``.tar.gz``.

    The same masks give the same bytes.

    Args:
        path: The archive.
        source: The data set; its own mask values are written.
        samples: The photographs.
        masks: Their label maps.
        name: Of the competition: ``comp6_test_cls`` for methods that used other data than VOC's
            too, pretrained weights included, ``comp5_test_cls`` for those that did not.

    Raises:
        WSSSError: If a label has no value of its own, or the archive cannot be written.
    """
    values = file_values(source)
    packed = io.BytesIO()
    # no time and no name in the head of the file, so that equal masks are equal archives
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for sample in sorted(samples, key=lambda s: s.id):
            content = mask_png(values[read_labels(masks, sample.id)])
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}/{sample.id}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_bytes(path, packed.getvalue())
