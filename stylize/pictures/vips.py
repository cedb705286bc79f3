"""libvips and Pillow: how they are set up, and what reading and writing share."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import pyvips
from PIL import Image

from stylize.pictures.images import transform_to_srgb

logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # libvips warns of what is refused or mended here
pyvips.cache_set_max(0)  # no picture is decoded twice, and the cache would hold its files open
pyvips.concurrency_set(min(2, pyvips.concurrency_get()))  # every thread holds strips of its own

STRIP_BYTES = 2**20  # libvips keeps several at a time
INTENT = "perceptual"  # as `images` converts for training
INCH_MM = 25.4
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
Vips: TypeAlias = Any
Options: TypeAlias = dict[str, Any]


def vips_reason(error: pyvips.Error) -> str:
    """The first line of what libvips tells, which is the cause of the others."""
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
    return lines[0] if lines else str(error.message)


def value(image: Vips, field: str, otherwise: Any) -> Any:
    """What stands in a field of an image; `otherwise` where there is none."""
    return image.get(field) if image.get_typeof(field) else otherwise


def changes(profile: bytes, mode: str) -> bool:
    """Whether a colour profile, for images of this mode, is another than sRGB."""
    return transform_to_srgb(profile, mode) is not None


_pillow_lock = threading.Lock()


@contextmanager
def quiet_pillow(max_pixels: int | None) -> Iterator[None]:
    """Without Pillow's warnings and its limit of pixels, which are the whole process's, so one thread at a time."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = usual if max_pixels is None else None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


class Calls:
    """Functions that libvips calls back, maybe from its own threads; their errors wait until it returns."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def guarded(self, call: Callable[..., Any], failed: Any) -> Callable[..., Any]:
        def guarded(*arguments: Any) -> Any:
            try:
                return failed if self.error is not None else call(*arguments)
            except BaseException as error:  # a ctrl-c, too, may come in here
                self.error = error
                return failed

        return guarded

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within the block libvips calls."""
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
    """Compute an image and hand what a saver makes of it to `write`; where that needs it, with a file to seek in."""
    calls, target = Calls(), pyvips.TargetCustom()

    def take(content: Any) -> int:
        write(content)
        return len(content)

    target.on_write(calls.guarded(take, -1))
    if file is not None:
        target.on_read(calls.guarded(file.read, None))
        target.on_seek(calls.guarded(file.seek, -1))
    with calls.raised():
        getattr(image, saver)(target, **options)
