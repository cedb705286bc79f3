"""What the samples of a file mean: which value is black and which is white.

The type of the samples and the file's tags decide, never the values that happen to be in the picture. Floating-point
samples are in [0, 1]; of unsigned integers the largest value is white, of signed ones too, and 0 is black. What lies
outside is clipped, and told.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from stylize.errors import StylizeError
from stylize.pictures.limits import limits
from stylize.pictures.vips import Vips, color_bands, quiet_pillow, strips

logger = logging.getLogger("stylize")

WHITES = {
    "uchar": 2**8 - 1,
    "ushort": 2**16 - 1,
    "uint": 2**32 - 1,
    "char": 2**7 - 1,
    "short": 2**15 - 1,
    "int": 2**31 - 1,
}
TURNED = ("uchar", "ushort", "uint")  # in which libvips makes white the larger value itself
FLOATS, SIGNED, WIDE = ("float", "double"), ("char", "short", "int"), ("uint", "int")
STANDARD_SPACES = ("lab", "labs", "xyz")  # their values have a meaning of their own
STATED_WHITES = frozenset([2**n - 1 for n in range(8, 33)] + [10**n for n in range(1, 7)])
HALF_INFINITY = 65536
TOLERANCE = 1 / 131070  # half a level of 16 bits: what rounding does is not told
MOST_CLIPPED = 0.9  # share of the samples from which on the range is a misunderstanding
BITS, PHOTOMETRIC, EXTRA_SAMPLES = 258, 262, 338
MIN_MAX = ((340, 341), (280, 281))  # SMinSampleValue and SMaxSampleValue, MinSampleValue and MaxSampleValue
WHITE_IS_ZERO, PREMULTIPLIED = 0, 1
UNREAD_PHOTOMETRICS = {
    9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a sensor's colour filters", 34892: "a sensor's linear values",
}  # fmt: skip
REMEDY = "scale them to the range with another program, or state the white in the tag SMaxSampleValue"


class Range(NamedTuple):
    """The samples that mean black and white.

    Attributes:
        black: The sample of a black pixel.
        white: The sample of a white one; smaller than black where white is zero.
    """

    black: float
    white: float

    def factor(self, levels: int = 65535) -> float:
        """Levels per unit of a sample."""
        return levels / (self.white - self.black)


class Tags(dict[int, tuple[Any, ...]]):
    """The tags of a TIFF directory by their numbers; a tag that is not there has no values."""

    def __missing__(self, tag: int) -> tuple[Any, ...]:
        return ()

    def first(self, tag: int) -> Any:
        """Return the tag's first value, or None."""
        return next(iter(self[tag]), None)


def tiff_tags(path: Path, place: int = 0) -> Tags:
    """Return what the directory at an offset of a TIFF file, by default the first, says of its samples.

    Raises:
        Exception: Whatever Pillow raises for a damaged directory.
    """
    with path.open("rb") as file, quiet_pillow(unlimited=False):
        head = file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(
            head + file.read(8) if head[2:4] in (b"+\0", b"\0+") else head
        )
        file.seek(place or directory.next)
        directory.load(file)
        wanted = (BITS, PHOTOMETRIC, EXTRA_SAMPLES, *(tag for pair in MIN_MAX for tag in pair))
        found = {tag: directory[tag] for tag in wanted if tag in directory}
    return Tags({tag: value if isinstance(value, tuple) else (value,) for tag, value in found.items()})


def check_samples(path: Path, number_format: str, tags: Tags) -> None:
    """Refuse samples that no decoder here gives the right meaning.

    Raises:
        StylizeError: The file's colours are of a kind that is not converted.
    """
    kind = UNREAD_PHOTOMETRICS.get(tags.first(PHOTOMETRIC))
    if kind is not None:
        raise StylizeError(
            f"{path}: got {kind}, must be gray, RGB, CMYK or CIE L*a*b*; develop it with another program"
        )
    if "complex" in number_format:
        raise StylizeError(f"{path}: got complex numbers, must be integers or floating point; write their magnitude")
    if number_format in (*WIDE, *SIGNED) and PREMULTIPLIED in tags[EXTRA_SAMPLES]:
        raise StylizeError(
            f"{path}: got premultiplied colours in signed or 32-bit integers, which are not read; write it with 16 "
            "bits, or with unassociated alpha"
        )


def range_of(number_format: str, tags: Tags) -> Range:
    """Return the range of samples of a libvips format.

    A stated range is followed if its white is one that a type can have, or a power of ten: other values are statistics
    of the picture, which are not to change how it looks (TIFF 6.0, MaxSampleValue).
    """
    type_white = WHITES.get(number_format, 1)
    black, white = 0.0, float(type_white)
    stated = _stated_range(tags)
    if stated is not None and number_format != "uchar" and (number_format in FLOATS or stated[1] <= type_white):
        black, white = stated
    if tags.first(PHOTOMETRIC) == WHITE_IS_ZERO and number_format not in TURNED:
        return Range(white, black)
    return Range(black, white)


