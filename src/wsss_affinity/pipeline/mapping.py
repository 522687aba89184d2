"""Work done image by image: in worker processes, resumable, with one bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from wsss_affinity.callbacks import progress_bar
from wsss_affinity.data.source import Sample
from wsss_affinity.errors import WSSSError

Work = Callable[[Sample], Any]


class _Items(Dataset[Any]):
    """Runs ``work`` on a sample; bad input comes back as a value, since it crosses processes."""

    def __init__(self, samples: Sequence[Sample], work: Work) -> None:
        self.samples = samples
        self.work = work

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return index, self.work(self.samples[index])
        except WSSSError as error:
            return index, error


def map_samples(
    name: str,
    samples: Sequence[Sample],
    work: Work,
    *,
    num_workers: int,
    done: Callable[[Sample], bool] | None = None,
) -> Iterator[tuple[Sample, Any]]:
    """Run ``work`` on every sample in worker processes and yield the results in order.

    The workers are those of torch's DataLoader: they end when their parent is killed. Each uses
    one thread.

    Args:
        name: For the bar.
        samples: The samples.
        work: A picklable callable; what it returns must be picklable too.
        num_workers: Processes; 0 works in this one.
        done: Tells which samples an earlier run has finished; these are skipped.

    Raises:
        WSSSError: As raised by ``work``.
    """
    left = [s for s in samples if done is None or not done(s)]
    if not left:
        return
    loader = DataLoader(
        _Items(left, work),
        batch_size=None,
        num_workers=min(num_workers, len(left)),
        # tensors as torch.Tensor, arrays as arrays: nothing is to be converted
        collate_fn=_as_is,
        worker_init_fn=_one_thread,
    )
    with progress_bar(name, len(samples), initial=len(samples) - len(left)) as bar:
        for index, result in loader:
            if isinstance(result, WSSSError):
                raise result
            yield left[index], result
            bar.update()


def _as_is(item: Any) -> Any:
    return item


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
