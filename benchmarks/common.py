"""What the benchmarks share: clock, memory, and the report they leave."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_CLEAR_REFS = Path("/proc/self/clear_refs")


def seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    """Least time of so many runs after a warm-up, each until the device is done with it."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def held_mib(device: str) -> float:
    """Mebibytes held now: by this process, or by tensors on CUDA."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return _process_mib("VmRSS")


def reset_peak(device: str) -> None:
    """Make :func:`peak_mib` forget what is no longer held, such as what imports took."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_mib(device: str) -> float:
    """The most since :func:`reset_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _process_mib("VmHWM")


def _process_mib(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():  # only Linux has it
        return math.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**10


def in_fresh_process(script: str, *arguments: object) -> float:
    """The number that a script prints: a peak of memory is that of a process."""
    command = [sys.executable, script, *map(str, arguments)]
    # what it has to say of errors goes where ours goes
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, times))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def surroundings(device: str) -> dict[str, Any]:
    """Device, threads and versions, which every report tells and every script prints."""
    about = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        # what the fastest ways need, on CUDA and on the CPU
        **{name: _version(name) for name in ("triton", "llvmlite")},
    }
    print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}")
    return about


def _version(package: str) -> str | None:
    return import_module(package).__version__ if find_spec(package) else None


def device_name(device: str) -> str:
    """The maker's name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(report: dict[str, Any], name: str, output: Path | None) -> None:
    """Write a report as JSON to ``output``, or else beside the others under its name."""
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
