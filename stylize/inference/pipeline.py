"""Many pictures: those of one size together, and files beside the painting."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from stylize.errors import StylizeError
from stylize.inference.large import Told, paint_large
from stylize.inference.plans import Room
from stylize.inference.stylizer import Paint, Stylizer, pictures_together
from stylize.pictures.raster import Raster, raster_of
from stylize.system.row_store import RowStore
from stylize.system.threads import single_core_threads

logger = logging.getLogger("stylize")

T = TypeVar("T")
J = TypeVar("J")

SMALL_PIXELS = 1 << 22


@dataclass
class Piece:
    """A picture on its way from one file to another.

    Attributes:
        source: The photograph's file.
        target: Where the painted picture goes.
        raster: The photograph, later the painted picture; None where it failed.
        large: Whether it is painted in strips.
        small: Of a large one the photograph at the size that the stroke scale asks for; None if that is its own.
        error: Why it failed, or None.
    """

    source: Path
    target: Path
    raster: Raster | None = None
    large: bool = False
    small: Raster | None = None
    error: StylizeError | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Of what can be painted together with others of this width and height; None: it is painted by itself."""
        alone = self.raster is None or self.large or self.raster.frames > 1
        return None if alone or self.raster is None else self.raster.size

    def close(self) -> None:
        """Give memory and files back."""
        for raster in (self.raster, self.small):
            if raster is not None:
                raster.close()
        self.raster = self.small = None


class Painting(NamedTuple):
    """What all pictures have in common.

    Attributes:
        stylizer: Paints.
        paint: How; the photographs are limited in size already.
        room: What there is for a large picture.
        told: Is called with the shares of a large picture's work that were done.
    """

    stylizer: Stylizer
    paint: Paint
    room: Room
    told: Told


def painted_files(
    jobs: Iterable[J],
    read: Callable[[J], Piece],
    write: Callable[[Piece], None],
    is_small: Callable[[J], bool],
    painting: Painting,
) -> Iterator[Piece]:
    """Read, paint and write pictures, in their order, beside each other; what fails, fails by itself.

    On CUDA the next batch is read and painted in threads while this one is written: up to three are in memory. Else a
    picture is painted while the one before it is written and the next one is read, if these are small: painting has
    the cores, but waits for no file. Of pictures that are not small only one is in memory.

    Args:
        jobs: What is to be painted.
        read: Makes a piece of a job, with the photograph, limited in size already, or with the error.
        write: Writes a painted piece, or leaves an error in it.
        is_small: Whether the picture of a job may be in memory beside others.
        painting: Paints.

    Returns:
        The pieces, as they are written.
    """
    device = painting.stylizer.device
    if works_beside(device):
        for batch in ahead(_painted(ahead(grouped(map(read, jobs), device)), painting)):
            for piece in batch:
                write(piece)
                yield piece
        return
    pieces = ahead_if_small(jobs, read, is_small)
    batches = _painted(grouped(pieces, device), painting)
    yield from behind_if_small((piece for batch in batches for piece in batch), write)


def works_beside(device: torch.device) -> bool:
    """Whether painting leaves the processor's cores idle, for reading and writing."""
    return device.type == "cuda"


def grouped(pieces: Iterable[Piece], device: torch.device) -> Iterator[list[Piece]]:
    """Consecutive pieces of one size, as many as are painted together; those that failed go along in their place."""
    batch: list[Piece] = []
    size: tuple[int, int] | None = None
    room = 0
    for piece in pieces:
        if piece.raster is not None and (piece.size is None or piece.size != size):
            if batch:
                yield batch
            batch, size = [], piece.size
            room = 1 if size is None else pictures_together(device, size)
        batch.append(piece)
        room -= piece.raster is not None
        if room <= 0:
            yield batch
            batch, size = [], None
    if batch:
        yield batch


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; while one is in use, a thread makes the next.

    >>> list(ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1) as thread:
        end = object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # mypy does not narrow by `is not end`


