"""Painting in strips of rows with the statistics of the whole picture: any size, in the memory that there is.

A generator that can be painted so says of what stages it consists (`Generator.stages`); nothing here knows one by name.
Instance normalization needs the statistics of a whole image, so every stage with such a norm is swept once: its
convolution is computed strip by strip from top to bottom, and the strips' statistics are merged. What a strip needs of
the stage before, its halo with it, is computed anew, down to the next stage whose maps are *kept*. Kept are the maps up
to some size: those of the residual blocks always, larger ones where there is room, for they save arithmetic. At the end
the picture is painted in one more sweep.

Kept maps are those that a convolution leaves, before the norm, whose statistics are not known then. A sum, as of a
residual block, is written over the maps that it adds to, and a convolution's result over its input where nobody else
needs that: strip by strip, one strip behind, so that the next one still finds its halo.

Floor: Johnson's generator of width 32 in float32 keeps 64 bytes a pixel (two maps of the residual blocks) and
multiplies 1.5 times as often as one pass; with the maps of half the size 96 bytes and 1.2 times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from stylize.convolution import STRIP_VALUES, Window
from stylize.errors import StylizeError
from stylize.generators.base import Stage
from stylize.norms import MergedStatistics
from stylize.rows import RowStore

logger = logging.getLogger("stylize")

GIB = 2**30
LEAST_STRIP_PX = 16
# Of a strip: beyond it nothing is gained, and all of it is taken from what may be kept.
ENOUGH_WORKING_BYTES = 192 * 2**20
SCRATCH_BYTES = 8 * 4 * STRIP_VALUES  # of a convolution: a bordered strip, transformed tiles, products

Rows = Callable[[int, int], Tensor]


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
        folder: Where kept maps go, or None: into memory.
        kept_bytes: At most at a time.
        working_bytes: For a strip.
        effort: Multiplications, as a multiple of those of painting the whole.
    """

    sweeps: tuple[Sweep, ...]
    strip_px: int
    folder: Path | None
    kept_bytes: int
    working_bytes: int
    effort: float

    @property
    def memory_bytes(self) -> int:
        """What it takes of memory."""
        return self.working_bytes + (self.kept_bytes if self.folder is None else 0)


def choose_plan(stages: Sequence[Stage], budget_bytes: int, dtype: torch.dtype, folder: Path) -> Plan:
    """The plan with the least arithmetic that keeps its maps in memory; else one that keeps them on disk.

    Args:
        stages: The generator's, for the picture.
        budget_bytes: Memory to be had.
        dtype: Of the maps.
        folder: Where they go on disk.

    Raises:
        StylizeError: Not even a strip fits.
    """
    plans = [_plan(stages, kept, budget_bytes, dtype) for kept in _choices(stages)]
    fitting = [plan for plan in plans if plan.memory_bytes <= budget_bytes]
    if fitting:
        return min(fitting, key=lambda plan: plan.effort)
    on_disk = min(plans, key=lambda plan: plan.kept_bytes)._replace(folder=folder)
    on_disk = _with_strips(on_disk, stages, budget_bytes, dtype)
    if on_disk.memory_bytes > budget_bytes:
        raise StylizeError(
            f"got {budget_bytes / GIB:.2f} GiB of memory for a picture of {stages[0].size[1]}×{stages[0].size[0]} px, "
            f"must be at least {on_disk.memory_bytes / GIB:.2f} even in strips; --max-memory, --max-size"
        )
    return on_disk


def _choices(stages: Sequence[Stage]) -> list[frozenset[int]]:
    """Which stages may be kept: those up to one size or another, with all that a sum needs."""
    added = {stage.added for stage in stages if stage.added is not None}
    needed = frozenset(added | {i for i, stage in enumerate(stages) if stage.added is not None})
    sizes = sorted({_values(stage) for stage in stages[:-1]})
    choices = []
    for size in sizes:
        kept = needed | {i for i, stage in enumerate(stages[:-1]) if _values(stage) <= size}
        if kept not in choices:
            choices.append(kept)
    return choices


def _plan(stages: Sequence[Stage], kept: frozenset[int], budget_bytes: int, dtype: torch.dtype) -> Plan:
    sweeps = tuple(_schedule(stages, kept))
    painted = len(stages) - 1
    multiplications = sum(_chain_multiplications(stages, kept, i) for i in (*(s.stage for s in sweeps), painted))
    effort = multiplications / sum(map(_multiplications, stages))
    kept_bytes = _most_kept(stages, sweeps) * dtype.itemsize
    return _with_strips(Plan(sweeps, 0, None, kept_bytes, 0, effort), stages, budget_bytes, dtype)


