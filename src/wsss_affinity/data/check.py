"""Looks at an image and its mask before any training starts."""

from __future__ import annotations

from dataclasses import dataclass

from wsss_affinity.data.images import load_image
from wsss_affinity.data.source import Problem, Sample, Source
from wsss_affinity.errors import WSSSError


@dataclass(frozen=True)
class SampleChecker:
    """Tells what is wrong with a sample, or None.

    Attributes:
        source: The data set, for the meaning of mask values.
    """

    source: Source

    def __call__(self, sample: Sample) -> Problem | None:
        """Open image and mask of a sample and compare their sizes."""
        try:
            image = load_image(sample.image)
            if sample.mask is not None:
                mask = self.source.read_mask(sample)
                if mask.shape != (image.height, image.width):
                    raise WSSSError(
                        f"mask {sample.mask} is {mask.shape[1]}×{mask.shape[0]} but its image "
                        f"{sample.image} is {image.width}×{image.height}; expected one "
                        "size, replace one of them"
                    )
        except WSSSError as error:
            return Problem(sample.id, str(error))
        return None
