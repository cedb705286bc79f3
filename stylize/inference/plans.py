"""Plan how to paint a picture in strips in a memory budget: which maps to keep and where, and the height of strips."""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stylize.errors import StylizeError
from stylize.generators.base import Stage
from stylize.ops.limits import limits
from stylize.system.devices import CPU, free_and_own_bytes, has_own_memory, indexable_values

GIB = 2**30
LEAST_STRIP_PX = 16
RGB = 3
# On a CPU larger strips gain nothing, and their memory is lost to kept maps.
ENOUGH_WORKING_BYTES = 512 * 2**20
# Large strips keep a device with its own memory busy: an eighth of what is free, of which half is the budget.
DEVICE_WORKING_SHARE = 0.25
DEVICE_WORKING_BYTES = 8 * GIB
# What the libraries of such a device take beside the maps: their workspaces, and what the allocator cannot reuse.
WORKSPACE_SHARE = 0.15
WORKSPACE_BYTES = 64 * 2**20
WORTH_KEEPING = 0.75  # of the largest maps: with larger ones in memory the picture could be painted as a whole
SHARE_OF_FREE = 0.5
BYTES_A_PIXEL = 2 * (3 * 4 + 3)  # the photograph and the painted picture, in float32 and in 8 bits
SCRATCH_STRIPS = 32  # of a convolution: padded strips, results, allocator slack
SCRATCH_CHUNKS_A_THREAD = 2  # transformed tiles, products
FLOAT_BYTES = 4
DISK_BUFFERS = 6  # of two files: being read, read ahead, waiting to be written


class Sweep(NamedTuple):
    """One pass over a stage from top to bottom.

    Attributes:
        stage: Number of the stage.
        keeps: Whether the convolved maps are kept.
        over: Stage whose kept maps they overwrite, or None.
        ended: Stages whose kept maps are not needed afterwards.
    """

    stage: int
    keeps: bool
    over: int | None
    ended: tuple[int, ...]


class Plan(NamedTuple):
    """How to paint a picture in strips.

    Attributes:
        sweeps: Sweeps in order, before the one that paints.
        strip_px: Rows of the picture in a strip.
        place: Where kept maps are stored: a folder, or the memory of a device.
        kept_bytes: Memory of the kept maps, at most.
        working_bytes: Memory for a strip.
        effort: Multiplications, as a multiple of those of painting the picture as a whole.
    """

    sweeps: tuple[Sweep, ...]
    strip_px: int
    place: Path | torch.device
    kept_bytes: int
    working_bytes: int
    effort: float


class MemoryBudget(NamedTuple):
    """Memory and disk space for one picture.

    Attributes:
        device: Where to compute.
        device_bytes: Memory of the device that may be used.
        host_bytes: Memory of the host that may be used, where the device has its own.
        folder: Folder for temporary files.
        folder_bytes: Free space there.
        own_bytes: Memory of the device that the process has already.
    """

    device: torch.device
    device_bytes: int
    host_bytes: int
    folder: Path
    folder_bytes: int
    own_bytes: int = 0


def find_budget(device: torch.device, folder: Path, max_memory_gib: float | None = None) -> MemoryBudget:
    """Return the budget for a picture, beside what the process already has.

    Args:
        device: Where to compute.
        folder: Folder for temporary files.
        max_memory_gib: Memory budget of the whole process on the device; None: half of the free memory.
    """
    host, own = _left(CPU, max_memory_gib if device == CPU else None)
    left, own = (host, own) if device == CPU else _left(device, max_memory_gib)
    return MemoryBudget(device, left, host, folder, shutil.disk_usage(folder).free, own)


def _left(device: torch.device, max_memory_gib: float | None) -> tuple[int, int]:
    """Return the bytes of a device's memory that may still be used (negative beyond the limit), and those in use."""
    free, own = free_and_own_bytes(device)
    if max_memory_gib is None:
        return int(SHARE_OF_FREE * free), own
    return min(free, int(max_memory_gib * GIB) - own), own


def whole_bytes(bytes_per_px: float, size: tuple[int, int], device: torch.device) -> int:
    """Estimate the memory that painting a picture as a whole takes.

    Args:
        bytes_per_px: Bytes a pixel that the network holds at most.
        size: Width and height in px.
        device: Where it is painted.
    """
    width, height = size
    return _with_workspace(int(width * height * (bytes_per_px + BYTES_A_PIXEL)), device)


