"""Work done image by image: in worker processes, resumable, with one bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from wsss_affinity import interrupt, world
from wsss_affinity.callbacks import progress_bar
from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.outcome import Outcome, Step, Work, attempt, told
from wsss_affinity.pipeline.storage import RecordWriter

T = TypeVar("T")


def map_samples(
    name: str, samples: Sequence[Sample], work: Work, *, num_workers: int
) -> Iterator[tuple[Sample, Any]]:
    """Run ``work`` on every sample in worker processes and yield the results in order.

    The workers are those of torch's DataLoader: they end when their parent is killed. Each uses
    one thread. Of several processes of a run each works on its share, and gets all results.

    Args:
        name: For the bar.
        samples: The samples.
        work: A picklable callable; what it returns must be picklable too.
        num_workers: Worker processes; 0 works in this one.

    Raises:
        WSSSError: As raised by ``work``.
        Interrupted: If a stop was asked for.
    """
    results = _results(name, _share(samples), work, num_workers)
    if world.size() == 1:
        yield from zip(samples, results, strict=True)
        return
    parts = _gather(list(results))
    for index, sample in enumerate(samples):
        yield sample, parts[index % len(parts)][index // len(parts)]


def _results(name: str, samples: Sequence[Sample], work: Work, num_workers: int) -> Iterator[Any]:
    loader = _loader(_Items(work), samples, num_workers, len(samples))
    with progress_bar(name, len(samples)) as bar:
        for result in loader:
            if isinstance(result, WSSSError):
                raise result
            bar.update()
            yield result
            interrupt.check()


def map_images(
    name: str,
    samples: Sequence[Sample],
    load: Work,
    work: Step | None = None,
    finish: Step | None = None,
    *,
    output: Mapping[str, RecordWriter],
    num_workers: int,
    skip: bool,
) -> list[Problem]:
    """Make the records of a stage, image by image; an image that has all of them is passed over.

    While this process works on one image, worker processes load the next ones and finish those
    before; this process stores what the last step returns, records by name. Of several processes
    of a run each makes its share, and none returns before all have. An image that fails is tried
    once more, from the start and in this process.

    Args:
        name: Of the stage.
        samples: The images.
        load: ``load(sample)`` comes first, in a worker process.
        work: ``work(sample, loaded)`` comes next, in this process.
        finish: ``finish(sample, worked)`` comes last, in a worker process.
        output: Where the records go, by name.
        num_workers: Worker processes; 0 does everything in this one.
        skip: Whether to go on without an image that failed twice.

    Returns:
        Those that did, in the order of ``samples``; the same in all processes.

    Raises:
        WSSSError: If an image failed twice and is not to be skipped, if none succeeds, or if a
            file cannot be written.
        Interrupted: If a stop was asked for; what was finished until then is kept.
    """
    share = _share(samples)
    stored = [writer.stored for writer in output.values()]
    left = [sample for sample in share if not all(sample.id in records for records in stored)]
    outcome = Outcome(name, (load, work, finish), output, skip, len(share) - len(left))
    tasks = _Tasks(left)
    loader = _loader(_Ends(load, finish), tasks, num_workers, len(left))
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(name, len(share), initial=outcome.succeeded))
        for writer in output.values():
            stack.enter_context(writer)
        for loaded, finished in loader:
            sample, before = tasks.sent.popleft()
            if before is not None:
                outcome.settle(before[0], finished)
                bar.update()
            # one that is merely loaded when a stop is asked for is dropped
            if sample is not None and not (tasks.stopped and work is not None):
                worked = loaded
                if work is not None and not isinstance(loaded, WSSSError):
                    worked = attempt(work, sample, loaded)
                if finish is None or isinstance(worked, WSSSError):
                    outcome.settle(sample, worked)
                    bar.update()
                else:
                    tasks.ready.append((sample, worked))
            tasks.open -= sample is not None
            if interrupt.requested():
                tasks.stop()
    found = {problem.id: problem for part in _gather(outcome.problems) for problem in part}
    problems = [found[sample.id] for sample in samples if sample.id in found]
    if problems and len(problems) == len(samples):
        raise WSSSError(f"no image is left of {len(samples)}: {told(problems[0])}")
    return problems


class _Tasks:
    """What is given to worker processes, decided when one of them gets something to do."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = iter(samples)
        self.open = len(samples)  # how many have not been worked on
        self.stopped = False
        self.ready: deque[tuple[Sample, Any]] = deque()
        self.sent: deque[tuple[Sample | None, tuple[Sample, Any] | None]] = deque()

    def stop(self) -> None:
        """Send no further image."""
        self._samples, self.stopped = iter(()), True
        self.open = sum(sample is not None for sample, _ in self.sent)

    def __iter__(self) -> Iterator[tuple[Sample | None, tuple[Sample, Any] | None]]:
        # towards the end there is nothing to load, and what is to be finished may not be ready
        while self.open or self.ready:
            task = next(self._samples, None), self.ready.popleft() if self.ready else None
            self.sent.append(task)
            yield task


@dataclass(frozen=True)
class _Items(Dataset[Any]):
    """Runs ``work``; bad input comes back as a value, since it crosses processes."""

    work: Work

    def __getitem__(self, sample: Sample) -> Any:
        try:
            return self.work(sample)
        except WSSSError as error:
            return error


@dataclass(frozen=True)
class _Ends(Dataset[Any]):
    """Loads an image, and finishes one from before."""

    load: Work
    finish: Step | None

    def __getitem__(self, task: tuple[Sample | None, tuple[Sample, Any] | None]) -> Any:
        sample, before = task
        loaded = None if sample is None else attempt(self.load, sample)
        if before is None or self.finish is None:
            return loaded, None
        return loaded, attempt(self.finish, *before)


def _loader(
    dataset: Dataset[Any], keys: Iterable[Any], num_workers: int, most: int
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=min(num_workers, most),
        # tensors as torch.Tensor, arrays as arrays: nothing is to be converted
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
    )


def _as_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    interrupt.spare_worker(worker)
    torch.set_num_threads(1)


def _share(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The images of this process; what others have finished does not matter to it."""
    return samples[world.rank() :: world.size()]


def _gather(value: T) -> list[T]:
    """Wait for all processes and give each what all have; stop if one of them is to."""
    try:
        parts = world.gather((value, interrupt.requested()))
    except RuntimeError:
        interrupt.check()  # the others were told to stop too, and are gone
        raise
    if any(stop for _, stop in parts):
        raise interrupt.Interrupted
    return [part for part, _ in parts]