def _schedule(stages: Sequence[Stage], kept: frozenset[int]) -> Iterator[Sweep]:
    alive: set[int] = set()
    for i, stage in enumerate(stages):
        keeps = i in kept
        if not keeps and not _needs_images(stage):
            continue
        needed = alive
        over = None
        if keeps:
            needed = {i} | {later.added for later in stages[i:] if later.added is not None and later.added < i}
            same = i - 1 in alive - needed and _shape(stages[i - 1]) == _shape(stage)
            over = i - 1 if same else None
        yield Sweep(i, keeps, over, tuple(sorted(alive - needed - {over})))
        alive = needed - {stage.added}  # the sum takes the place of what it adds to


def _needs_images(stage: Stage) -> bool:
    return stage.norm is not None and stage.norm.needs_images


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
        if stages[sweep.stage].added is not None:
            alive.remove(size)
    return most


def _shape(stage: Stage) -> tuple[int, int, int]:
    return (*stage.size, stage.conv.out_channels)


def _values(stage: Stage) -> int:
    height, width, channels = _shape(stage)
    return height * width * channels


def _multiplications(stage: Stage) -> int:
    return _values(stage) * stage.conv.in_channels * stage.conv.geometry.kernel_px**2


def _chain(kept: frozenset[int] | set[int], i: int) -> Iterator[int]:
    """The stages that are computed for stage `i`: itself, and those before it as far as the next that is kept."""
    yield i
    while i > 0 and i - 1 not in kept:
        i -= 1
        yield i


def _chain_multiplications(stages: Sequence[Stage], kept: frozenset[int], i: int) -> int:
    return sum(_multiplications(stages[j]) for j in _chain(kept, i))


def _with_strips(plan: Plan, stages: Sequence[Stage], budget_bytes: int, dtype: torch.dtype) -> Plan:
    """The same plan with the highest strips that are worth it and fit, or the lowest that there are."""
    room = budget_bytes - (plan.kept_bytes if plan.folder is None else 0)
    room = min(room, ENOUGH_WORKING_BYTES)
    strip_px, working = LEAST_STRIP_PX, _working_bytes(plan, stages, LEAST_STRIP_PX, dtype)
    while strip_px < stages[0].size[0]:
        more = _working_bytes(plan, stages, 2 * strip_px, dtype)
        if more > room:
            break
        strip_px, working = 2 * strip_px, more
    return plan._replace(strip_px=strip_px, working_bytes=working)


def _working_bytes(plan: Plan, stages: Sequence[Stage], strip_px: int, dtype: torch.dtype) -> int:
    """What the most demanding strip takes: maps before and after a convolution, and a strip that waits for writing."""
    kept = {sweep.stage for sweep in plan.sweeps if sweep.keeps}
    most = 0
    for i in (*(sweep.stage for sweep in plan.sweeps), len(stages) - 1):
        rows = _rows_of(stages, i, strip_px)
        behind = rows * _row_values(stages[i]) if i in kept else 0
        for j in _chain(kept, i):
            before, below = stages[max(j - 1, 0)], rows
            if j > 0:
                first, last = stages[j].geometry.needed_rows(0, rows, before.size[0])
                below = min(last - first + stages[j].geometry.border_px, before.size[0])
            result = rows * _row_values(stages[j]) * (2 if stages[j].added is None else 3)
            most = max(most, behind + result + 2 * below * _row_values(before))
            rows = below
    return most * dtype.itemsize + SCRATCH_BYTES


def _row_values(stage: Stage) -> int:
    return stage.size[1] * stage.conv.out_channels


