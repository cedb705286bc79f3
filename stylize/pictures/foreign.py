"""Well-known files that are no pictures, or none that are read: a message names what was given."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from stylize.errors import StylizeError

HEAD_BYTES = 1024
AS_PICTURE = "save it as PNG, TIFF or JPEG first"
A_FRAME = "save a frame of it as PNG or JPEG first"
DEVELOPED = "its picture must be developed first, save it as TIFF or JPEG"

# What it is, the beginning of such a file, and the remedy.
FOREIGN: tuple[tuple[str, bytes, str], ...] = (
    ("a raw file (CR3)", rb"....ftypcrx ", DEVELOPED),
    ("a raw file (CR2)", rb"II\*\0....CR", DEVELOPED),
    ("a raw file (CRW)", rb"II....HEAPCCDR", DEVELOPED),
    ("a raw file (RAF)", rb"FUJIFILMCCD-RAW", DEVELOPED),
    ("a raw file (ORF)", rb"IIR[OS]|MMOR", DEVELOPED),
    ("a raw file (RW2)", rb"IIU\0", DEVELOPED),
    ("a raw file (X3F)", rb"FOVb", DEVELOPED),
    ("a raw file (MRW)", rb"\0MRM", DEVELOPED),
    ("a video", rb"....(?:ftyp(?:iso|mp4|mp7|mmp4|M4V|qt  |3g|avc1|dash|MSNV|f4v)|moov|mdat|wide)", A_FRAME),
    ("a video", rb"RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xba\xb3]|FLV\x01|OggS", A_FRAME),
    ("a PDF", rb"%PDF-", AS_PICTURE),
    ("a PostScript file", rb"%!PS|\xc5\xd0\xd3\xc6", AS_PICTURE),
    ("a Photoshop file", rb"8BPS", AS_PICTURE),
    ("a GIMP file", rb"gimp xcf", AS_PICTURE),
    ("an SVG", rb"(?:\xef\xbb\xbf)?\s*<(?:svg\b|[?!].*?<svg\b)", AS_PICTURE),
    ("an OpenEXR file", rb"v/1\x01", AS_PICTURE),
    ("a Radiance file", rb"#\?(?:RADIANCE|RGBE)", AS_PICTURE),
    ("a web page", rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head)\b", "download the picture itself"),
    ("a pointer of Git LFS", rb"version https://git-lfs", "git lfs pull fetches the file"),
    ("an archive", rb"PK\x03\x04|Rar!\x1a\x07|7z\xbc\xaf\x27\x1c|\x1f\x8b\x08", "unpack it first"),
)  # fmt: skip


def beginning_of(path: Path) -> bytes:
    """Return the first 1,024 bytes of a file.

    Raises:
        StylizeError: It is a pipe or a device, of which a read might wait forever.
        OSError: It cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError
    if not stat.S_ISREG(path.stat().st_mode):
        raise StylizeError(f"{path}: not a regular file, must be an image file")
    with open(path, "rb", opener=_without_waiting) as file:
        return file.read(HEAD_BYTES)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # it might have become a pipe


def check_foreign(path: Path, head: bytes) -> None:
    """Refuse a file by its name if its beginning is that of a kind which is not read.

    Raises:
        StylizeError: It is.
    """
    for name, beginning, remedy in FOREIGN:
        if re.match(beginning, head, re.DOTALL | re.IGNORECASE):
            raise StylizeError(f"{path}: {name}: {remedy}")