def _stated_range(tags: Tags) -> tuple[float, float] | None:
    for least_tag, most_tag in MIN_MAX:
        least, most = set(tags[least_tag]) or {0}, set(tags[most_tag])
        if len(least) == len(most) == 1 and most <= STATED_WHITES:
            black, white = float(least.pop()), float(most.pop())
            if black in (0, -white - 1):
                return black, white
    return None


def is_plain(number_format: str, scale: Range) -> bool:
    """Return whether samples are levels already."""
    return number_format in ("uchar", "ushort") and scale == Range(0, WHITES[number_format])


def standard_to_levels(image: Vips) -> Vips:
    """Convert CIE L*a*b* or XYZ to 16-bit RGB."""
    return (image == image).ifthenelse(image, 0).copy(interpretation=image.interpretation).colourspace("rgb16")


def real_samples(image: Vips, tags: Tags, scale: Range) -> Vips:
    """Return the image with black for what is no number in floats of 16 bits, which libvips takes for large numbers."""
    if image.format not in FLOATS or tags.first(BITS) != 16:
        return image
    return (image.abs() > HALF_INFINITY).ifthenelse(scale.black, image).copy(interpretation=image.interpretation)


def to_levels(image: Vips, scale: Range) -> Vips:
    """Convert samples to 16-bit levels, clipped; what is no number becomes black."""
    interpretation = image.interpretation
    if image.format in FLOATS:
        image = (image == image).ifthenelse(image, scale.black)
    factor = scale.factor()
    levels = image.linear(factor, 0.5 - scale.black * factor).cast("ushort")
    if interpretation == "cmyk":
        return levels.copy(interpretation="cmyk")
    return levels.copy(interpretation="rgb16" if levels.bands >= 3 else "grey16")


@dataclass
class Census:
    """Numbers of colour samples.

    Attributes:
        all: How many there are.
        lit: How many are not black.
        above: How many are brighter than white.
        below: How many are darker than black.
        unreal: How many are no numbers.
        brightest: The greatest distance from black, in units of white.
    """

    all: int = 0
    lit: int = 0
    above: int = 0
    below: int = 0
    unreal: int = 0
    brightest: float = 0.0

    def add(self, samples: NDArray[Any], scale: Range) -> None:
        """Count more samples."""
        with np.errstate(invalid="ignore"):  # signalling NaN
            shares = (samples.astype(np.float64) - scale.black) * scale.factor(1)
        unreal = np.isnan(shares)
        shares = shares[~unreal]
        self.all += samples.size
        self.unreal += int(unreal.sum())
        self.lit += int((shares > 0).sum())
        self.above += int((shares > 1 + TOLERANCE).sum())
        self.below += int((shares < -TOLERANCE).sum())
        self.brightest = max(self.brightest, float(shares.max(initial=0)))


def census_of(image: Vips, scale: Range) -> Census:
    """Count the colour samples of an image, whose pixels are computed for it."""
    census, colours = Census(), color_bands(image)
    for strip in strips(image, max(1, limits.strip_bytes // (image.width * image.bands * 8))):
        census.add(strip[..., :colours], scale)
    return census


def check_census(path: Path, census: Census, scale: Range, *, is_wide: bool) -> None:
    """Tell what is clipped.

    Raises:
        StylizeError: Nearly everything would be white, or black: the samples mean something else.
    """
    where = f"{path}: its samples"
    brightest = census.brightest * abs(scale.white - scale.black)
    if census.above > MOST_CLIPPED * census.lit or census.below > MOST_CLIPPED * census.all:
        raise StylizeError(f"{where}: got {_clipped(census, scale)}; {REMEDY}")
    if is_wide and 0 < census.brightest < 1 / 256:
        raise StylizeError(
            f"{where}: got at most {brightest:.0f} where {scale.white:.0f} is white: all would be black; write it with "
            "16 bits, or state the white in the tag MaxSampleValue"
        )
    if census.above or census.below or census.unreal:
        _tell(f"{where}: {_clipped(census, scale)}; clipped: {REMEDY} to keep them")


def _clipped(census: Census, scale: Range) -> str:
    parts = (
        (census.above, f"above white ({scale.white:g})"),
        (census.below, f"below black ({scale.black:g})"),
        (census.unreal, "no numbers"),
    )
    return ", ".join(f"{_percent(count / census.all)} {where}" for count, where in parts if count)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


@lru_cache(maxsize=1024)
def _tell(message: str) -> None:
    """Log a warning, of each file once: a training reads its photographs again and again."""
    logger.warning("%s", message)


def levels_of(values: NDArray[Any], scale: Range, path: Path) -> NDArray[np.uint8]:
    """Convert samples in memory to 8-bit levels, clipped.

    Raises:
        StylizeError: Nearly everything would be white, or black.
    """
    if values.dtype.kind == "f":
        census = Census()
        census.add(values, scale)
        check_census(path, census, scale, is_wide=False)
        values = np.where(np.isnan(values), scale.black, values)
    levels: NDArray[Any] = np.clip((values - scale.black) * scale.factor(255) + 0.5, 0, 255)
    return levels.astype(np.uint8)
