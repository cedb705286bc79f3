"""Many pictures: those of one size together, and files beside the painting."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from stylize.errors import StylizeError
from stylize.images import Picture
from stylize.inference.stylizer import Paint, Stylizer, pictures_together

logger = logging.getLogger("stylize")

T = TypeVar("T")


@dataclass
class Piece:
    """A picture on its way from one file to another.

    Attributes:
        source: The photograph's file.
        target: Where the painted picture goes.
        picture: The photograph, later the painted picture; None where it failed.
        error: Why it failed, or None.
    """

    source: Path
    target: Path
    picture: Picture | None = None
    error: StylizeError | None = None


def painted(pieces: Iterable[Piece], stylizer: Stylizer, paint: Paint) -> Iterator[list[Piece]]:
    """The pieces in their order, painted, by batches; what fails, fails by itself.

    Args:
        pieces: Photographs, as they are read.
        stylizer: Paints them.
        paint: How; the photographs are limited in size already.

    Returns:
        The batches. On CUDA the next one is read and painted in threads while this one is in use: up to three are
        in memory.
    """
    batches = grouped(pieces, stylizer.device)
    if not works_beside(stylizer.device):
        return _painting(batches, stylizer, paint)
    return ahead(_painting(ahead(batches), stylizer, paint))


def works_beside(device: torch.device) -> bool:
    """Whether painting leaves the processor's cores idle, for reading and writing."""
    return device.type == "cuda"


def grouped(pieces: Iterable[Piece], device: torch.device) -> Iterator[list[Piece]]:
    """Consecutive pieces of one size, as many as are painted together; those that failed go along in their place."""
    batch: list[Piece] = []
    size: tuple[int, int] | None = None
    room = 0
    for piece in pieces:
        if piece.picture is not None and piece.picture.size != size:
            if batch:
                yield batch
            batch, size = [], piece.picture.size
            room = pictures_together(device, size)
        batch.append(piece)
        room -= piece.picture is not None
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


def _painting(batches: Iterator[list[Piece]], stylizer: Stylizer, paint: Paint) -> Iterator[list[Piece]]:
    for batch in batches:
        _paint_(batch, stylizer, paint)
        yield batch


def _paint_(batch: list[Piece], stylizer: Stylizer, paint: Paint) -> None:
    pieces = [piece for piece in batch if piece.picture is not None]
    # Not within an `except`, which would hold what the failed attempt has on the device.
    if len(pieces) > 1 and _painted_together_(pieces, stylizer, paint):
        return
    for piece in pieces:
        try:
            piece.picture = stylizer(_photograph(piece), paint)
        except StylizeError as error:
            piece.picture, piece.error = None, StylizeError(f"{piece.source}: {error}")


def _painted_together_(pieces: list[Piece], stylizer: Stylizer, paint: Paint) -> bool:
    try:
        pictures = stylizer.paint_many([_photograph(piece) for piece in pieces], paint)
    except (StylizeError, RuntimeError) as error:  # too small; the device has not the memory
        reason = str(error).strip().partition("\n")[0]
        logger.warning("%d pictures together failed (%s); painting them one by one", len(pieces), reason)
        return False
    for piece, picture in zip(pieces, pictures, strict=True):
        piece.picture = picture
    return True


def _photograph(piece: Piece) -> Picture:
    assert piece.picture is not None
    return piece.picture
