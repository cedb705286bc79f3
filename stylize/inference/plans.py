"""How a picture is painted in strips, by the memory there is: which maps are kept, and where; how high strips are."""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stylize.errors import StylizeError
from stylize.generators.base import Stage
from stylize.ops.limits import limits
from stylize.system.memory import available_bytes, own_bytes

CPU = torch.device("cpu")
GIB = 2**30
LEAST_STRIP_PX = 16
# Of a strip: beyond it nothing is gained, and all of it is taken from what may be kept.
ENOUGH_WORKING_BYTES = 512 * 2**20
WORTH_KEEPING = 0.75  # of the largest maps: with these in memory the picture could be painted whole
SHARE_OF_FREE = 0.5
BYTES_A_PIXEL = 2 * (3 * 4 + 3)  # the photograph and the painted picture, in float32 and as they stand in files
SCRATCH_STRIPS = 32  # of a convolution: padded strips, results, allocator slack
SCRATCH_CHUNKS_A_THREAD = 2  # transformed tiles, products
FLOAT_BYTES = 4
DISK_BUFFERS = 6  # of two files: what is read, read ahead and still to be written


class Sweep(NamedTuple):
    """One pass over a stage from top to bottom.

    Attributes:
        stage: Its number.
        keeps: Whether the convolved maps are kept.
        over: The stage over whose kept maps they are written, or None.
        ended: Stages whose kept maps nobody needs afterwards.
    """

    stage: int
    keeps: bool
    over: int | None
    ended: tuple[int, ...]


class Plan(NamedTuple):
    """How a picture is painted in strips.

    Attributes:
        sweeps: In this order, before the one that paints.
        strip_px: Rows of the picture in a strip.
        place: Where kept maps go: a folder, or the memory of a device.
        kept_bytes: Of these, at most at a time.
        working_bytes: For a strip.
        effort: Multiplications, as a multiple of those of painting the whole.
    """

    sweeps: tuple[Sweep, ...]
    strip_px: int
    place: Path | torch.device
    kept_bytes: int
    working_bytes: int
    effort: float


class Room(NamedTuple):
    """What there is for a picture.

    Attributes:
        device: Where to compute.
        device_bytes: Of its memory.
        host_bytes: Of the processor's memory, where the device has its own.
        folder: For what goes on the disk.
        folder_bytes: Free there.
        own_bytes: What the process has of the device's memory before.
    """

    device: torch.device
    device_bytes: int
    host_bytes: int
    folder: Path
    folder_bytes: int
    own_bytes: int = 0


def find_room(device: torch.device, folder: Path, max_memory_gib: float | None = None) -> Room:
    """What there is for a picture, beside what the process already has.

    Args:
        device: Where to compute.
        folder: For what goes on the disk.
        max_memory_gib: What the process may have of the device's memory; None: half of what is free there.
    """
    host, own = _left(CPU, max_memory_gib if device.type == "cpu" else None)
    left, own = (host, own) if device.type == "cpu" else _left(device, max_memory_gib)
    return Room(device, left, host, folder, shutil.disk_usage(folder).free, own)


