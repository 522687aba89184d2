"""The walk on the CPU as one function compiled by LLVM, where the package llvmlite is there.

It is faster than MKL's products (``benchmarks/walk_products.py``). A step is one pass that reads no
column indices: the sums of a few pixels and a group of channels stay in registers, and the vectors
of the series are brought up to date from there. How they lie in memory:

- states, changes and totals: ``(h + 2 rim + 1, stride, lanes)`` for each group of channels, with a
  rim of zeros as wide as a neighbour is far. What is left of a line is also right of the one above.
- weights: ``(h + rim, K + 1, stride)`` with the same rim, so that those of a line lie together.

Threads share images and groups of channels, which have nothing to wait for in each other. They are
those of torch's OpenMP: after an operation they look for the next one for milliseconds, and would
take the processor from threads of our own, which made a small walk twice as slow.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.layers.optional import recent

# pixels of a line whose sums are in registers together
_PIXELS = 8
# of the channels taken together: a register of AVX-512
_GROUP_BYTES = 64
# the code is unrolled: compiling it takes 0.2 s for a radius of 5, 0.4 s for 8, 1.4 s for 12
_MAX_RADIUS = 8


def available(rows: Tensor, radius: int) -> bool:
    """Whether :func:`walk` can take these rows, and is expected to be faster than products."""
    if rows.device.type != "cpu" or type(rows) is not Tensor or radius > _MAX_RADIUS:
        return False
    if not _supported():
        return False
    batch, _, _, channels = rows.shape
    # products share the pixels among threads too, and fill no group up with zeros: they are as
    # fast where threads outnumber the halves of groups
    halves = batch * (2 * channels * rows.element_size() // _GROUP_BYTES)
    return torch.get_num_threads() <= halves


@lru_cache(maxsize=1)
def _supported() -> bool:
    """Whether LLVM is there, and the processor has registers for all sums.

    Those of AVX2 do not hold them, which leaves little gain; and without fused multiply-adds each
    would be a call of a function.
    """
    if not recent("llvmlite", (0, 45)):  # reads pointers without a type
        return False
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512f"))


def walk(
    rows: Tensor,
    planes: Tensor,
    neighborhood: Neighborhood,
    coefficients: tuple[float, ...] | None,
    num_steps: int,
) -> Tensor:
    """Compute what :func:`wsss_affinity.layers.chebyshev.walk` does, without gradients.

    Args:
        rows: ``(B, h, w, C)``, float32 or float64.
        planes: ``(B, K + 1, h, w)``, 0 at pairs that leave the grid.
        neighborhood: The offsets of the planes.
        coefficients: Those of the series, or None for the power.
        num_steps: ``t``; not used with coefficients.

    Returns:
        ``(B, h, w, C)``.
    """
    if coefficients is None:
        # without the change before, steps are v + L v; and of the states only the last counts
        keep, scales, coefficients = 0.0, [1.0] * num_steps, (*[0.0] * num_steps, 1.0)
    else:
        keep, scales = 1.0, [1.0, *[2.0] * len(coefficients)][: len(coefficients) - 1]
    factors = rows.new_tensor([*scales, *coefficients[1:], keep])
    share = _compiled(neighborhood.radius, rows.dtype)
    batch, height, width, channels = rows.shape
    rim, blocks = neighborhood.radius - 1, -(-width // _PIXELS)
    lines, stride = height + 2 * rim + 1, rim + blocks * _PIXELS
    y, x = slice(rim, rim + height), slice(rim, rim + width)
    lanes = _GROUP_BYTES // rows.element_size()
    groups = [slice(c, min(c + lanes, channels)) for c in range(0, channels, lanes)]
    walked, threads = torch.empty_like(rows), torch.get_num_threads()

    # as many images and groups at a time as threads need: memory does not grow with the others
    images = -(-threads // len(groups))
    for some in (slice(first, first + images) for first in range(0, batch, images)):
        here = planes[some].transpose(1, 2)
        weights = rows.new_zeros(len(here), rim + height, here.shape[2], stride)
        weights[:, y, :, x] = here
        for start in range(0, len(groups), threads):
            together = groups[start : start + threads]
            vectors = rows.new_zeros(4, len(here), len(together), lines, stride, lanes)
            work = [0, len(here) * len(together)]
            for g, group in enumerate(together):
                first, _, _, total = vectors[:, :, g, y, x, : group.stop - group.start]
                first.copy_(rows[some, ..., group])
                torch.mul(first, coefficients[0], out=total)
                for image in range(len(here)):
                    starts = [v[image, g, rim, rim].data_ptr() for v in vectors]
                    pointers = [weights[image, rim, 0, rim:].data_ptr(), factors.data_ptr()]
                    sizes = [height, blocks, stride, len(scales)]
                    work += [*pointers, *starts, *sizes]
            calls = torch.tensor(work, dtype=torch.int64, device="cpu")
            _in_parallel(share, calls, min(threads, work[1]))
            for g, group in enumerate(together):
                walked[some, ..., group] = vectors[3, :, g, y, x, : group.stop - group.start]
    return walked


def _in_parallel(share: Any, work: Tensor, threads: int) -> None:
    """Call ``share`` with the list of the work in so many threads."""
    # ctypes lets other threads run Python meanwhile
    if threads == 1:
        share(work.data_ptr())
    elif (openmp := _openmp()) is not None:
        openmp(share, work.data_ptr(), threads, 0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, [work.data_ptr()] * threads))


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """What runs a function in torch's OpenMP threads; None where torch has other threads."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # found in what the library depends on, and so in the one copy that torch uses
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@lru_cache(maxsize=16)
def _compiled(radius: int, dtype: torch.dtype) -> Any:
    """The function ``share`` of :func:`_source`."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(_source(radius, dtype)), machine)
    engine.finalize_object()
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("share"))
    function.engine = engine  # owns the code
    return function


def _source(radius: int, dtype: torch.dtype) -> str:
    """All steps of one group of channels in LLVM's language, and the sharing of the groups.

    For each step ``walk`` computes ``change = keep · change + scale · L state``,
    ``other = state + change`` and ``total += coefficient · other``, and swaps the two states.
    ``factors`` holds the scales of all steps, their coefficients, and what to keep.

    ``share`` is run by each thread: from a list of the next group, the number of groups and the
    arguments for each it takes groups until none is left.
    """
    real, size = ("float", 4) if dtype == torch.float32 else ("double", 8)
    lanes = _GROUP_BYTES // size
    names = ["weights", "factors", "first", "second", "change", "total"]
    words = [f"ptr noalias %{name}" for name in names]
    words += [f"i64 %{name}" for name in ("height", "blocks", "stride", "steps")]
    load_words = "\n".join(
        f"  %at.{i} = getelementptr i64, ptr %words, i64 {i}\n  %word.{i} = load "
        f"{word.split()[0]}, ptr %at.{i}"
        for i, word in enumerate(words)
    )
    arguments = ", ".join(f"{word.split()[0]} %word.{i}" for i, word in enumerate(words))
    vector, fma = f"<{lanes} x {real}>", f"@llvm.fma.v{lanes}f{8 * size}"
    return f"""