def _with_workspace(maps_bytes: int, device: torch.device) -> int:
    """Add what convolutions take beside their maps."""
    if has_own_memory(device):
        return int(maps_bytes * (1 + WORKSPACE_SHARE)) + WORKSPACE_BYTES
    return maps_bytes + scratch_bytes()


def scratch_bytes() -> int:
    """Return the memory that a convolution takes beside its maps on a CPU."""
    chunks = SCRATCH_CHUNKS_A_THREAD * torch.get_num_threads()
    return FLOAT_BYTES * (SCRATCH_STRIPS * limits.strip_values + chunks * limits.chunk_values)


def choose_plan(stages: Sequence[Stage], budget: MemoryBudget, dtype: torch.dtype) -> Plan:
    """Return the plan with the least arithmetic whose maps fit into the nearest place: device, host memory, or disk.

    Args:
        stages: The generator's stages for the picture.
        budget: Memory and disk space.
        dtype: Type of the maps.

    Raises:
        StylizeError: Not even one strip fits, or the disk is too small.
    """
    plans = plans_of(stages, dtype)
    near = [_with_strips(plan, stages, budget, dtype, budget.device_bytes - plan.kept_bytes) for plan in plans]
    far = [_with_strips(plan, stages, budget, dtype, budget.device_bytes) for plan in plans]
    disk = [
        _with_strips(plan._replace(place=budget.folder), stages, budget, dtype, budget.device_bytes) for plan in plans
    ]
    for place, bytes_there, candidates in (
        (
            budget.device,
            budget.device_bytes,
            [p for p in near if p.kept_bytes + p.working_bytes <= budget.device_bytes],
        ),
        (CPU, budget.host_bytes, far if budget.device != CPU else []),
        (budget.folder, budget.folder_bytes // 2, disk),
        (budget.folder, budget.folder_bytes, disk),
    ):
        fitting = [p for p in candidates if p.kept_bytes <= bytes_there and p.working_bytes <= budget.device_bytes]
        if fitting:
            return min(fitting, key=lambda plan: plan.effort)._replace(place=place)
    raise StylizeError(_what_lacks(stages, disk, budget))


def plans_of(stages: Sequence[Stage], dtype: torch.dtype) -> list[Plan]:
    """Return all plans, from the fewest kept maps to the least arithmetic; in memory, in the lowest strips."""
    return [_plan(stages, kept, dtype) for kept in _choices(stages)]


def _what_lacks(stages: Sequence[Stage], plans: Sequence[Plan], budget: MemoryBudget) -> str:
    height, width = stages[0].size
    least = min(plan.working_bytes for plan in plans)
    if least > budget.device_bytes:
        return (
            f"a picture of {width}×{height} px needs {(budget.own_bytes + least) / GIB:.2f} GiB of memory even in "
            f"strips, got {(budget.own_bytes + budget.device_bytes) / GIB:.2f}; --max-memory allows more, --max-size "
            "shrinks it"
        )
    kept = min(plan.kept_bytes for plan in plans)
    return (
        f"a picture of {width}×{height} px needs {kept / GIB:.1f} GiB on the disk, {budget.folder} has "
        f"{budget.folder_bytes / GIB:.1f}; --max-memory, or TMPDIR for another folder"
    )


def _choices(stages: Sequence[Stage]) -> list[frozenset[int]]:
    """Return the sets of stages that may be kept: all up to some size, and those that residual connections need."""
    residuals = {stage.residual_of for stage in stages if stage.residual_of is not None}
    needed = frozenset(residuals | {i for i, stage in enumerate(stages) if stage.residual_of is not None})
    values = {_values(stage) for stage in stages[:-1]}
    sizes = sorted(size for size in values if size <= WORTH_KEEPING * max(values))
    choices = []
    for size in sizes:
        kept = needed | {i for i, stage in enumerate(stages[:-1]) if _values(stage) <= size}
        if kept not in choices:
            choices.append(kept)
    return choices or [needed]  # of a network whose maps are all as large as its largest


def _plan(stages: Sequence[Stage], kept: frozenset[int], dtype: torch.dtype) -> Plan:
    sweeps = tuple(_schedule(stages, kept))
    painted = len(stages) - 1
    multiplications = sum(chain_multiplications(stages, kept, i) for i in (*(s.stage for s in sweeps), painted))
    effort = multiplications / sum(map(_multiplications, stages))
    return Plan(sweeps, LEAST_STRIP_PX, CPU, _most_kept(stages, sweeps) * dtype.itemsize, 0, effort)


def _schedule(stages: Sequence[Stage], kept: frozenset[int]) -> Iterator[Sweep]:
    alive: set[int] = set()
    for i, stage in enumerate(stages):
        keeps = i in kept
        if not keeps and not stage.needs_images:
            continue
        needed = alive
        over = None
        if keeps:
            needed = {i} | {
                later.residual_of for later in stages[i:] if later.residual_of is not None and later.residual_of < i
            }
            same = i - 1 in alive - needed and map_shape(stages[i - 1]) == map_shape(stage)
            over = i - 1 if same else None
        yield Sweep(i, keeps, over, tuple(sorted(alive - needed - {over})))
        alive = needed - {stage.residual_of}  # the sum takes the place of what it adds to


def _most_kept(stages: Sequence[Stage], sweeps: Sequence[Sweep]) -> int:
    """Return the most values that are kept at a time; freed memory is reused for maps of the same shape."""
    alive: list[int] = []
    most = 0
    for sweep in sweeps:
        size = _values(stages[sweep.stage])
        if sweep.keeps:
            alive += [] if sweep.over is not None else [size]
        most = max(most, sum(alive))
        for ended in sweep.ended:
            alive.remove(_values(stages[ended]))
        if stages[sweep.stage].residual_of is not None:
            alive.remove(size)
    return most


def map_shape(stage: Stage) -> tuple[int, int, int]:
    """Return the shape of the result of a stage's convolution: `(H, W, C)`."""
    return (*stage.size, stage.conv.out_channels)


def _values(stage: Stage) -> int:
    height, width, channels = map_shape(stage)
    return height * width * channels


def _multiplications(stage: Stage) -> int:
    height, width = stage.size
    return height * width * stage.conv.multiplications


def _chain(kept: frozenset[int] | set[int], i: int) -> Iterator[int]:
    """Yield the stages that are computed for stage `i`: itself and those before it, down to one that is kept."""
    yield i
    while i > 0 and i - 1 not in kept:
        i -= 1
        yield i


def chain_multiplications(stages: Sequence[Stage], kept: frozenset[int], i: int) -> int:
    """Return the multiplications of stage `i` and of all stages that are recomputed for it."""
    return sum(_multiplications(stages[j]) for j in _chain(kept, i))


def _with_strips(
    plan: Plan, stages: Sequence[Stage], budget: MemoryBudget, dtype: torch.dtype, bytes_left: int
) -> Plan:
    """Return the plan with the highest strips that fit and pay, or the lowest."""
    most = min(bytes_left, _enough_bytes(budget))
    indexable = indexable_values(budget.device)

    def is_too_much(strip_px: int) -> bool:
        lower = plan._replace(strip_px=strip_px)
        if working_bytes(lower, stages, dtype, budget.device) > most:
            return True
        return indexable is not None and largest_values(lower, stages) > indexable

    height = stages[0].size[0]
    heights = range(LEAST_STRIP_PX, height + LEAST_STRIP_PX, LEAST_STRIP_PX)
    fitting = bisect_left(heights, True, key=is_too_much)
    plan = plan._replace(strip_px=heights[max(0, fitting - 1)])
    return plan._replace(working_bytes=working_bytes(plan, stages, dtype, budget.device))


def _enough_bytes(budget: MemoryBudget) -> int:
    if not has_own_memory(budget.device):
        return ENOUGH_WORKING_BYTES
    share = int(DEVICE_WORKING_SHARE * budget.device_bytes)
    return max(ENOUGH_WORKING_BYTES, min(DEVICE_WORKING_BYTES, share))


class _Step(NamedTuple):
    """The computation of a strip's rows of a stage.

    Attributes:
        stage: The stage.
        before: Stage whose result it reads; of the first one itself.
        rows: Rows of the result.
        below: Rows of what it reads.
        waiting: Values that wait to be written meanwhile.
        previous: Values of the strip before, which whoever took it may still have.
        channels: Channels of what it reads.
        is_end: Whether the stage is the first or the last one, which compute in float32.
    """

    stage: Stage
    before: Stage
    rows: int
    below: int
    waiting: int
    previous: int
    channels: int
    is_end: bool

    @property
    def result(self) -> int:
        """Values of the result."""
        return self.rows * _row_values(self.stage)

    @property
    def padded(self) -> int:
        """Values of what is convolved, with its borders."""
        geometry = self.stage.geometry
        width = geometry.upsampled((self.below, self.before.size[1]))[1] + 2 * geometry.border_px
        return (self.rows * geometry.stride + 2 * geometry.border_px) * width * self.channels


def _steps(plan: Plan, stages: Sequence[Stage]) -> Iterator[_Step]:
    kept = {sweep.stage for sweep in plan.sweeps if sweep.keeps}
    for i in (*(sweep.stage for sweep in plan.sweeps), len(stages) - 1):
        rows = stage_rows(stages, i, plan.strip_px)
        previous = rows * _row_values(stages[i])
        waiting = previous if i in kept else 0
        for j in _chain(kept, i):
            before, below = stages[max(j - 1, 0)], rows
            if j > 0:
                first, last = stages[j].geometry.needed_rows(0, rows, before.size[0])
                below = min(last - first + stages[j].geometry.border_px, before.size[0])
            channels, is_end = before.conv.out_channels if j else RGB, j in (0, len(stages) - 1)
            yield _Step(stages[j], before, rows, below, waiting, previous, channels, is_end)
            rows = below


def working_bytes(plan: Plan, stages: Sequence[Stage], dtype: torch.dtype, device: torch.device) -> int:
    """Return the memory of the largest strip: maps before and after a convolution, and one waiting to be written."""
    bytes_of = _plain_bytes if has_own_memory(device) else _kernel_bytes
    most = max(bytes_of(step, dtype) for step in _steps(plan, stages))
    if isinstance(plan.place, Path):
        kept = {sweep.stage for sweep in plan.sweeps if sweep.keeps}
        written = [stage_rows(stages, i, plan.strip_px) * _row_values(stages[i]) for i in kept]
        most += DISK_BUFFERS * max(written, default=0) * dtype.itemsize
    return _with_workspace(most, device)


def _kernel_bytes(step: _Step, dtype: torch.dtype) -> int:
    """Bytes of a step by the compiled kernels of a CPU, which pad and upsample in their scratch memory."""
    result = step.result * (2 if step.stage.residual_of is None else 3)
    return (step.waiting + result + 2 * step.below * _row_values(step.before)) * dtype.itemsize


def _plain_bytes(step: _Step, dtype: torch.dtype) -> int:
    """Bytes of a step by PyTorch: the maps upsampled, padded, convolved, and normalized by way of float32."""
    computed = FLOAT_BYTES if step.is_end else dtype.itemsize
    read = step.below * step.before.size[1] * step.channels
    widened = computed if computed != dtype.itemsize else 0
    copies = 1 if step.stage.upsampling is None else 2
    convolving = read * (dtype.itemsize + widened) + (copies * step.padded + step.result) * computed
    maps = 2 if step.stage.residual_of is None else 3
    finishing = step.result * (maps * computed + (FLOAT_BYTES if computed != FLOAT_BYTES else 0))
    return step.previous * dtype.itemsize + max(convolving, finishing)


def largest_values(plan: Plan, stages: Sequence[Stage]) -> int:
    """Return the values of the largest map of a strip."""
    return max(max(step.padded, step.result, step.below * _row_values(step.before)) for step in _steps(plan, stages))


def _row_values(stage: Stage) -> int:
    return stage.size[1] * stage.conv.out_channels


def stage_rows(stages: Sequence[Stage], i: int, strip_px: int) -> int:
    """Return how many rows of a stage correspond to a strip."""
    return max(1, strip_px * stages[i].size[0] // stages[0].size[0], stages[i].conv.geometry.border_px)
