"""libvips and Pillow: their setup, and what reading and writing share."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # what libvips warns of is refused or mended here
pyvips.cache_set_max(0)  # no picture is decoded twice, and the cache would keep files open
pyvips.concurrency_set(min(2, pyvips.concurrency_get()))  # every thread holds strips of its own

ATTEMPT_S, MOST_LOST_THREADS = 0.02, 1000
VERSION = ".".join(str(pyvips.version(i)) for i in range(3))
INCH_MM = 25.4
DTYPES = {
    "uchar": np.uint8, "ushort": np.uint16, "uint": np.uint32, "char": np.int8, "short": np.int16, "int": np.int32,
    "float": np.float32, "double": np.float64,
}  # fmt: skip
Vips: TypeAlias = Any
Options: TypeAlias = dict[str, Any]


_process = os.getpid()


def replace_lost_threads() -> None:
    """Make libvips usable in a process that was forked from one in which it has computed before.

    libvips keeps its idle threads in a list. A fork copies the list, not the threads, and whoever is given one of them
    waits forever: a decoding process would never answer. So computations that nobody needs take them all, each in a
    thread that is given up, until one ends: then libvips has run out of lost threads, and begun new ones.
    """
    global _process
    if _process == os.getpid():
        return
    for _ in range(MOST_LOST_THREADS):
        attempt = threading.Thread(target=lambda: pyvips.Image.black(8, 8).avg(), daemon=True)
        attempt.start()
        attempt.join(ATTEMPT_S)
        if not attempt.is_alive():
            break
    _process = os.getpid()


def vips_reason(error: pyvips.Error) -> str:
    """Return the first line of libvips' message: the cause of the lines that follow."""
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
    return lines[0] if lines else str(error.message)


def field(image: Vips, name: str, default: Any) -> Any:
    """Return a metadata field of an image, or the default if the image has none of this name."""
    return image.get(name) if image.get_typeof(name) else default


def color_bands(image: Vips) -> int:
    """Return the number of channels without the alpha."""
    return int(image.bands - image.hasalpha())


def on_background(image: Vips, background: tuple[int, int, int]) -> Vips:
    """Lay an RGBA image of 8 or 16 bits on a colour, 0 to 255 each; others stay as they are."""
    if not image.hasalpha():
        return image
    bits = 8 if image.format == "uchar" else 16
    white = 2**bits - 1
    alpha = image.extract_band(image.bands - 1) / white
    laid = image.extract_band(0, n=image.bands - 1) * alpha + (1 - alpha) * [
        level * white / 255 for level in background
    ]
    return laid.rint().cast(image.format).copy(interpretation="srgb" if bits == 8 else "rgb16")


def with_bits(image: Vips, bits: int) -> Vips:
    """Round a 16-bit image to the nearest of the 8-bit levels if 8 bits are asked for; others stay as they are."""
    if image.format == "ushort" and bits == 8:
        levels = (image / 257).rint().cast("uchar")
        if image.interpretation == "cmyk":
            return levels.copy(interpretation="cmyk")
        return levels.copy(interpretation="srgb" if color_bands(image) >= 3 else "b-w")
    return image


def strips(image: Vips, rows: int) -> Iterator[NDArray[Any]]:
    """Compute an image and yield it in strips `(rows, W, C)`, from top to bottom.

    The calling thread computes: decoding is mostly sequential, and what libvips' own threads share costs more than it
    saves, for 12 megapixels as a whole 57 ms of processor time instead of 40 ms, in 42 ms.
    """
    region = pyvips.Region.new(image)
    for first in range(0, image.height, rows):
        count = min(rows, image.height - first)
        content = region.fetch(0, first, image.width, count)
        yield np.frombuffer(content, DTYPES[image.format]).reshape(count, image.width, image.bands)


_pillow_lock = threading.RLock()


@contextmanager
def quiet_pillow(*, unlimited: bool) -> Iterator[None]:
    """Turn Pillow's warnings off, and its limit of pixels if asked to.

    Both belong to the whole process, so one thread at a time is inside.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if unlimited else usual
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


class Callbacks:
    """Functions that libvips calls, maybe from threads of its own; an error in one is raised when libvips returns.

    Attributes:
        error: The error, or None.
        owner: What must live as long as these functions may be called.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.owner: object = None

    def guarded(self, call: Callable[..., Any], failed: Any) -> Callable[..., Any]:
        """Wrap a function: after an error it returns `failed`, which libvips takes for one."""

        def guarded(*arguments: Any) -> Any:
            try:
                return failed if self.error is not None else call(*arguments)
            except BaseException as error:  # a Ctrl-C may arrive here, too
                self.error = error
                return failed

        return guarded

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise the error of a callback at the end of the block, in which libvips calls them."""
        try:
            yield
        except pyvips.Error:
            if self.error is None:
                raise
        if self.error is not None:
            raise self.error


def save(
    image: Vips, saver: str, options: Options, write: Callable[[Any], object], file: BinaryIO | None = None
) -> None:
    """Compute and encode an image.

    Args:
        image: The image.
        saver: Name of the libvips operation that encodes it.
        options: Of the saver.
        write: Called with each part of the encoded file.
        file: The file, for savers that read back and seek.
    """
    callbacks, target = Callbacks(), pyvips.TargetCustom()

    def take(content: Any) -> int:
        write(content)
        return len(content)

    target.on_write(callbacks.guarded(take, -1))
    if file is not None:
        target.on_read(callbacks.guarded(file.read, None))
        target.on_seek(callbacks.guarded(file.seek, -1))
    with callbacks.raised():
        getattr(image, saver)(target, **options)
