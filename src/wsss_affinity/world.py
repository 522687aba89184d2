"""The processes that share one run, each with a rank: one by default, more under a launcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from wsss_affinity import interrupt
from wsss_affinity.errors import WSSSError

T = TypeVar("T")

#: until all processes are there
_MEETING = timedelta(minutes=10)
#: later one may wait for hours, until another run has made an artefact, say
_PATIENCE = timedelta(days=7)


def join(device: torch.device) -> None:
    """Meet the other processes, as told by ``RANK``, ``WORLD_SIZE`` and ``MASTER_ADDR``/``_PORT``.

    Args:
        device: What this process works on; on CUDA it becomes the current device.
    """
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store, own_rank, number = next(rendezvous("env://", timeout=_MEETING))
    dist.init_process_group(
        backend, store=store, rank=own_rank, world_size=number, timeout=_PATIENCE
    )


def leave() -> None:
    """Part from the other processes, once all of them are here."""
    barrier()
    dist.destroy_process_group()


@contextmanager
def others_end() -> Iterator[None]:
    """Say what a broken connection to another process means.

    Raises:
        Interrupted: If another process has ended and a stop was requested.
        WSSSError: If another process has ended before its time.
    """
    try:
        yield
    except RuntimeError as error:
        if joined() and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            interrupt.check()  # all were told to stop, and some were quicker
            raise WSSSError(
                "another process of this run has ended early; see what it said, then run again "
                "to go on"
            ) from error
        raise


def joined() -> bool:
    """Whether this process shares a run with others."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Which of the processes this is; 0 leads."""
    return dist.get_rank() if joined() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if joined() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if size() > 1:
        dist.barrier()


def broadcast(value: T) -> T:
    """Give every process what rank 0 gave."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """Give every process what each gave, by rank."""
    values: list[T] = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def total(value: Tensor) -> Tensor:
    """Sum of a tensor over the processes, without gradient."""
    result = value.detach().clone()
    if size() > 1:
        dist.all_reduce(result)
    return result


def either(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    if size() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found.tolist())
