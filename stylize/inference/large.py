"""Pictures that are too large for the memory as a whole: from rows to rows, in strips."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators.base import Stage, check_size, mirrored_places
from stylize.inference.options import PaintOptions
from stylize.inference.plans import GIB, RGB, WORKSPACE_SHARE, MemoryBudget, Plan, choose_plan
from stylize.inference.strips import StripPainter
from stylize.inference.strokes import Band, Enlargement, shrunk_size, small_rows
from stylize.inference.stylizer import Stylizer, finished
from stylize.pictures.picture import Picture
from stylize.pictures.raster import Metadata, Raster, raster_of
from stylize.system.compute import Compute
from stylize.system.devices import CPU
from stylize.system.levels import levels_to_device, levels_to_host
from stylize.system.row_store import RowStore

logger = logging.getLogger("stylize")

# Of the memory, for the photograph and the painted picture as they stand in files; larger ones go on the disk.
SHARE_OF_RASTERS = 0.25
ENLARGED_BYTES = 60  # a pixel of a picture that is painted small and then enlarged, as a whole
STRIP_PIXELS = 1 << 20  # of such a picture, enlarged in strips

Told = Callable[[float], None]


def fits_whole(stylizer: Stylizer, size: tuple[int, int], paint: PaintOptions, room: MemoryBudget) -> bool:
    """Whether a picture of this width and height can be painted as a whole.

    Raises:
        StylizeError: Its stroke scale is too large for it.
    """
    width, height = size
    small = shrunk_size(size, paint.stroke_scale)
    needed = stylizer.bytes_for(small)
    if paint.stroke_scale != 1:
        needed += ENLARGED_BYTES * width * height
    fits = needed <= room.device_bytes
    logger.debug(
        "%d×%d px as a whole would take about %.2f GiB%s of the %.2f that there are: %s", width, height, needed / GIB,
        f", {WORKSPACE_SHARE:.0%} for workspaces," if stylizer.compute.has_own_memory else "",
        room.device_bytes / GIB, "whole" if fits else "in strips",
    )  # fmt: skip
    return fits and _can_index(stylizer, size, small)


def _can_index(stylizer: Stylizer, size: tuple[int, int], small: tuple[int, int]) -> bool:
    """Whether the device can index all that is computed of a picture which is painted at the size `small`."""
    most = stylizer.compute.indexable_values
    can = stylizer.can_index(small) and (most is None or RGB * size[0] * size[1] <= most)
    if not can:
        logger.debug("%d×%d px as a whole have more values than %s can index: in strips", *size, stylizer.device)
    return can


def raster_place(raster_bytes: int, room: MemoryBudget) -> Path | None:
    """Where a photograph goes as it stands in its file: into memory (None), or a folder."""
    memory = room.device_bytes if room.device == CPU else room.host_bytes
    return None if 2 * raster_bytes <= SHARE_OF_RASTERS * memory else room.folder


@torch.inference_mode()
def paint_large(
    stylizer: Stylizer, photograph: Raster, small: Raster | None, paint: PaintOptions, room: MemoryBudget, told: Told
) -> Raster:
    """Paint a picture in strips; all its frames, if it has several.

    Args:
        stylizer: Paints.
        photograph: What to paint, limited in size already.
        small: The same at the size that the stroke scale asks for; None if that is its own.
        paint: How.
        room: What there is for it, the photograph aside.
        told: Is called with the shares of the work that were done.

    Returns:
        The painted picture, where the photograph is: in memory or on disk.

    Raises:
        StylizeError: The generator cannot paint in strips, the picture is too small for it, or neither memory nor disk
            suffices.
    """
    if stylizer.refiner is not None:
        (width, height), needed = photograph.size, stylizer.bytes_for(photograph.size)
        raise StylizeError(
            f"a picture of {width}×{height} px takes about {needed / GIB:.1f} GiB to be refined, of "
            f"{room.device_bytes / GIB:.1f}; --max-memory allows more, --max-size shrinks the picture"
        )
    rows = photograph.rows
    place = None if rows.in_memory else room.folder
    if rows.in_memory:
        room = _beside(2 * rows.row_bytes * rows.shape[0], room)
    painted = Raster(RowStore(rows.shape, rows.dtype, place, direct=False), photograph.frames, photograph.metadata)
    try:
        for frame in range(photograph.frames):
            of_frame = _Frame(
                photograph, painted, frame, paint, lambda share: told(share / photograph.frames), stylizer.compute
            )
            if small is None:
                _paint_strips(stylizer, of_frame, room)
            else:
                with _painted_small(stylizer, small, frame, room) as painted_small:
                    _enlarge(small, painted_small, frame, of_frame)
        painted.rows.finish()
    except BaseException:
        painted.close()
        raise
    return painted


def _beside(taken_bytes: int, room: MemoryBudget) -> MemoryBudget:
    """What is left of the processor's memory."""
    if room.device == CPU:
        return room._replace(device_bytes=room.device_bytes - taken_bytes)
    return room._replace(host_bytes=room.host_bytes - taken_bytes)