def _left(device: torch.device, max_memory_gib: float | None) -> tuple[int, int]:
    """How many bytes of a device's memory may still be taken, below zero if too many are, and how many are."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device)
        free = torch.cuda.mem_get_info(device)[0] + own - torch.cuda.memory_allocated(device)
    elif device.type == "mps":
        own = torch.mps.driver_allocated_memory()
        free = torch.mps.recommended_max_memory() - own
    else:
        free, own = available_bytes(), own_bytes()
    if max_memory_gib is None:
        return int(SHARE_OF_FREE * free), own
    return min(free, int(max_memory_gib * GIB) - own), own


def whole_bytes(values_per_px: float, size: tuple[int, int], dtype: torch.dtype) -> int:
    """What it takes, about, to paint a picture of this width and height as a whole.

    Args:
        values_per_px: The generator's.
        size: Width and height in px.
        dtype: Of the maps.
    """
    width, height = size
    return int(width * height * (values_per_px * dtype.itemsize + BYTES_A_PIXEL)) + scratch_bytes()


def scratch_bytes() -> int:
    """What a convolution takes beside its maps; those of a picture are computed one after the other."""
    chunks = SCRATCH_CHUNKS_A_THREAD * torch.get_num_threads()
    return FLOAT_BYTES * (SCRATCH_STRIPS * limits.strip_values + chunks * limits.chunk_values)


def choose_plan(stages: Sequence[Stage], room: Room, dtype: torch.dtype) -> Plan:
    """The plan with the least arithmetic in the nearest place that holds its maps: device, processor's memory, disk.

    Args:
        stages: The generator's, for the picture.
        room: What there is for it.
        dtype: Of the maps.

    Raises:
        StylizeError: Not even a strip fits, or the disk has not the room.
    """
    plans = plans_of(stages, dtype)
    near = [_with_strips(plan, stages, room.device_bytes - plan.kept_bytes, dtype) for plan in plans]
    far = [_with_strips(plan, stages, room.device_bytes, dtype) for plan in plans]
    disk = [_with_strips(plan._replace(place=room.folder), stages, room.device_bytes, dtype) for plan in plans]
    for place, bytes_there, candidates in (
        (room.device, room.device_bytes, [p for p in near if p.kept_bytes + p.working_bytes <= room.device_bytes]),
        (CPU, room.host_bytes, far if room.device.type != "cpu" else []),
        (room.folder, room.folder_bytes // 2, disk),
        (room.folder, room.folder_bytes, disk),
    ):
        fitting = [p for p in candidates if p.kept_bytes <= bytes_there and p.working_bytes <= room.device_bytes]
        if fitting:
            return min(fitting, key=lambda plan: plan.effort)._replace(place=place)
    raise StylizeError(_what_lacks(stages, disk, room))


def plans_of(stages: Sequence[Stage], dtype: torch.dtype) -> list[Plan]:
    """All plans, from the fewest kept maps to the least arithmetic; in memory, in the lowest strips."""
    return [_plan(stages, kept, dtype) for kept in _choices(stages)]


def _what_lacks(stages: Sequence[Stage], plans: Sequence[Plan], room: Room) -> str:
    height, width = stages[0].size
    least = min(plan.working_bytes for plan in plans)
    if least > room.device_bytes:
        return (
            f"a picture of {width}×{height} px needs {(room.own_bytes + least) / GIB:.2f} GiB of memory even in "
            f"strips, got {(room.own_bytes + room.device_bytes) / GIB:.2f}; --max-memory allows more, --max-size "
            "shrinks it"
        )
    kept = min(plan.kept_bytes for plan in plans)
    return (
        f"a picture of {width}×{height} px needs {kept / GIB:.1f} GiB on the disk, {room.folder} has "
        f"{room.folder_bytes / GIB:.1f}; --max-memory, or TMPDIR for another folder"
    )


def _choices(stages: Sequence[Stage]) -> list[frozenset[int]]:
    """Which stages may be kept: those up to one size or another, with all that a sum needs."""
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
    """The most values that are kept at a time; maps that become free serve later ones of their shape."""
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
    """Of what a stage's convolution leaves: `(H, W, C)`."""
    return (*stage.size, stage.conv.out_channels)


def _values(stage: Stage) -> int:
    height, width, channels = map_shape(stage)
    return height * width * channels


def _multiplications(stage: Stage) -> int:
    height, width = stage.size
    return height * width * stage.conv.multiplications


def _chain(kept: frozenset[int] | set[int], i: int) -> Iterator[int]:
    """The stages that are computed for stage `i`: itself, and those before it as far as the next that is kept."""
    yield i
    while i > 0 and i - 1 not in kept:
        i -= 1
        yield i


def chain_multiplications(stages: Sequence[Stage], kept: frozenset[int], i: int) -> int:
    """Of stage `i` and all that is computed anew for it."""
    return sum(_multiplications(stages[j]) for j in _chain(kept, i))


def _with_strips(plan: Plan, stages: Sequence[Stage], bytes_left: int, dtype: torch.dtype) -> Plan:
    """The same plan with the highest strips that are worth it and fit, or the lowest that there are."""
    most = min(bytes_left, ENOUGH_WORKING_BYTES)
    height = stages[0].size[0]
    heights = range(LEAST_STRIP_PX, height + LEAST_STRIP_PX, LEAST_STRIP_PX)
    fitting = bisect_right(heights, most, key=lambda px: working_bytes(plan._replace(strip_px=px), stages, dtype))
    plan = plan._replace(strip_px=heights[max(0, fitting - 1)])
    return plan._replace(working_bytes=working_bytes(plan, stages, dtype))


def working_bytes(plan: Plan, stages: Sequence[Stage], dtype: torch.dtype) -> int:
    """What the most demanding strip takes: maps before and after a convolution, and a strip that waits for writing."""
    kept = {sweep.stage for sweep in plan.sweeps if sweep.keeps}
    most = 0
    for i in (*(sweep.stage for sweep in plan.sweeps), len(stages) - 1):
        rows = stage_rows(stages, i, plan.strip_px)
        behind = rows * _row_values(stages[i]) if i in kept else 0
        for j in _chain(kept, i):
            before, below = stages[max(j - 1, 0)], rows
            if j > 0:
                first, last = stages[j].geometry.needed_rows(0, rows, before.size[0])
                below = min(last - first + stages[j].geometry.border_px, before.size[0])
            result = rows * _row_values(stages[j]) * (2 if stages[j].residual_of is None else 3)
            most = max(most, behind + result + 2 * below * _row_values(before))
            rows = below
    if isinstance(plan.place, Path):
        written = [stage_rows(stages, i, plan.strip_px) * _row_values(stages[i]) for i in kept]
        most += DISK_BUFFERS * max(written, default=0)
    return most * dtype.itemsize + scratch_bytes()


def _row_values(stage: Stage) -> int:
    return stage.size[1] * stage.conv.out_channels


def stage_rows(stages: Sequence[Stage], i: int, strip_px: int) -> int:
    """How many rows of a stage correspond to a strip."""
    return max(1, strip_px * stages[i].size[0] // stages[0].size[0], stages[i].conv.geometry.border_px)
