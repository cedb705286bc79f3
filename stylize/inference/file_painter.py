"""Reads, paints and writes picture files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from stylize.errors import StylizeError
from stylize.inference.large import fits_whole, paint_large, raster_place
from stylize.inference.options import PaintOptions
from stylize.inference.pipeline import WorkItem
from stylize.inference.plans import MemoryBudget
from stylize.inference.strokes import advised_scale, shrunk_size
from stylize.inference.stylizer import Stylizer
from stylize.pictures.formats import format_of
from stylize.pictures.losses import Teller, laid_on_white
from stylize.pictures.picture import limited_size
from stylize.pictures.raster import Raster, raster_of
from stylize.pictures.writing import WHITE, write_raster
from stylize.system.devices import is_out_of_memory
from stylize.system.places import check_replaceable, make_parent
from stylize.system.row_store import RowStore

logger = logging.getLogger("stylize")

OnProgress = Callable[[float], None]


@dataclass(frozen=True)
class FileOptions:
    """How to read, paint and write files.

    Attributes:
        budget: Memory for a large picture.
        paint: How to paint.
        max_pixels: Accept photographs of up to this many pixels; None: the limit of the reader.
        quality: Encoder quality for JPEG, WebP and AVIF, 1 to 100.
        overwrite: Whether to replace existing files.
        crop_px: Side of the crops that the model was trained on; None: unknown, and no stroke scale is advised.
        style: Name of the style, for the mark of painted files; None: no mark.
        background: Colour in sRGB, 0 to 255 each, on which transparency is laid; None: it stays, or is laid on white
            where the format of the output has none.
    """

    budget: MemoryBudget
    paint: PaintOptions = field(default_factory=PaintOptions)
    max_pixels: int | None = None
    quality: int = 95
    overwrite: bool = False
    crop_px: int | None = None
    style: str | None = None
    background: tuple[int, int, int] | None = None


class FilePainter:
    """Reads, paints and writes picture files: a `Worker` of the pipeline.

    Args:
        stylizer: Paints.
        options: How to read, paint and write.
        on_progress: Called with each share of a picture that was painted in strips; the shares add up to 1.
    """

    def __init__(self, stylizer: Stylizer, options: FileOptions, on_progress: OnProgress) -> None:
        self.stylizer = stylizer
        self.options = options
        self.on_progress = on_progress
        self._advisor = StrokeScaleAdvisor(options.crop_px, options.paint.stroke_scale)
        self.teller = Teller()
        self._targets: dict[Path, Lock] = {}

    def pixels(self, item: WorkItem) -> int:
        """Pixels of the photograph, by the header of its file."""
        try:
            header = item.open(self.options.max_pixels).header
        except StylizeError:  # `read` meets it again and reports it
            return 0
        return header.size[0] * header.size[1] * header.frames

    def read(self, item: WorkItem) -> WorkItem:
        """Read the photograph at the size that is painted, after checking that its target can be written."""
        try:
            self._read_(item)
        except StylizeError as error:
            item.close()
            item.error = error
        item.close_file()
        return item

    def _read_(self, item: WorkItem) -> None:
        paint, budget = self.options.paint, self.options.budget
        check_replaceable(item.target, self.options.overwrite)
        photograph = item.open(self.options.max_pixels)
        format_of(item.target)
        make_parent(item.target)
        size = limited_size(photograph.header.size, paint.max_size_px)
        item.in_strips = not self._fits_whole(item.source, size)
        folder = raster_place(photograph.header.bytes_of(size), budget)
        background = self._background(item)
        if photograph.header.has_alpha and background is not None and self.options.background is None:
            self.teller(item.target, laid_on_white(format_of(item.target)))
        item.raster = photograph.read(max_size_px=paint.max_size_px, folder=folder, background=background)
        if not item.in_strips:
            item.raster = item.raster.ready_for(self.stylizer.device)
        elif paint.stroke_scale != 1:
            item.small = self._read_small(item, size)
        self._advisor.consider(item.source, size)

    def _background(self, item: WorkItem) -> tuple[int, int, int] | None:
        """Return the colour on which the photograph's transparency is laid before painting, or None if it stays."""
        chosen = self.options.background
        return WHITE if chosen is None and format_of(item.target).alpha == "none" else chosen

    def _read_small(self, item: WorkItem, size: tuple[int, int]) -> Raster:
        """Read the photograph, which is painted at this size, at the one that its strokes ask for."""
        photograph = item.open(self.options.max_pixels)
        folder = raster_place(photograph.header.bytes_of(size), self.options.budget)
        small_px = max(shrunk_size(size, self.options.paint.stroke_scale))
        return photograph.read(max_size_px=small_px, folder=folder, background=self._background(item))

    def _fits_whole(self, source: Path, size: tuple[int, int]) -> bool:
        try:
            return fits_whole(self.stylizer, size, self.options.paint, self.options.budget)
        except StylizeError as error:
            raise StylizeError(f"{source}: {error}") from error

    def paint(self, batch: list[WorkItem]) -> None:
        """Replace the photographs of a batch by the stylized pictures; failed items are skipped."""
        items = [item for item in batch if item.raster is not None]
        # Not within an `except`, which would keep what the failed attempt holds on the device.
        if len(items) > 1 and self._paint_together_(items):
            return
        for item in items:
            try:
                painted = self._painted(item)
            except StylizeError as error:
                item.close()
                item.error = StylizeError(f"{item.source}: {error}")
            else:
                item.close()
                item.raster = painted

    def _paint_together_(self, items: list[WorkItem]) -> bool:
        """Paint a batch; return whether that succeeded."""
        try:
            photographs = [_photograph(item).picture(device=self.stylizer.device) for item in items]
            pictures = self.stylizer.paint_many(photographs, self.options.paint)
        except (StylizeError, RuntimeError) as error:  # too small, or the device has too little memory
            reason = str(error).strip().partition("\n")[0]
            logger.warning("%d pictures together failed (%s); painting them one by one", len(items), reason)
            return False
        for item, picture in zip(items, pictures, strict=True):
            painted = raster_of([picture], _photograph(item).metadata)
            item.close()
            item.raster = painted
        return True

    def _painted(self, item: WorkItem) -> Raster:
        photograph = _photograph(item)
        painted = None if item.in_strips else self._painted_whole(photograph)
        if painted is None:
            paint, budget = self.options.paint, self.options.budget
            if paint.stroke_scale != 1 and item.small is None:
                item.small = self._read_small(item, photograph.size)
                item.close_file()
            painted = paint_large(self.stylizer, photograph, item.small, paint, budget, self.on_progress)
        return painted

    def _painted_whole(self, photograph: Raster) -> Raster | None:
        """Every frame, painted as a whole; None where the device has less memory than was estimated."""
        try:
            if photograph.frames == 1:
                return self._painted_frame(photograph, 0)
            painted = RowStore(photograph.rows.shape, photograph.rows.dtype)
            for frame in range(photograph.frames):
                with self._painted_frame(photograph, frame) as one:
                    painted.write(frame * one.rows.shape[0], one.rows.read(0, one.rows.shape[0]))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("the memory of %s does not suffice for the whole picture", self.stylizer.device)
            return None
        return Raster(painted, photograph.frames, photograph.metadata)

    def _painted_frame(self, photograph: Raster, frame: int) -> Raster:
        picture = self.stylizer(photograph.picture(frame, self.stylizer.device), self.options.paint)
        return raster_of([picture], photograph.metadata)

    def write(self, item: WorkItem) -> None:
        """Write the stylized picture and free it."""
        if item.raster is None:
            return
        try:
            # The same photograph may have been given twice, and another thread may be writing its picture.
            with self._targets.setdefault(item.target, Lock()):
                check_replaceable(item.target, self.options.overwrite)
                options = self.options
                write_raster(item.target, item.raster, quality=options.quality, style=options.style, tell=self.teller)
        except StylizeError as error:
            item.error = error
        finally:
            item.close()


class StrokeScaleAdvisor:
    """Logs once that a picture is far larger than what its model was trained on.

    Args:
        crop_px: Side of the training crops; None: unknown, and nothing is advised.
        scale: The stroke scale that was asked for.
    """

    def __init__(self, crop_px: int | None, scale: float) -> None:
        self.crop_px = crop_px
        self.scale = scale
        self._lock = Lock()

    def consider(self, source: Path, size: tuple[int, int]) -> None:
        """Advise a larger stroke scale if this picture, of this width and height in px, is the first to need one."""
        with self._lock:  # files are read in several threads
            if self.crop_px is None:
                return
            advised = advised_scale(size, self.crop_px, self.scale)
            if advised is None:
                return
            side_px = max(size) / self.scale
            logger.info(
                "%s: %.0f px are %.0f times the %d px that the model was trained on; --stroke-scale %d paints larger "
                "strokes", source, side_px, side_px / self.crop_px, self.crop_px, advised,
            )  # fmt: skip
            self.crop_px = None


def _photograph(item: WorkItem) -> Raster:
    assert item.raster is not None
    return item.raster
