"""The sparse random walk in Triton.

A thread sums up four rows of pixels and a few channels in registers, so that a value once read
serves four pixels, and a weight all those channels. How both lie in memory:

- states: ``(2, B, groups, lines, chunks, pitch, 4)``, the last two of the walk in turns, with a rim
  of zeros as wide as a neighbour is far, so that no read is checked; four channels are one read.
- weights: ``(B, lines, slots, pitch)`` with the same rim; that of a pixel with the one ``(dy, dx)``
  further is in slot ``dy · (2 radius - 1) + dx``.

Lines have one of few pitches, known to the compiler, so that addresses cost no instructions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from wsss_affinity.layers.kernels.walk_planes import pack

# rows of pixels, and at most so many chunks of four channels, to a thread: 48 sums in registers;
# more would save reads, but leave room for fewer threads
_ROWS = 4
_CHUNKS = 3
# threads of a program that walks alone, and of one that shares an image with others
_THREADS_ALONE = 256
_THREADS = 128
# pixels whose step takes a program as long as a launch takes Python, some 15 µs
_PIXELS_A_LAUNCH = 2000


def walk(
    rows: Tensor,
    planes: Tensor,
    radius: int,
    coefficients: tuple[float, ...] | None,
    num_steps: int,
    *,
    storage: torch.dtype = torch.float32,
) -> Tensor:
    r"""Compute :math:`\sum_k c_k T_k(M) x`, or :math:`M^t x` where there are no coefficients.

    :math:`M = I + L` is that of :func:`~wsss_affinity.layers.walk_matrix.normalized`: symmetric,
    :math:`1/D` its diagonal, and :math:`M D^{1/2} 1 = D^{1/2} 1`. Sums and states are float32.
    Weights rounded to a half-precision ``storage`` belong to a slightly different walk; the
    diagonal is set anew for them, in float32, such that this one too loses nothing.

    Args:
        rows: ``x`` as ``(B, h, w, C)``, float32.
        planes: ``(B, K + 1, h, w)``, float32: the weight of every pixel with the one that the
            neighbourhood's k-th offset leads to, 0 where that is outside, and last the diagonal of
            ``L``. Images smaller than the batch's grid have zeros outside: nothing enters there,
            and what is there stays.
        radius: Radius of the neighbourhood.
        coefficients: :math:`c_0 … c_m`.
        num_steps: ``t``; not used with coefficients.
        storage: Type the weights are kept in: float32, float16 or bfloat16.

    Returns:
        ``(B, h, w, C)``, float32.
    """
    batch, height, width, channels = rows.shape
    rim = radius - 1
    groups = triton.cdiv(channels, 4 * _CHUNKS)
    chunks = triton.cdiv(channels, 4 * groups)
    # the left rim of a line is the right one of the line before
    lines = triton.cdiv(height, _ROWS) * _ROWS + 2 * rim + 1
    pitch = triton.cdiv(width + rim, 32) * 32

    states = rows.new_zeros(2, batch, groups, lines, chunks, pitch, 4)
    inside = states[:, :, :, rim : rim + height, :, rim : rim + width].permute(0, 1, 3, 5, 2, 4, 6)
    filled = F.pad(rows, (0, 4 * groups * chunks - channels))
    inside.copy_(filled.view(batch, height, width, groups, chunks, 4))
    total = states[0] if coefficients is None else coefficients[0] * states[0]
    steps = num_steps if coefficients is None else len(coefficients) - 1
    factors = rows.new_tensor(coefficients or ())

    weights, diagonal = pack(planes, radius, lines, pitch, storage)
    alone = _alone(batch * groups, height * width, _multiprocessors(rows))
    threads = _THREADS_ALONE if alone else _THREADS
    columns = triton.cdiv(height, _ROWS) * width
    tiles = triton.cdiv(columns, threads)
    with torch.cuda.device_of(rows):
        for first in range(0, steps, max(steps, 1) if alone else 1):
            _walk_kernel[(groups, batch, 1 if alone else tiles)](
                states,
                total,
                weights,
                diagonal,
                factors,
                first,
                steps if alone else first + 1,
                height,
                width,
                columns,
                lines,
                tiles if alone else 1,
                CHEBYSHEV=coefficients is not None,
                RADIUS=radius,
                ROWS=_ROWS,
                CHUNKS=chunks,
                PITCH=pitch,
                RUNS=_runs(radius),
                THREADS=threads,
                num_warps=threads // 32,
                num_stages=1,
            )
    if coefficients is None:
        result = inside[steps % 2]
    else:
        result = total[:, :, rim : rim + height, :, rim : rim + width].permute(0, 2, 4, 1, 3, 5)
    return result.reshape(batch, height, width, -1)[..., :channels].contiguous()


def _multiprocessors(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return 1
    count: int = torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return count


def _alone(programs: int, pixels: int, multiprocessors: int) -> bool:
    """Whether a program does best to walk all steps on all pixels of its channels by itself.

    It then needs neither launches nor other programs to wait for, but the last of them may leave
    many multiprocessors idle. The other way is a launch a step, with programs for parts of a grid.
    """
    by_itself: int = triton.cdiv(programs, multiprocessors) * pixels
    shared = max(programs * pixels / multiprocessors, _PIXELS_A_LAUNCH)
    return by_itself <= 1.25 * shared


@lru_cache(maxsize=8)
def _runs(radius: int) -> tuple[tuple[int, int, int], ...]:
    """Runs ``(height, first, end)`` of columns 0, 1, -1, 2, … in which the disc is equally high."""
    runs, first = [], 0
    for height in range(radius - 1, -1, -1):
        end = 2 * min(math.isqrt(radius**2 - 1 - height**2), radius - 1) + 1
        if end > first:
            runs.append((height, first, end))
            first = end
    return tuple(runs)


@triton.jit
def _add(sums, first: tl.constexpr, weight, values):
    """Add the weighted values to the sums from ``first`` on."""
    for g in tl.static_range(len(values)):
        added = tl.fma(weight, values[g], sums[first + g])
        # Triton unpacks no tuples into others
        sums = sums[: first + g] + (added,) + sums[first + g + 1 :]  # noqa: RUF005
    return sums


@triton.jit
def _add_columns(
    sums,
    values_at,
    weights_at,
    HEIGHT: tl.constexpr,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    RADIUS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PITCH: tl.constexpr,
):
    """Add what the neighbours give that are up to ``HEIGHT`` rows away, in a run of columns."""
    # elements from a slot, and from a line, to the next
    SPAN: tl.constexpr = (2 * RADIUS - 1) * PITCH
    WEIGHTS: tl.constexpr = (2 * RADIUS * (RADIUS - 1) + 1) * PITCH
    LINE: tl.constexpr = CHUNKS * PITCH * 4
    # columns 0, 1, -1, 2, -2, …: each weight serves two of them, one soon after the other
    for i in range(FIRST, END):
        dx = (i + 1) // 2 * (i % 2 * 2 - 1)
        # weights of pairs that begin at a pixel, that end there, and of those within its row
        ahead = weights_at + dx * PITCH
        behind = weights_at + dx * (1 - PITCH)
        beside = weights_at + tl.where(dx < 0, dx * (1 - PITCH), dx * PITCH)
        for row in tl.static_range(-HEIGHT, ROWS + HEIGHT):
            values = ()
            for g in tl.static_range(CHUNKS):
                values += (tl.load(values_at + (row * LINE + g * PITCH * 4 + dx * 4)),)
            for r in tl.static_range(ROWS):
                if (row - r) * (row - r) <= HEIGHT * HEIGHT:
                    if row > r:
                        place = ahead + ((row - r) * SPAN + r * WEIGHTS)
                    elif row < r:
                        place = behind + ((r - row) * SPAN + row * WEIGHTS)
                    else:
                        place = beside + r * WEIGHTS
                    weight = tl.load(place).to(tl.float32)[:, None]
                    sums = _add(sums, r * CHUNKS, weight, values)
    return sums


@triton.jit(do_not_specialize=["first", "last", "height", "width", "columns", "lines", "tiles"])
def _walk_kernel(
    states,
    total,
    weights,
    diagonal,
    factors,
    first,
    last,
    height,
    width,
    columns,
    lines,
    tiles,
    CHEBYSHEV: tl.constexpr,
    RADIUS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PITCH: tl.constexpr,
    RUNS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Steps ``first`` to ``last`` of some channels of an image, on ``tiles`` tiles of its grid."""
    REACH: tl.constexpr = RADIUS - 1
    CHUNK: tl.constexpr = PITCH * 4
    LINE: tl.constexpr = CHUNKS * CHUNK
    WEIGHTS: tl.constexpr = (2 * RADIUS * (RADIUS - 1) + 1) * PITCH
    image = tl.program_id(1).to(tl.int64)
    part = (image * tl.num_programs(0) + tl.program_id(0)) * lines * LINE
    other = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * lines * LINE
    channel = tl.arange(0, 4)[None, :]
    for step in range(first, last):
        old = states + part + step % 2 * other
        new = states + part + (1 - step % 2) * other
        if CHEBYSHEV:
            scale = tl.where(step == 0, 1.0, 2.0)
            factor = tl.load(factors + step + 1)
        for tile in range(tl.program_id(2) * tiles, (tl.program_id(2) + 1) * tiles):
            column = tile * THREADS + tl.arange(0, THREADS)
            active = column < columns
            # the others read along, within bounds, so that no read is predicated
            column = tl.minimum(column, columns - 1)
            y = column // width * ROWS
            x = column % width + REACH
            at = ((y + REACH) * LINE + x * 4)[:, None] + channel
            # 64 bits: the weights of a large grid are more than 2^31
            line = image * lines + y + REACH
            weight_at = weights + line * WEIGHTS + x
            diagonal_at = diagonal + line * PITCH + x
            sums = ()
            for _ in tl.static_range(ROWS * CHUNKS):
                sums += (tl.full((THREADS, 4), 0, tl.float32),)
            for run in tl.static_range(len(RUNS)):
                sums = _add_columns(
                    sums,
                    old + at,
                    weight_at,
                    RUNS[run][0],
                    RUNS[run][1],
                    RUNS[run][2],
                    RADIUS,
                    ROWS,
                    CHUNKS,
                    PITCH,
                )
            for r in tl.static_range(ROWS):
                inside = (active & (y + r < height))[:, None]
                weight = tl.load(diagonal_at + r * PITCH)[:, None]
                for g in tl.static_range(CHUNKS):
                    place = at + (r * LINE + g * CHUNK)
                    state = tl.load(old + place)
                    change = tl.fma(weight, state, sums[r * CHUNKS + g])
                    if CHEBYSHEV:
                        # 2 M v - v' = v + (v - v') + 2 L v
                        change = tl.fma(change, scale, state - tl.load(new + place))
                        if factor != 0:
                            so_far = tl.load(total + part + place)
                            so_far = tl.fma(state + change, factor, so_far)
                            tl.store(total + part + place, so_far, mask=inside)
                    tl.store(new + place, state + change, mask=inside)
        # the interpreter does without: only the tests on a GPU can notice its absence
        tl.debug_barrier()
