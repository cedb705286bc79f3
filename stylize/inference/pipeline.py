"""Files are read ahead of the painting and written behind it; pictures of one size are painted together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from stylize.errors import StylizeError
from stylize.pictures.raster import Raster
from stylize.pictures.reading import OpenPicture, open_picture
from stylize.system.compute import Compute
from stylize.system.threads import single_core_threads

T = TypeVar("T")

SMALL_PIXELS = 1 << 22  # a picture with no more may be in memory beside others
PICTURES_A_THREAD = 2  # so many small ones wait for their turn


@dataclass
class WorkItem:
    """A picture on its way from one file to another.

    Attributes:
        source: File of the photograph.
        target: File of the stylized picture.
        raster: The photograph, later the stylized picture; None before it is read and where it failed.
        opened: File of the photograph with its header; None before it is opened and after it is read.
        in_strips: Whether it is painted in strips.
        small: For a picture in strips, the photograph at the size that the stroke scale asks for; None if that is its
            own size.
        error: Why it failed, or None.
    """

    source: Path
    target: Path
    raster: Raster | None = None
    opened: OpenPicture | None = None
    in_strips: bool = False
    small: Raster | None = None
    error: StylizeError | None = None
    _file: ExitStack = field(default_factory=ExitStack)

    def open(self, max_pixels: int | None = None) -> OpenPicture:
        """Open the photograph's file, unless it is open, and read its header.

        Raises:
            StylizeError: The file is missing, or no image.
        """
        if self.opened is None:
            self.opened = self._file.enter_context(open_picture(self.source, max_pixels=max_pixels))
        return self.opened

    def close_file(self) -> None:
        """Close the photograph's file."""
        self._file.close()
        self.opened = None

    @property
    def raster_pixels(self) -> int:
        """Pixels of the raster, all frames together; 0 without one."""
        return 0 if self.raster is None else self.raster.rows.shape[0] * self.raster.rows.shape[1]

    @property
    def batch_size(self) -> tuple[int, int] | None:
        """Width and height that a batch with this picture must have; None if it is painted by itself."""
        if self.raster is None or self.in_strips or self.raster.frames > 1:
            return None
        return self.raster.size

    def close(self) -> None:
        """Free memory and files."""
        self.close_file()
        for raster in (self.raster, self.small):
            if raster is not None:
                raster.close()
        self.raster = self.small = None


class Worker(Protocol):
    """What is done with work items; a failure is kept in the item.

    `pixels`, `read` and `write` may run in threads beside `paint`, several at a time.
    """

    def pixels(self, item: WorkItem) -> int:
        """Pixels of the photograph, all frames together; 0 where it cannot be read."""

    def read(self, item: WorkItem) -> WorkItem:
        """Read the photograph; return the item."""

    def paint(self, batch: list[WorkItem]) -> None:
        """Replace the photographs, all of one size, by the stylized pictures."""

    def write(self, item: WorkItem) -> None:
        """Write the stylized picture and free it."""


def process(items: Iterable[WorkItem], worker: Worker, compute: Compute) -> Iterator[WorkItem]:
    """Read, paint and write pictures in their order; one that fails does not stop the others.

    Where painting leaves the cores idle, threads read the next pictures and write the last ones: of both as many pixels
    are in memory as two small pictures a thread have, or one picture with more. Elsewhere a picture is painted while
    the one before it is written and the next one is read, if these are small: painting has the cores but waits for no
    file. Of pictures that are not small only one is in memory.

    Returns:
        The items as they are written.
    """
    if compute.leaves_cores_idle:
        threads = compute.file_threads
        batches = grouped(read_by_threads(items, worker.read, worker.pixels, threads), compute)
        painted = (item for batch in _painted(batches, worker) for item in batch)
        yield from written_by_threads(painted, worker.write, threads)
        return
    batches = grouped(ahead_if_small(items, worker.read, lambda item: worker.pixels(item) <= SMALL_PIXELS), compute)
    painted = (item for batch in _painted(batches, worker) for item in batch)
    yield from behind_if_small(painted, worker.write)