class _Frame:
    """A frame of a photograph and of the painted picture, by rows."""

    def __init__(
        self, photograph: Raster, painted: Raster, frame: int, paint: PaintOptions, told: Told, compute: Compute
    ) -> None:
        self.photograph = photograph.rows
        self.painted = painted.rows
        self.width, self.height = photograph.size
        self.above = frame * self.height
        self.painted_above = self.above if painted.frames == photograph.frames else 0
        self.white, self.painted_white = (2**raster.bits - 1 for raster in (photograph, painted))
        self.has_alpha = painted.has_alpha
        self.paint = paint
        self.told = told
        self.compute = compute
        self.device = compute.device

    def rgb(self, first: int, last: int) -> Tensor:
        """The photograph's rows from `first` to before `last`, on the device: `(1, 3, rows, W)` in [0, 1]."""
        rows = self.photograph.read(self.above + first, self.above + last)[..., :RGB]
        return levels_to_device(rows, self.device).float().div_(self.white)[None].permute(0, 3, 1, 2)

    def mirrored_rgb(self, first: int, last: int, margin: int) -> Tensor:
        """The same of the photograph with so many px of itself mirrored around it, rows counted from its first."""
        if not margin:
            return self.rgb(first, last)
        places = mirrored_places(first - margin, last - margin, self.height)
        low = int(places.min())
        rows = self.rgb(low, int(places.max()) + 1).index_select(2, (places - low).to(self.device))
        return rows.index_select(3, mirrored_places(-margin, self.width + margin, self.width, self.device))

    def write(self, first: int, painted: Tensor) -> None:
        """Finish and write painted rows `(1, 3, rows, W)`; the transparency is the photograph's."""
        last = first + painted.shape[2]
        photograph = self.rgb(first, last) if self.paint.needs_photograph else painted
        with self.compute.exact_context():
            values = finished(photograph, painted.float(), self.paint).mul_(self.painted_white).round_()
        rgb = levels_to_host(values[0].permute(1, 2, 0), self.painted.dtype)
        if self.has_alpha:
            alpha = self.photograph.read(self.above + first, self.above + last)[..., RGB:]
            rgb = torch.cat([rgb, alpha], dim=2)
        self.painted.write(self.painted_above + first, rgb)


def _paint_strips(stylizer: Stylizer, frame: _Frame, room: MemoryBudget) -> None:
    size = frame.width, frame.height
    stages = _stages(stylizer, size)
    plan = choose_plan(stages, room, stylizer.dtype)
    _tell(plan, size)
    work = 1 + plan.effort  # the sweeps before the last one, about, and that

    margin = stylizer.generator.margin
    height = frame.height + 2 * margin

    def rgb(first: int, last: int) -> Tensor:
        return stylizer.compute.network_input(frame.mirrored_rgb(first, last, margin))

    with (
        stylizer.context(),
        StripPainter(stages, plan, rgb, height, stylizer.device, stylizer.dtype) as painter,
    ):
        for share in painter.measure():
            frame.told(share * plan.effort / work)
        for first, strip in painter.strips():
            above = max(0, margin - first)  # rows of the strip that are margin
            below = max(0, first + strip.shape[2] - margin - frame.height)
            if above + below < strip.shape[2]:
                inside = strip[:, :, above : strip.shape[2] - below, margin : margin + frame.width]
                frame.write(first + above - margin, inside)
            frame.told(strip.shape[2] / height / work)


def _stages(stylizer: Stylizer, size: tuple[int, int]) -> list[Stage]:
    width, height = size
    check_size(height, width)
    stages = stylizer.torch_painter.stages(size)
    if stages is None and not stylizer.can_index(size):
        raise StylizeError(
            f"a picture of {width}×{height} px has maps of more values than the {stylizer.compute.indexable_values} "
            f"that {stylizer.device} can index, and this generator cannot paint in strips; --max-size shrinks the "
            "picture"
        )
    if stages is None:
        needed = stylizer.bytes_for(size) / GIB
        raise StylizeError(
            f"a picture of {width}×{height} px takes about {needed:.1f} GiB of memory, for this generator cannot paint "
            "in strips; --max-memory allows more, --max-size shrinks the picture"
        )
    return stages


def _tell(plan: Plan, size: tuple[int, int]) -> None:
    where = f"on disk in {plan.place}" if isinstance(plan.place, Path) else f"in the memory of {plan.place}"
    logger.debug(
        "%d×%d px in strips of %d px: %.2f GiB are kept %s, a strip takes %.2f GiB; %.2f times the arithmetic", *size,
        plan.strip_px, plan.kept_bytes / GIB, where, plan.working_bytes / GIB, plan.effort,
    )  # fmt: skip


def _painted_small(stylizer: Stylizer, small: Raster, frame: int, room: MemoryBudget) -> Raster:
    """A frame at the size of the strokes, painted, as a whole or in strips: in 16 bits, without transparency."""
    width, height = small.size
    if fits_whole(stylizer, small.size, PaintOptions(), room):
        return raster_of([Picture(stylizer(small.picture(frame, stylizer.device)).rgb)], Metadata(bits=16))
    place = None if small.rows.in_memory else room.folder
    painted = Raster(RowStore((height, width, 3), torch.uint16, place, direct=False), 1, Metadata(bits=16))
    try:
        _paint_strips(
            stylizer, _Frame(small, painted, frame, PaintOptions(), lambda share: None, stylizer.compute), room
        )
    except BaseException:
        painted.close()
        raise
    return painted


def _enlarge(small: Raster, painted_small: Raster, index: int, frame: _Frame) -> None:
    """Enlarge a frame, number `index` of the small photograph, in bands."""
    height = small.size[1]
    of_small = _Frame(small, painted_small, index, PaintOptions(), lambda share: None, frame.compute)
    of_painted = _Frame(painted_small, painted_small, 0, PaintOptions(), lambda share: None, frame.compute)
    step = max(1, STRIP_PIXELS // frame.width)
    for first in range(0, frame.height, step):
        last = min(frame.height, first + step)
        low, high = small_rows(first, last, frame.height, height)
        enlargement = Enlargement(
            of_small.rgb(low, high)[0],
            of_painted.rgb(low, high)[0],
            (frame.width, frame.height),
            Band(low, height),
        )
        frame.write(first, enlargement.rows(frame.rgb(first, last)[0], first, last)[None])
        frame.told((last - first) / frame.height)