declare {vector} {fma}({vector}, {vector}, {vector})

define void @share(ptr %work) {{
start:
  %count.at = getelementptr i64, ptr %work, i64 1
  %count = load i64, ptr %count.at
  br label %next
next:
  %i = atomicrmw add ptr %work, i64 1 monotonic
  %left = icmp slt i64 %i, %count
  br i1 %left, label %take, label %end
take:
  %distance = mul i64 %i, {len(words)}
  %after = add i64 %distance, 2
  %words = getelementptr i64, ptr %work, i64 %after
{load_words}
  call void @walk({arguments})
  br label %next
end:
  ret void
}}

define internal void @walk({", ".join(words)}) {{
start:
  %keep.index = mul i64 %steps, 2
  %keep.at = getelementptr {real}, ptr %factors, i64 %keep.index
  %keep = load {real}, ptr %keep.at
  %line.weights = mul i64 %stride, {len(Neighborhood(radius)) + 1}
  %still = icmp eq i64 %steps, 0
  br i1 %still, label %end, label %step
step:
  %k = phi i64 [0, %start], [%k.next, %step.end]
  %state = phi ptr [%first, %start], [%other, %step.end]
  %other = phi ptr [%second, %start], [%state, %step.end]
  %scale.at = getelementptr {real}, ptr %factors, i64 %k
  %scale = load {real}, ptr %scale.at
  %coefficient.at = getelementptr {real}, ptr %scale.at, i64 %steps
  %coefficient = load {real}, ptr %coefficient.at
  br label %line
line:
  %y = phi i64 [0, %step], [%y.next, %line.end]
  %line.state = mul i64 %y, %stride
  %line.weight = mul i64 %y, %line.weights
  br label %block
block:
  %x = phi i64 [0, %line], [%x.next, %block]
  %column = mul i64 %x, {_PIXELS}
  %pixel = add i64 %line.state, %column
  %weight = add i64 %line.weight, %column
  %weights.here = getelementptr {real}, ptr %weights, i64 %weight
  %state.here = getelementptr {vector}, ptr %state, i64 %pixel
  %other.here = getelementptr {vector}, ptr %other, i64 %pixel
  %change.here = getelementptr {vector}, ptr %change, i64 %pixel
  %total.here = getelementptr {vector}, ptr %total, i64 %pixel
{_block(radius, real, size, vector, fma)}
  %x.next = add i64 %x, 1
  %x.done = icmp eq i64 %x.next, %blocks
  br i1 %x.done, label %line.end, label %block
line.end:
  %y.next = add i64 %y, 1
  %y.done = icmp eq i64 %y.next, %height
  br i1 %y.done, label %step.end, label %line
step.end:
  %k.next = add i64 %k, 1
  %k.done = icmp eq i64 %k.next, %steps
  br i1 %k.done, label %end, label %step
end:
  ret void
}}
"""


def _block(radius: int, real: str, size: int, vector: str, fma: str) -> str:
    """One step of a few pixels of a line: a neighbour, once read, serves all that it is near."""
    code: list[str] = []

    def new(operation: str) -> str:
        code.append(f"  %v{len(code)} = {operation}")
        return f"%v{len(code) - 1}"

    def move(base: str, index: int | str, kind: str) -> str:
        return new(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def load(base: str, index: int, kind: str) -> str:
        return new(f"load {kind}, ptr {move(base, index, kind)}, align {size}")

    def store(value: str, base: str, index: int) -> None:
        code.append(f"  store {vector} {value}, ptr {move(base, index, vector)}, align {size}")

    def spread(value: str) -> str:
        single = new(f"insertelement {vector} poison, {real} {value}, i64 0")
        zeros = vector.replace(real, "i32")
        return new(f"shufflevector {vector} {single}, {vector} poison, {zeros} zeroinitializer")

    def add_product(total: str, left: str, right: str) -> str:
        return new(f"call {vector} {fma}({vector} {left}, {vector} {right}, {vector} {total})")

    pairs = Neighborhood(radius).pairs
    # where the weight of a neighbour is: its plane, and the pair's first pixel from here
    places = {(0, 0): (len(pairs), 0, 0)}
    for k, (dy, dx) in enumerate(pairs):
        places |= {(dy, dx): (k, 0, 0), (-dy, -dx): (k, -dy, -dx)}
    sums = ["zeroinitializer"] * _PIXELS
    for line in range(1 - radius, radius):
        weights = {}
        for dx in (dx for dy, dx in places if dy == line):
            plane, y, x = places[line, dx]
            distance = new(f"mul i64 %stride, {y * (len(pairs) + 1) + plane}")
            weights[dx] = move(move("%weights.here", distance, real), x, real)
        states = move("%state.here", new(f"mul i64 %stride, {line}"), vector)
        for column in range(-max(weights), _PIXELS + max(weights)):
            neighbour = load(states, column, vector)
            for pixel in range(_PIXELS):
                if column - pixel in weights:
                    weight = spread(load(weights[column - pixel], pixel, real))
                    sums[pixel] = add_product(sums[pixel], weight, neighbour)
    keep, scale, coefficient = (spread(f"%{name}") for name in ("keep", "scale", "coefficient"))
    for pixel, product in enumerate(sums):
        kept = new(f"fmul {vector} {keep}, {load('%change.here', pixel, vector)}")
        change = add_product(kept, scale, product)
        state = new(f"fadd {vector} {change}, {load('%state.here', pixel, vector)}")
        total = add_product(load("%total.here", pixel, vector), coefficient, state)
        store(change, "%change.here", pixel)
        store(state, "%other.here", pixel)
        store(total, "%total.here", pixel)
    return "\n".join(code)
