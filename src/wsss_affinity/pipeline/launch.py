"""How the processes of one run over several devices come to be and find each other."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator

from wsss_affinity import world
from wsss_affinity.errors import WSSSError
from wsss_affinity.interrupt import RESUMABLE
from wsss_affinity.pipeline.context import inference_device

#: seconds between a look at the processes and the next
_INTERVAL = 0.1
#: seconds that the other processes have when one has failed
_GRACE = 10.0


def start(cfg: DictConfig, arguments: Sequence[str], *, multirun: bool) -> int | None:
    """Run the command line once for each device, if several are asked for and no launcher did so.

    Signals are passed on. Rank 0 has the terminal; what another process writes to stderr is shown
    if that process is the first to fail.

    Args:
        cfg: The composed configuration: ``trainer.devices``, ``trainer.num_nodes``.
        arguments: Of the command line.
        multirun: Whether this is one of the jobs of a sweep.

    Returns:
        Exit status of the processes; None where this process is to do the work itself.

    Raises:
        WSSSError: If several devices are asked for where they cannot be had.
    """
    count, nodes = len(_devices(cfg)), cfg.trainer.num_nodes
    if count * nodes == 1 or cfg.mode == "template":
        return None
    if multirun:
        raise WSSSError(
            f"the jobs of a multirun use one device each, but trainer.devices="
            f"{cfg.trainer.devices} and trainer.num_nodes={nodes}; set both to 1 and let a "
            "launcher run jobs side by side"
        )
    if _launched_processes() > 1:
        return None
    if nodes > 1:
        raise WSSSError(
            f"trainer.num_nodes={nodes} needs a launcher that starts the command on every node: "
            "srun wsss-affinity … or torchrun … -m wsss_affinity …"
        )
    return _run(count, [sys.executable, "-m", "wsss_affinity", *arguments])


@contextmanager
def joined(cfg: DictConfig) -> Iterator[None]:
    """Share the run with the other processes that torchrun, srun or :func:`start` started.

    Does nothing where there are none, or where they share it already.

    Raises:
        Interrupted: If another process has ended and a stop was requested.
        WSSSError: If the configuration asks for another number of devices than there are
            processes, or another process has ended before its time.
    """
    processes = _launched_processes()
    if processes == 1 or world.joined():
        yield
        return
    devices, nodes = _devices(cfg), cfg.trainer.num_nodes
    if len(devices) * nodes != processes:
        raise WSSSError(
            f"{processes} processes were started, but trainer.devices and trainer.num_nodes ask "
            f"for {len(devices)} on each of {nodes} nodes; set trainer.devices to the processes of "
            "a node"
        )
    world.join(devices[int(os.environ["LOCAL_RANK"])])
    if world.rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    with world.others_end():
        yield
    world.leave()


def _devices(cfg: DictConfig) -> list[torch.device]:
    """The devices of one node."""
    asked: Any = cfg.trainer.devices
    device = inference_device(cfg.trainer.accelerator)
    if asked == 1:
        return [device]
    accelerator: Any = CUDAAccelerator if device.type == "cuda" else CPUAccelerator
    try:
        if asked == "auto":
            asked = accelerator.auto_device_count()
        elif OmegaConf.is_list(asked):
            asked = list(asked)
        devices = accelerator.get_parallel_devices(accelerator.parse_devices(asked))
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise WSSSError(f"trainer.devices={asked}: {error}") from error
    # Lightning takes any number of processes on the CPU; two are of use for a trial on one core
    cores = max(2, os.cpu_count() or 1)
    if device.type == "cpu" and len(devices) > cores:
        raise WSSSError(
            f"trainer.devices={asked} asks for as many processes on the CPU, and this machine is "
            f"good for {cores}; lower it, or choose trainer.accelerator=gpu where there are GPUs"
        )
    return list(devices)


def _launched_processes() -> int:
    """How many processes a launcher started; Slurm's names for them are translated to torch's."""
    slurm = os.environ
    if "RANK" not in slurm and int(slurm.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        nodes = slurm["SLURM_STEP_NODELIST"]
        os.environ.update(
            RANK=slurm["SLURM_PROCID"],
            LOCAL_RANK=slurm["SLURM_LOCALID"],
            GROUP_RANK=slurm["SLURM_NODEID"],
            WORLD_SIZE=slurm["SLURM_STEP_NUM_TASKS"],
        )
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
        # the same on all nodes, and another one for other jobs
        os.environ.setdefault("MASTER_PORT", str(15000 + int(slurm["SLURM_JOB_ID"]) % 10000))
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def _run(count: int, command: Sequence[str]) -> int:
    """Run a command ``count`` times at once, each with its rank, and return the exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # torch warns of what a fit asks for on purpose: to look for parameters without gradient
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        try:
            for rank in range(count):
                processes.append(
                    subprocess.Popen(
                        command,
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=subprocess.DEVNULL if rank else None,
                        stderr=said[rank] if rank else None,
                    )
                )
            status, first = _wait(processes)
        finally:
            for process in processes:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if first > 0:
            said[first].seek(0)
            sys.stderr.write(said[first].read().decode(errors="replace"))
    return status


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait for all; returns the exit status and the rank of the first that failed, or -1."""
    first, deadline = -1, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, c in enumerate(codes) if c not in (None, 0, RESUMABLE)]
        if failed and first < 0:
            first = failed[0]
            # the others wait for it in vain; they may say so
            deadline = time.monotonic() + _GRACE
        if None not in codes:
            break
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(_INTERVAL)
    if first >= 0:
        code = processes[first].returncode
        return (code if code > 0 else 128 - code), first
    return (RESUMABLE if RESUMABLE in codes else 0), first