def _rows_of(stages: Sequence[Stage], i: int, strip_px: int) -> int:
    """How many rows of a stage correspond to a strip."""
    return max(1, strip_px * stages[i].size[0] // stages[0].size[0], stages[i].conv.geometry.border_px)


class _Kept(NamedTuple):
    store: RowStore
    summed: bool  # a stage's result, not what its convolution leaves


class StripPainter:
    """Paints a picture in strips; use it in a `with` block, `measure`, then take the painted `strips`.

    The generator's norms are frozen within the block: it must not paint anything else there.

    Args:
        stages: The generator's, for the picture.
        plan: How.
        photograph: Gives rows of the picture, `(1, 3, rows, W)`, from which to before which.
        height: The picture's, in px.
        device: Where to compute.
        dtype: Of kept maps.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        plan: Plan,
        photograph: Rows,
        height: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.stages = stages
        self.plan = plan
        self.photograph = photograph
        self.height = height
        self.device = device
        self.dtype = dtype
        self.strip_px = plan.strip_px
        self._kept: dict[int, _Kept] = {}
        self._spare: list[RowStore] = []

    def __enter__(self) -> StripPainter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stage in self.stages:
            if stage.norm is not None:
                stage.norm.frozen = None
        for store in (*self._spare, *(kept.store for kept in self._kept.values())):
            store.close()
        self._kept, self._spare = {}, []

    def measure(self) -> Iterator[float]:
        """Take the statistics of the whole picture, one sweep after the other.

        Returns:
            After every strip, the share of these sweeps' work that it was.
        """
        kept = frozenset(sweep.stage for sweep in self.plan.sweeps if sweep.keeps)
        work = [_chain_multiplications(self.stages, kept, sweep.stage) for sweep in self.plan.sweeps]
        for sweep, multiplications in zip(self.plan.sweeps, work, strict=True):
            for share in self._sweep(sweep):
                yield share * multiplications / sum(work)

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """The painted picture from top to bottom: where a strip begins, and the strip, `(1, 3, rows, W)`."""
        yield from self._by_strips(len(self.stages) - 1, self._result, self.height)

    def _sweep(self, sweep: Sweep) -> Iterator[float]:
        stage = self.stages[sweep.stage]
        height = stage.size[0]
        merged = MergedStatistics()
        target = self._target(sweep) if sweep.keeps else None
        for first, convolved in self._by_strips(sweep.stage, self._convolved, height):
            if _needs_images(stage):
                merged.add(convolved)
            if target is not None:
                target.put(first, convolved)
            yield convolved.shape[2] / height
        if stage.norm is not None and _needs_images(stage):
            stage.norm.frozen = stage.norm.of_images(merged.result())
        for ended in sweep.ended:
            self._spare.append(self._kept.pop(ended).store)
        if target is not None:
            target.finish()
            self._keep(sweep, target.store)

    def _by_strips(
        self, i: int, compute: Callable[[int, int, int], Tensor], height: int
    ) -> Iterator[tuple[int, Tensor]]:
        """A stage's rows, computed strip by strip; where a GPU's memory does not suffice, in lower ones."""
        first = 0
        while first < height:
            rows = _rows_of(self.stages, i, self.strip_px)
            last = min(height, first + rows)
            try:
                computed = compute(i, first, last)
            except torch.OutOfMemoryError:
                if self.strip_px <= LEAST_STRIP_PX:
                    raise
                self.strip_px //= 2
                logger.warning("the memory of %s is exhausted; going on in strips of %d px", self.device, self.strip_px)
                continue
            yield first, computed
            first = last

    def _convolved(self, i: int, first: int, last: int) -> Tensor:
        """Rows of what the convolution of stage `i` leaves."""
        if i in self._kept:
            return self._read(i, first, last)
        stage = self.stages[i]
        height = self.stages[i - 1].size[0] if i else self.height
        low, high = stage.geometry.needed_rows(first, last, height)
        before = self._result(i - 1, low, high)
        window = Window(before.permute(0, 2, 3, 1)[0], low, height)
        return stage.conv.rows(window, (first, last), stage.geometry)

    def _result(self, i: int, first: int, last: int) -> Tensor:
        """Rows of the result of stage `i`; of the photograph where there is none before."""
        if i < 0:
            return self.photograph(first, last)
        kept = self._kept.get(i)
        if kept is not None and kept.summed:
            return self._read(i, first, last)
        stage = self.stages[i]
        x = self._convolved(i, first, last)
        if kept is not None:  # these maps are to stay as they are
            normalized = x if stage.norm is None else stage.norm(x)
            x = x.clone() if normalized is x else normalized
        elif stage.norm is not None:
            x = stage.norm.normalize_(x)
        if stage.activation is not None:
            x = stage.activation(x)
        return x if stage.added is None else x.add_(self._result(stage.added, first, last))

    def _read(self, i: int, first: int, last: int) -> Tensor:
        return self._kept[i].store.read(first, last).to(self.device)[None].permute(0, 3, 1, 2)

    def _target(self, sweep: Sweep) -> _Target:
        """Where the maps of a sweep go."""
        if sweep.over is not None:
            return _Target(self._kept[sweep.over].store)
        shape = _shape(self.stages[sweep.stage])
        fitting = [store for store in self._spare if store.shape == shape]
        for store in self._spare:
            if store not in fitting:
                store.close()
        self._spare = fitting[1:]
        return _Target(fitting[0] if fitting else RowStore(shape, self.dtype, self.plan.folder))

    def _keep(self, sweep: Sweep, store: RowStore) -> None:
        """Keep a stage's maps; a sum over those that it adds to."""
        if sweep.over is not None:
            del self._kept[sweep.over]
        self._kept[sweep.stage] = _Kept(store, summed=False)
        stage = self.stages[sweep.stage]
        if stage.added is None:
            return
        total = self._kept[stage.added].store
        for first, result in self._by_strips(sweep.stage, self._result, stage.size[0]):
            total.write(first, result[0].permute(1, 2, 0))
        del self._kept[stage.added]
        self._kept[sweep.stage] = _Kept(total, summed=True)
        self._spare.append(store)


class _Target:
    """Takes a stage's maps in strips; writes each when the next is there, which may need what it is written over."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self._waiting: tuple[int, Tensor] | None = None

    def put(self, first: int, maps: Tensor) -> None:
        """Take a strip `(1, C, rows, W)`."""
        self.finish()
        self._waiting = first, maps[0].permute(1, 2, 0)

    def finish(self) -> None:
        """Write what waits."""
        if self._waiting is not None:
            self.store.write(*self._waiting)
        self._waiting = None