def ahead_if_small(jobs: Iterable[J], read: Callable[[J], T], is_small: Callable[[J], bool]) -> Iterator[T]:
    """What is read of each job; while one is in use, a thread reads the next if that is small.

    >>> list(ahead_if_small("abc", str.upper, lambda job: job != "b"))
    ['A', 'B', 'C']
    """

    def read_if_small(job: J) -> list[T]:
        return [read(job)] if is_small(job) else []

    with single_core_threads(1) as thread:  # while the network paints in the others
        coming: deque[tuple[J, Future[list[T]]]] = deque()
        for job in jobs:
            coming.append((job, thread.submit(read_if_small, job)))
            if len(coming) > 1:
                first, reading = coming.popleft()
                yield from reading.result() or [read(first)]
        for last, reading in coming:
            yield from reading.result() or [read(last)]


def behind_if_small(pieces: Iterable[Piece], write: Callable[[Piece], None]) -> Iterator[Piece]:
    """The pieces, written in their order: a small one by a thread while the next is made."""

    def written() -> Iterator[Piece]:
        for piece, writing in waiting:
            writing.result()
            yield piece
        waiting.clear()

    waiting: list[tuple[Piece, Future[None]]] = []
    with single_core_threads(1) as thread:  # while the network paints in the others
        for piece in pieces:
            yield from written()
            if piece.raster is None or is_small_size(piece.raster.size, piece.raster.frames):
                waiting.append((piece, thread.submit(write, piece)))
            else:
                write(piece)
                yield piece
        yield from written()


def is_small_size(size: tuple[int, int], frames: int) -> bool:
    """Whether so many frames of this width and height may be in memory beside others."""
    return size[0] * size[1] * frames <= SMALL_PIXELS


def _painted(batches: Iterator[list[Piece]], painting: Painting) -> Iterator[list[Piece]]:
    for batch in batches:
        _paint_(batch, painting)
        yield batch


def _paint_(batch: list[Piece], painting: Painting) -> None:
    pieces = [piece for piece in batch if piece.raster is not None]
    # Not within an `except`, which would hold what the failed attempt has on the device.
    if len(pieces) > 1 and _painted_together_(pieces, painting):
        return
    for piece in pieces:
        try:
            painted = _painted_raster(piece, painting)
        except StylizeError as error:
            piece.close()
            piece.error = StylizeError(f"{piece.source}: {error}")
        else:
            piece.close()
            piece.raster = painted


def _painted_raster(piece: Piece, painting: Painting) -> Raster:
    photograph = _photograph(piece)
    painted = None if piece.large else _painted_whole(photograph, painting)
    if painted is None:
        stylizer, paint, room, told = painting
        painted = paint_large(stylizer, photograph, piece.small, paint, room, told)
    return painted


def _painted_whole(photograph: Raster, painting: Painting) -> Raster | None:
    """Every frame, painted as a whole; None where a device has less memory for it than was estimated."""
    painted = RowStore(photograph.rows.shape, photograph.rows.dtype)
    try:
        for frame in range(photograph.frames):
            picture = painting.stylizer(photograph.picture(frame), painting.paint)
            with raster_of([picture], photograph.metadata) as one:
                painted.write(frame * one.rows.shape[0], one.rows.read(0, one.rows.shape[0]))
    except torch.OutOfMemoryError:
        if painting.paint.stroke_scale != 1:
            raise
        logger.warning("the memory of %s does not suffice for the whole picture", painting.stylizer.device)
        return None
    return Raster(painted, photograph.frames, photograph.metadata)


def _painted_together_(pieces: list[Piece], painting: Painting) -> bool:
    try:
        photographs = [_photograph(piece).picture() for piece in pieces]
        pictures = painting.stylizer.paint_many(photographs, painting.paint)
    except (StylizeError, RuntimeError) as error:  # too small; the device has not the memory
        reason = str(error).strip().partition("\n")[0]
        logger.warning("%d pictures together failed (%s); painting them one by one", len(pieces), reason)
        return False
    for piece, picture in zip(pieces, pictures, strict=True):
        painted = raster_of([picture], _photograph(piece).metadata)
        piece.close()
        piece.raster = painted
    return True


def _photograph(piece: Piece) -> Raster:
    assert piece.raster is not None
    return piece.raster
