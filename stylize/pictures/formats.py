"""The image formats: one row each. Everything that depends on the format is derived from these rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from stylize.errors import StylizeError


@dataclass(frozen=True)
class Format:
    """An image format that is read and written.

    The pixel data of a format with a `loader` are decoded by libvips, of the others by Pillow. The encoders are in
    `stylize.pictures.writing`; a format without one of its own is written by Pillow.

    Attributes:
        name: Pillow's name, which messages use, too.
        suffixes: File suffixes in lower case with the dot, the usual one first.
        signature: Regular expression of a file's first bytes.
        loader: Name of the libvips operation that decodes it.
        loads_all_frames: Whether the loader has to be asked for every frame of an animation.
        shrinks_on_load: By how much the loader can shrink while it decodes, the largest factor first.
        has_loader_limits: Whether the loader refuses very large files unless it is told otherwise.
        alpha: What is written of transparency; "binary" keeps whether a pixel is opaque.
        bits: Most bits per channel that are written.
        is_lossy: Whether the encoder takes a quality.
        is_animated: Whether several frames, or pages, are written.
        has_profile: Whether ICC profiles are written.
        has_exif: Whether EXIF and XMP are written.
        plugin: Module of the Pillow plug-in that decodes and encodes it, of the extra `formats`.
    """

    name: str
    suffixes: tuple[str, ...]
    signature: bytes
    loader: str | None = None
    loads_all_frames: bool = False
    shrinks_on_load: tuple[int, ...] = ()
    has_loader_limits: bool = False
    alpha: Literal["none", "binary", "full"] = "none"
    bits: Literal[8, 16] = 8
    is_lossy: bool = False
    is_animated: bool = False
    has_profile: bool = False
    has_exif: bool = False
    plugin: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether it can be decoded: its plug-in, if it needs one, is installed."""
        return self.plugin is None or find_spec(self.plugin) is not None


FORMATS = (
    Format(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"), rb"\xff\xd8\xff", "jpegload_source",
        shrinks_on_load=(8, 4, 2), has_loader_limits=True, is_lossy=True, has_profile=True, has_exif=True,
    ),
    Format(
        "PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", "pngload_source",
        has_loader_limits=True, alpha="full", bits=16, is_animated=True, has_profile=True, has_exif=True,
    ),
    Format(
        "WEBP", (".webp",), rb"RIFF....WEBP", "webpload_source",
        loads_all_frames=True, alpha="full", is_lossy=True, is_animated=True, has_profile=True, has_exif=True,
    ),
    Format(
        "TIFF", (".tiff", ".tif", ".btf", ".tf8", ".ptif"), rb"II[*+]\0|MM\0[*+]", "tiffload_source",
        has_loader_limits=True, alpha="full", bits=16, is_animated=True, has_profile=True, has_exif=True,
    ),
    Format("GIF", (".gif",), rb"GIF8", "gifload_source", loads_all_frames=True, alpha="binary", is_animated=True),
    Format(
        "AVIF", (".avif", ".avifs"), rb"....ftyp(?:avi[fs]|(?:mif1|msf1|miaf)....(?:....){0,8}avi[fs])",
        "heifload_source", has_loader_limits=True,
        alpha="full", is_lossy=True, is_animated=True, has_profile=True, has_exif=True,
    ),
    Format("BMP", (".bmp", ".dib"), rb"BM.{4}\0{4}"),
    Format("PPM", (".ppm", ".pnm"), rb"P[1-6]\s+[#\d]"),
    Format(
        "HEIF", (".heic", ".heif", ".hif"), rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1|miaf)",
        alpha="full", is_lossy=True, has_profile=True, has_exif=True, plugin="pillow_heif",
    ),
    Format(
        "JXL", (".jxl",), rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        alpha="full", is_lossy=True, has_profile=True, has_exif=True, plugin="pillow_jxl",
    ),
)  # fmt: skip

SIGNATURE_BYTES = 64
BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}


def format_of(path: Path) -> Format:
    """Return the format in which a file of this name is written.

    Raises:
        StylizeError: No format has this suffix, or its plug-in is not installed.

    >>> format_of(Path("a.JPG")).name
    'JPEG'
    """
    suffix = path.suffix.lower()
    if suffix not in BY_SUFFIX:
        raise StylizeError(f"{path}: got the suffix '{suffix}', must be one of {', '.join(sorted(BY_SUFFIX))}")
    check_installed(path, BY_SUFFIX[suffix])
    return BY_SUFFIX[suffix]


def check_installed(path: Path, image_format: Format) -> None:
    """Check that there is what decodes and encodes a format.

    Raises:
        StylizeError: Its plug-in is not installed.
    """
    if not image_format.is_installed:
        raise StylizeError(
            f"{path}: {image_format.name} files need a plug-in that is not installed: pip install 'stylize[formats]'"
        )


def format_of_content(head: bytes) -> Format | None:
    """Return the format that a file's first 64 bytes belong to, or None if no row knows them.

    >>> format_of_content(b"GIF89a").name, format_of_content(b"no image")
    ('GIF', None)
    """
    return next((row for row in FORMATS if re.match(row.signature, head, re.DOTALL)), None)


def has_image_suffix(name: str) -> bool:
    """Return whether a file of this name is taken for an image."""
    return Path(name).suffix.lower() in BY_SUFFIX


def listed_suffixes() -> str:
    """Return the usual suffix of every format that needs no plug-in, for messages.

    >>> listed_suffixes()
    'jpg, png, webp, tiff, gif, avif, bmp, ppm'
    """
    return ", ".join(row.suffixes[0].removeprefix(".") for row in FORMATS if row.plugin is None)
