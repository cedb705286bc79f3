"""The two decoders, libvips and Pillow: each opens a file, reads its header, and loads its pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyvips
from PIL import Image, ImageOps

from stylize.errors import StylizeError
from stylize.pictures.color import (
    UNUSABLE,
    as_rgb,
    is_output_profile,
    transform_to_srgb,
    usable_profile,
    with_profile,
    without_profile_to_srgb,
)
from stylize.pictures.exif import ORIENTATION, corrected_exif, exif_of_tiff, from_photoshop, gif_is_whole, jpeg_is_whole
from stylize.pictures.formats import Format
from stylize.pictures.notes import orientation_of, read_notes
from stylize.pictures.png_color import png_profile
from stylize.pictures.raster import Header, Metadata
from stylize.pictures.texts import Notes
from stylize.pictures.tiff_pages import choose_pages
from stylize.pictures.values import (
    BITS,
    STANDARD_SPACES,
    WIDE,
    Range,
    Tags,
    census_of,
    check_census,
    check_samples,
    is_plain,
    levels_of,
    range_of,
    real_samples,
    standard_to_levels,
    tiff_tags,
    to_levels,
)
from stylize.pictures.vips import INCH_MM, Vips, color_bands, field, quiet_pillow
from stylize.pictures.xmp import corrected_xmp

logger = logging.getLogger("stylize")

SIXTEEN_BIT_MODES = frozenset(("I;16", "I;16B", "I;16L", "I"))
SIXTEEN_BITS = Range(0, 65535)


class ImageFile(Protocol):
    """An opened image file.

    Attributes:
        header: What the beginning of the file says.
        stored_size: Width and height in px of a frame as it is stored, before it is turned upright.
        orientation: How it is stored, 1 to 8 as in EXIF.
        note: What is told of pictures of the file that are left out; empty if nothing is.
        fail_on: "warning" to refuse also damage that can be passed over, where the decoder tells it, or "error".
    """

    header: Header
    stored_size: tuple[int, int]
    orientation: int
    note: str
    fail_on: str

    def load(self, stored_size: tuple[int, int], margin: int, *, first_only: bool = False) -> Vips:
        """Return the frames, one below the other, with 8 or 16 bits per channel.

        Their pixels are read when they are computed, from top to bottom, and only until the next call.

        Args:
            stored_size: Width and height in px that are wanted: a JPEG is shrunk while it is decoded.
            margin: How many times as large it must still be then; the rest is left to a better filter.
            first_only: Whether the frames after the first may be left out.
        """

    def profile(self) -> bytes | None:
        """Return the ICC profile of the loaded pixels, or None for sRGB."""

    def metadata(self, size: tuple[int, int]) -> Metadata:
        """Return what is kept beside the pixels, for an upright picture of this width and height."""

    def close(self) -> None:
        """Close the file."""


class VipsFile:
    """A file that libvips decodes."""

    note = ""

    def __init__(self, path: Path, image_format: Format, *, unlimited: bool) -> None:
        self.path, self.format = path, image_format
        self.options: dict[str, Any] = {"n": -1} if image_format.loads_all_frames else {}
        if image_format.name == "TIFF":
            choice = choose_pages(path)
            self.options, self.note = choice.options, choice.note
        if unlimited and image_format.has_loader_limits:
            self.options["unlimited"] = True
        self.fail_on = "warning" if image_format.name == "JPEG" else "error"
        self.source = pyvips.Source.new_from_file(os.fsencode(path))  # names need not be text
        self.image = self._load()
        self._is_read = False
        self.tags = tiff_tags(path, choice.place) if image_format.name == "TIFF" else Tags()
        check_samples(path, self.image.format, self.tags)
        self.stated = self._stated_profile()
        self.stored_size = self.image.width, field(self.image, "page-height", self.image.height)
        self._notes = read_notes(path, "PNG") if image_format.name == "PNG" else None
        self.orientation = self._orientation()
        self.header = Header(
            self.stored_size if self.orientation < 5 else self.stored_size[::-1],
            self.image.height // self.stored_size[1],
            8 if self.image.format == "uchar" else 16,
            bool(self.image.hasalpha()),
        )

    def _load(self, **options: Any) -> Vips:
        load = getattr(pyvips.Image, str(self.format.loader))
        return load(self.source, access="sequential", fail_on=self.fail_on, **self.options, **options)

    def _stated_profile(self) -> bytes | None:
        """Return the profile that the file states other than by embedding it, if that is the one that counts."""
        if self.format.name != "PNG":
            return None
        profile, precedes = png_profile(self.path)
        return profile if precedes or field(self.image, "icc-profile-data", None) is None else None

    def _unread(self) -> Vips:
        """Return the image at full size with none of its pixels read: the opened one if nobody has had it."""
        image, self._is_read = self._load() if self._is_read else self.image, True
        return image

    def load(self, stored_size: tuple[int, int], margin: int, *, first_only: bool = False) -> Vips:
        if self.format.name == "JPEG" and not jpeg_is_whole(self.path):
            raise StylizeError(
                f"{self.path}: cannot be read as an image (its data end in zeros: a copy that broke off?)"
            )
        if self.format.name == "GIF" and not gif_is_whole(self.path.read_bytes()):
            raise StylizeError(f"{self.path}: cannot be read as an image (it ends within a frame)")
        factor = min(self.stored_size[0] / stored_size[0], self.stored_size[1] / stored_size[1])
        shrink = next((s for s in self.format.shrinks_on_load if factor >= margin * s), 1)
        image = self._load(shrink=shrink) if shrink > 1 else self._levels()
        return image if self.stated is None else with_profile(as_rgb(image), self.stated)

    def _levels(self) -> Vips:
        """Return the image with 8 or 16 bits; see `stylize.pictures.values` for other types of samples."""
        number_format, interpretation = self.image.format, self.image.interpretation
        scale = range_of(number_format, self.tags)
        if interpretation in STANDARD_SPACES:
            return standard_to_levels(self._unread())
        if is_plain(number_format, scale):
            return self._unread()
        check_census(self.path, census_of(self._unread(), scale), scale, is_wide=number_format in WIDE)
        return to_levels(real_samples(self._unread(), self.tags, scale), scale)

    def profile(self) -> bytes | None:
        if self.stated is not None:
            return usable_profile(self.stated, 3, self.path)
        return usable_profile(field(self.image, "icc-profile-data", None), color_bands(self.image), self.path)

    def _orientation(self) -> int:
        """Return how the frames are stored: as EXIF says, or else XMP; libheif has turned AVIF as its boxes say."""
        given = field(self.image, "orientation", 1)
        if self.format.name in ("TIFF", "AVIF"):
            if given == 1 and self.format.name == "TIFF" and (xmp := field(self.image, "xmp-data", None)):
                given = 1 if _tiff_is_oriented(self.path) else orientation_of(None, xmp)
            return given if 1 <= given <= 8 else 1
        exif, xmp = self._blocks(self._notes or Notes())
        return orientation_of(exif, xmp)

    def _blocks(self, notes: Notes) -> tuple[bytes | None, bytes | None]:
        """EXIF and XMP: what the file's blocks hold, or else what libvips has found."""
        exif, xmp = notes.exif, notes.xmp
        return exif or field(self.image, "exif-data", None), xmp or field(self.image, "xmp-data", None)

    def metadata(self, size: tuple[int, int]) -> Metadata:
        notes = self._notes or read_notes(self.path, self.format.name)
        exif, xmp = self._blocks(notes)
        iptc = notes.iptc or field(self.image, "iptc-data", None)
        if self.format.name == "TIFF":
            exif = _exif_of_tiff(self.path)
        resolution = self.image.xres, self.image.yres
        corrected = None if exif is None else corrected_exif(exif, size)
        return Metadata(
            exif=corrected,
            xmp=None if xmp is None else corrected_xmp(xmp, size),
            xmp_extension=None if notes.xmp_extension is None else corrected_xmp(notes.xmp_extension, size),
            iptc=None if iptc is None else from_photoshop(iptc),
            texts=notes.texts,
            left_out=notes.left_out if exif is None or corrected is not None else (*notes.left_out, "damaged EXIF"),
            dpi=None if resolution == (1, 1) else (resolution[0] * INCH_MM, resolution[1] * INCH_MM),
            delays_ms=tuple(field(self.image, "delay", []) if self.header.frames > 1 else []),
            loops=field(self.image, "loop", 0),
        )

    def close(self) -> None:
        self.image = self.source = None