def grouped(items: Iterable[WorkItem], compute: Compute) -> Iterator[list[WorkItem]]:
    """Batches of consecutive items of one size, as large as the device takes; failed items stay in their place."""
    batch: list[WorkItem] = []
    size: tuple[int, int] | None = None
    places = 0
    for item in items:
        if item.raster is not None and (item.batch_size is None or item.batch_size != size):
            if batch:
                yield batch
            batch, size = [], item.batch_size
            places = 1 if size is None else compute.pictures_together(size)
        batch.append(item)
        places -= item.raster is not None
        if places <= 0:
            yield batch
            batch, size = [], None
    if batch:
        yield batch


def read_by_threads(
    items: Iterable[T], read: Callable[[T], T], pixels: Callable[[T], int], threads: int
) -> Iterator[T]:
    """What `read` makes of each item, in their order, read by threads while others are in use.

    >>> list(read_by_threads("abc", str.upper, lambda item: 10, threads=2))
    ['A', 'B', 'C']
    """
    coming = iter(items)
    sized: deque[tuple[T, Future[int]]] = deque()
    reading: deque[tuple[int, Future[T]]] = deque()

    def go_on() -> None:
        for item in islice(coming, PICTURES_A_THREAD * threads - len(sized) - len(reading)):
            sized.append((item, executor.submit(pixels, item)))
        while sized and (len(reading) < threads or sized[0][1].done()):
            item, size = sized[0]
            if reading and size.result() + sum(taken for taken, _ in reading) > _most_pixels(threads):
                break
            sized.popleft()
            reading.append((size.result(), executor.submit(read, item)))

    with single_core_threads(threads) as executor:
        try:
            go_on()
            while reading:
                item = reading[0][1].result()
                reading.popleft()
                go_on()
                yield item
        finally:
            executor.shutdown(cancel_futures=True)


def written_by_threads(
    items: Iterable[WorkItem], write: Callable[[WorkItem], None], threads: int
) -> Iterator[WorkItem]:
    """The items in their order, written by threads while the next ones are made."""
    waiting: deque[tuple[WorkItem, int, Future[None]]] = deque()

    def first() -> WorkItem:
        item, _, writing = waiting.popleft()
        writing.result()
        return item

    with single_core_threads(threads) as executor:
        for item in items:
            pixels = item.raster_pixels
            waiting.append((item, pixels, executor.submit(write, item)))
            while waiting and (
                waiting[0][2].done()
                or len(waiting) > PICTURES_A_THREAD * threads
                or (len(waiting) > 1 and sum(taken for _, taken, _ in waiting) > _most_pixels(threads))
            ):
                yield first()
        while waiting:
            yield first()


def ahead_if_small(items: Iterable[T], read: Callable[[T], T], is_small: Callable[[T], bool]) -> Iterator[T]:
    """What `read` makes of each item; while one is in use, a thread reads the next if it is small.

    >>> list(ahead_if_small("abc", str.upper, lambda item: item != "b"))
    ['A', 'B', 'C']
    """

    def read_if_small(item: T) -> list[T]:
        return [read(item)] if is_small(item) else []

    with single_core_threads(1) as thread:  # the network paints on the other cores
        coming: deque[tuple[T, Future[list[T]]]] = deque()
        for item in items:
            coming.append((item, thread.submit(read_if_small, item)))
            if len(coming) > 1:
                first, reading = coming.popleft()
                yield from reading.result() or [read(first)]
        for last, reading in coming:
            yield from reading.result() or [read(last)]


def behind_if_small(items: Iterable[WorkItem], write: Callable[[WorkItem], None]) -> Iterator[WorkItem]:
    """The items, written in their order: a small one by a thread while the next is made."""

    def written() -> Iterator[WorkItem]:
        for item, writing in waiting:
            writing.result()
            yield item
        waiting.clear()

    waiting: list[tuple[WorkItem, Future[None]]] = []
    with single_core_threads(1) as thread:  # the network paints on the other cores
        for item in items:
            yield from written()
            if item.raster_pixels <= SMALL_PIXELS:
                waiting.append((item, thread.submit(write, item)))
            else:
                write(item)
                yield item
        yield from written()


def _most_pixels(threads: int) -> int:
    """Pixels of the pictures that may wait for so many threads."""
    return PICTURES_A_THREAD * SMALL_PIXELS * threads


def _painted(batches: Iterable[list[WorkItem]], worker: Worker) -> Iterator[list[WorkItem]]:
    for batch in batches:
        worker.paint(batch)
        yield batch
