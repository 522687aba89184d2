"""One dataset over samples, and the order in which training visits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from wsss_affinity.data.images import load_image
from wsss_affinity.data.source import Sample

Transform = Callable[[Image.Image, "NDArray[Any] | None"], tuple[Tensor, "Tensor | None"]]
#: gives a label map ``(H, W)`` uint8, or scores ``(n, H, W)`` float
ReadTarget = Callable[[Sample], NDArray[Any]]
#: makes a label map ``(h, w)`` of the scores ``(n, S, S)`` that the transform leaves
FinishTarget = Callable[[Tensor, Sample], Tensor]


class WSSSDataset(Dataset[dict[str, Any]]):
    """Photographs with image-level labels, and a label map where the task wants one.

    Args:
        samples: What it holds.
        num_classes: Length of the label vectors.
        transform: Applied to image and label map.
        read_target: Gives the label map of a sample, or scores; None for tasks without.
        finish_target: Applied to it after the transform, where scores are to become labels.
        max_side: Longer images are reduced to it.
        seed: With the epoch and the index it seeds the transform, so that an item does not depend
            on the worker that makes it.

    Items are dicts with ``image`` ``(3, H, W)``, ``labels`` ``(C,)`` float, ``index`` int, and
    ``mask`` ``(H, W)`` int64 where ``read_target`` is given; ``finish_target`` may make it smaller.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        num_classes: int,
        transform: Transform,
        *,
        read_target: ReadTarget | None = None,
        finish_target: FinishTarget | None = None,
        max_side: int | None = None,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.num_classes = num_classes
        self.transform = transform
        self.read_target = read_target
        self.finish_target = finish_target
        self.max_side = max_side
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Make the item of an index, or of ``(epoch, index)``."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.samples[index]
        image = load_image(sample.image, self.max_side)
        target = None if self.read_target is None else self.read_target(sample)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would set the generators of the GPUs too
            torch.default_generator.manual_seed(item_seed(self.seed, epoch, index))
            pixels, mask = self.transform(image, target)
        item: dict[str, Any] = {
            "image": pixels,
            "labels": label_vector(sample.labels, self.num_classes),
            "index": index,
        }
        if mask is not None:
            item["mask"] = mask if self.finish_target is None else self.finish_target(mask, sample)
        return item


def label_vector(labels: Sequence[int], num_classes: int) -> Tensor:
    """Image-level labels as ``(C,)`` float of zeros and ones."""
    vector = torch.zeros(num_classes)
    vector[list(labels)] = 1.0
    return vector


def item_seed(*parts: int) -> int:
    """Mix whole numbers into one seed."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0]) >> 1


class EpochSampler(Sampler[tuple[int, int]]):
    """Visits every index once an epoch, in an order that depends on seed and epoch alone.

    Lightning calls :meth:`set_epoch`, so a resumed run sees the order that it would have seen.

    Args:
        length: Number of items.
        seed: Of the order.
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(item_seed(self.seed, self.epoch))
        for index in torch.randperm(self.length, generator=generator).tolist():
            yield self.epoch, index


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Cuts an epoch into batches and gives one process its part of each.

    The parts of all processes together are the batches of a single one, in the same order. The
    last, smaller batch is dropped, unless it is the only one.

    Args:
        sampler: Gives the order.
        batch_size: Of all processes together.
        rank: Of this process.
        size: Number of processes; divides ``batch_size``.

    Attributes:
        start: Batches that the next iteration passes over without loading them.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, *, rank: int = 0, size: int = 1
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.size = size
        self.start = 0

    def __len__(self) -> int:
        return max(1, len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.batch_size // self.size
        keys = iter(self.sampler)
        for number in range(len(self)):
            batch = list(islice(keys, self.batch_size))
            if number >= self.start:
                yield batch[self.rank * part : (self.rank + 1) * part]