def _exif_of_tiff(path: Path) -> bytes | None:
    try:
        with quiet_pillow(unlimited=False), Image.open(path) as image:
            return exif_of_tiff(image)
    except Exception as error:  # of the metadata alone; the pixels are another matter
        logger.debug("%s: its EXIF cannot be read (%s)", path, error)
        return None


def _tiff_is_oriented(path: Path) -> bool:
    """Return whether a TIFF file has a tag of its own for the orientation."""
    try:
        with quiet_pillow(unlimited=True), Image.open(path) as image:
            return ORIENTATION in getattr(image, "tag_v2", {})
    except Exception:  # damaged files make it raise almost anything
        return True


class PillowFile:
    """A file that only Pillow decodes: its first frame, as a whole, in 8 bits."""

    orientation = 1  # it is turned when it is loaded
    note = ""
    fail_on = "error"

    def __init__(self, path: Path, *, unlimited: bool) -> None:
        self.path, self.unlimited = path, unlimited
        with quiet_pillow(unlimited=True):
            self.image = Image.open(path)
            try:
                is_turned = self.image.getexif().get(0x0112, 1) >= 5
                frames = getattr(self.image, "n_frames", 1)
            except BaseException:
                self.close()
                raise
        has_alpha = "A" in self.image.getbands() or "transparency" in self.image.info
        self.header = Header(self.image.size[::-1] if is_turned else self.image.size, has_alpha=has_alpha)
        self.stored_size = self.header.size
        self.note = f"of {frames} pictures in this file the first was taken" if frames > 1 else ""

    def load(self, stored_size: tuple[int, int], margin: int, *, first_only: bool = False) -> Vips:
        with quiet_pillow(unlimited=self.unlimited):
            self.image.load()
            rgb = self.to_levels(self.image)
        self.stored_size = rgb.size
        return pyvips.Image.new_from_array(np.asarray(rgb)).copy(interpretation="srgb")

    def to_levels(self, image: Image.Image) -> Image.Image:
        """Return a loaded frame upright, as 8-bit RGB or RGBA."""
        upright = ImageOps.exif_transpose(image)
        alpha, rgb = alpha_of(upright), to_rgb(upright, self.path, self._range())
        if alpha is not None:
            rgb.putalpha(alpha)
        return rgb

    def _range(self) -> Range:
        """Return what 16-bit samples mean; of 12 bits Pillow keeps the values."""
        tags = tiff_tags(self.path) if self.image.format == "TIFF" else Tags()
        bits = tags.first(BITS)
        return Range(0, 2**bits - 1) if bits in range(9, 16) else SIXTEEN_BITS

    def profile(self) -> bytes | None:
        return None  # the pixels are in sRGB by now

    def metadata(self, size: tuple[int, int]) -> Metadata:
        info: Mapping[Any, Any] = self.image.info
        notes = read_notes(self.path, str(self.image.format))
        exif, xmp = notes.exif or info.get("exif"), notes.xmp or info.get("xmp")
        profile, dpi = info.get("icc_profile"), info.get("dpi")
        return Metadata(
            exif=corrected_exif(exif, size) if exif else None,
            xmp=corrected_xmp(xmp, size) if isinstance(xmp, bytes) and xmp else None,
            iptc=None if notes.iptc is None else from_photoshop(notes.iptc),
            texts=notes.texts,
            left_out=notes.left_out,
            dpi=None if dpi is None or min(dpi) <= 0 else (float(dpi[0]), float(dpi[1])),
            profile=profile if profile and is_output_profile(profile) else None,
        )

    def close(self) -> None:
        self.image.close()


