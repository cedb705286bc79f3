"""Paint in strips of rows with the statistics of the whole picture: any size, in bounded memory.

A generator describes itself as a chain of stages (`Generator.stages`); nothing here knows one by name. Instance
normalization needs the statistics of a whole image, so every stage with such a norm is swept once: its convolution is
computed strip by strip from top to bottom, and the statistics of the strips are merged. The rows of the stage before,
with their halo, are recomputed, down to the next stage whose maps are *kept*: always those of the residual blocks, and
larger ones where memory allows, since they save arithmetic. A last sweep paints the picture.

Kept maps are results of convolutions before the norm, whose statistics are not known yet. The sum of a residual block
overwrites the maps that it adds to, and a convolution's result overwrites its input where no other stage needs it:
strip by strip, one strip behind, so that the next one still finds its halo.

Floor: Johnson's generator of width 32 in float32 keeps 64 bytes a pixel (two maps of the residual blocks) and
multiplies 1.5 times as often as one pass; with the maps of half the size 96 bytes and 1.2 times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from stylize import ops
from stylize.generators.base import Stage
from stylize.inference.plans import (
    LEAST_STRIP_PX,
    Plan,
    Sweep,
    chain_multiplications,
    map_shape,
    stage_rows,
)
from stylize.ops import MergedStatistics, Statistics, Window
from stylize.system.devices import CPU, is_out_of_memory
from stylize.system.levels import to_device
from stylize.system.memory import return_freed_memory
from stylize.system.row_store import RowStore
from stylize.system.scratch import SCRATCH

logger = logging.getLogger("stylize")

Rows = Callable[[int, int], Tensor]

# torch's convolutions leave gaps in the C library's heap, some megabytes a strip (`stylize.system.scratch`); its free
# memory is returned to the system now and then, which takes at most a millisecond.
STRIPS_BEFORE_RETURN = 8


class _Kept(NamedTuple):
    store: RowStore
    summed: bool  # the stage's final result, not that of its convolution


class StripPainter:
    """Paints a picture in strips; use it in a `with` block, `measure`, then take the painted `strips`.

    The generator is not changed: several pictures may be painted with it at once.

    Args:
        stages: The generator's stages for the picture.
        plan: Which maps to keep, where, and the height of strips.
        photograph: Returns rows `first` to `last` − 1 of the picture, `(1, 3, rows, W)`.
        height: Height of the picture, px.
        device: Where to compute.
        dtype: Type of kept maps.
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
        self._statistics: dict[int, Statistics] = {}  # of the whole picture, by stage

    def __enter__(self) -> StripPainter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for store in (*self._spare, *(kept.store for kept in self._kept.values())):
            store.close()
        self._kept, self._spare = {}, []
        SCRATCH.clear()

    def measure(self) -> Iterator[float]:
        """Measure the statistics of the whole picture, one sweep after the other.

        Yields:
            After every strip its share of the work of all these sweeps.
        """
        kept = frozenset(sweep.stage for sweep in self.plan.sweeps if sweep.keeps)
        work = [chain_multiplications(self.stages, kept, sweep.stage) for sweep in self.plan.sweeps]
        for sweep, multiplications in zip(self.plan.sweeps, work, strict=True):
            for share in self._sweep(sweep):
                yield share * multiplications / sum(work)

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the painted picture from top to bottom: first row of a strip, and the strip, `(1, 3, rows, W)`."""
        yield from self._by_strips(len(self.stages) - 1, self._result, self.height)

    def _sweep(self, sweep: Sweep) -> Iterator[float]:
        stage = self.stages[sweep.stage]
        height = stage.size[0]
        statistics = MergedStatistics()
        SCRATCH.clear()  # this sweep needs other sizes
        target = self._target(sweep) if sweep.keeps else None
        for first, convolved in self._by_strips(sweep.stage, self._convolved, height):
            if stage.needs_images:
                statistics.add(convolved)
            if target is not None:
                target.put(first, convolved.to(self.dtype))
            yield convolved.shape[2] / height
        if stage.needs_images:
            self._statistics[sweep.stage] = statistics.result()
        for ended in sweep.ended:
            self._spare.append(self._kept.pop(ended).store)
        if target is not None:
            target.finish()
            self._keep(sweep, target.store)

    def _by_strips(
        self, i: int, compute: Callable[[int, int, int], Tensor], height: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Compute a stage's rows strip by strip; if the memory of a GPU is exhausted, in lower strips."""
        first = strips = 0
        while first < height:
            rows = stage_rows(self.stages, i, self.strip_px)
            last = min(height, first + rows)
            try:
                computed = compute(i, first, last)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.strip_px <= LEAST_STRIP_PX:
                    raise
                self.strip_px //= 2
                logger.warning("the memory of %s is exhausted; going on in strips of %d px", self.device, self.strip_px)
                continue
            yield first, computed
            first, strips = last, strips + 1
            if strips % STRIPS_BEFORE_RETURN == 0:
                return_freed_memory()

    def _convolved(self, i: int, first: int, last: int) -> Tensor:
        """Return rows of the result of stage `i`'s convolution."""
        if i in self._kept:
            return self._read(i, first, last)
        stage = self.stages[i]
        height = self.stages[i - 1].size[0] if i else self.height
        low, high = stage.geometry.needed_rows(first, last, height)
        before = self._result(i - 1, low, high)
        if i == len(self.stages) - 1:
            before = ops.widened(before)
        window = Window(before.permute(0, 2, 3, 1)[0], low, height)
        return stage.conv.rows(window, (first, last), stage.geometry, self._room(stage, last - first))

    def _result(self, i: int, first: int, last: int) -> Tensor:
        """Return rows of the result of stage `i`; for −1 of the photograph."""
        if i < 0:
            return self.photograph(first, last)
        kept = self._kept.get(i)
        if kept is not None and kept.summed:
            return self._read(i, first, last)
        stage = self.stages[i]
        x = self._convolved(i, first, last)
        instance = self._statistics.get(i)
        if kept is None:
            x = stage.finished_(x, instance=instance, dtype=self._type_of(i))
        else:  # kept maps must stay as they are
            out = self._room(stage, last - first)
            target = torch.empty_like(x) if out is None else out[None].permute(0, 3, 1, 2)
            x = stage.finished_(x, target, instance, self._type_of(i))
        return x if stage.residual_of is None else x.add_(self._result(stage.residual_of, first, last))

    def _type_of(self, i: int) -> torch.dtype | None:
        """Return the type of the result of stage `i`; None: that of its convolution."""
        return self.dtype if i + 1 < len(self.stages) else None

    def _room(self, stage: Stage, rows: int) -> Tensor | None:
        """Return memory for rows of a stage's maps, `(rows, W, C)`; None: torch allocates it."""
        if self.device != CPU or self.dtype != torch.float32:
            return None
        return SCRATCH.take((rows, *map_shape(stage)[1:]), self.dtype)

    def _read(self, i: int, first: int, last: int) -> Tensor:
        return to_device(self._kept[i].store.read(first, last), self.device)[None].permute(0, 3, 1, 2)

    def _target(self, sweep: Sweep) -> _Target:
        """Return what stores the maps of a sweep."""
        if sweep.over is not None:
            return _Target(self._kept[sweep.over].store)
        shape = map_shape(self.stages[sweep.stage])
        fitting = [store for store in self._spare if store.shape == shape]
        for store in self._spare:
            if store not in fitting:
                store.close()
        self._spare = fitting[1:]
        return _Target(fitting[0] if fitting else RowStore(shape, self.dtype, self.plan.place))

    def _keep(self, sweep: Sweep, store: RowStore) -> None:
        """Keep a stage's maps; a sum overwrites the maps that it adds to."""
        if sweep.over is not None:
            del self._kept[sweep.over]
        self._kept[sweep.stage] = _Kept(store, summed=False)
        stage = self.stages[sweep.stage]
        if stage.residual_of is None:
            return
        total = self._kept[stage.residual_of].store
        for first, result in self._by_strips(sweep.stage, self._result, stage.size[0]):
            total.write(first, result[0].permute(1, 2, 0))
        del self._kept[stage.residual_of]
        self._kept[sweep.stage] = _Kept(total, summed=True)
        self._spare.append(store)


class _Target:
    """Stores a stage's maps in strips, each when the next has been computed, which may need the rows it overwrites."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self._waiting: tuple[int, Tensor] | None = None

    def put(self, first: int, maps: Tensor) -> None:
        """Store a strip `(1, C, rows, W)`, once the next one has come."""
        self.finish()
        self._waiting = first, maps[0].permute(1, 2, 0)

    def finish(self) -> None:
        """Write the strip that waits."""
        if self._waiting is not None:
            self.store.write(*self._waiting)
        self._waiting = None