def alpha_of(image: Image.Image) -> Image.Image | None:
    """Return the opacity as an 8-bit image, or None if there is none."""
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A")
    if "transparency" not in image.info:
        return None
    if image.mode in SIXTEEN_BIT_MODES:
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def to_rgb(image: Image.Image, path: Path, scale: Range = SIXTEEN_BITS) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB in sRGB, without the alpha.

    Args:
        image: The image.
        path: Its file, for messages.
        scale: What the samples of 16-bit modes mean.

    Raises:
        StylizeError: Its floating-point samples are not in [0, 1].
    """
    if image.mode in SIXTEEN_BIT_MODES:
        return Image.fromarray(levels_of(np.asarray(image), scale, path)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(levels_of(np.asarray(image), Range(0, 1), path)).convert("RGB")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGBA", "P", "PA", "LA"):
        image.info.pop("transparency", None)
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        return _image_to_srgb(image, profile, path)
    return without_profile_to_srgb(image)


def _image_to_srgb(image: Image.Image, profile: bytes, path: Path) -> Image.Image:
    try:
        transform = transform_to_srgb(profile, image.mode)
        converted = image.convert("RGB") if transform is None else transform.apply(image)
    except UNUSABLE as error:
        logger.warning("%s: its colour profile cannot be used (%s); taken as sRGB", path, error)
        return without_profile_to_srgb(image)
    return converted
