"""The mark of painted files: they are told from photographs without being decoded, whatever their name.

It stands where every reader passes over it: a text of PNG, a comment of JPEG, GIF and PPM, a chunk of WebP, a box of
AVIF, and behind the data of TIFF and BMP.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from pathlib import Path

from stylize.pictures.formats import SIGNATURE_BYTES, format_of_content
from stylize.version import __version__

KEYWORD = b"stylize"  # of a PNG's text
BEGINNING = b"Painted by stylize; style: "
MARK = re.compile(re.escape(BEGINNING) + rb"([\w .\\-]{1,180}); version: [\w.+-]{1,30}")
END_BYTES = 64 * 1024  # of a file's beginning and of its end, within which the mark stands
BOX_ID = bytes.fromhex("6f0b8a0e5d4c4f0f9a577374796c697a")  # drawn at random


def mark_of(style: str) -> bytes:
    """Return the mark of pictures in this style: ASCII, less than 255 bytes, the same at any time.

    >>> mark_of("dots").startswith(b"Painted by stylize; style: dots; version: ")
    True
    """
    name = style.encode("ascii", "backslashreplace")[:180].decode()
    return BEGINNING + f"{name}; version: {__version__}".encode()


def is_mark(text: bytes) -> bool:
    """Return whether a text or comment of a file is the mark."""
    return MARK.fullmatch(text) is not None


def is_painted(path: Path) -> bool:
    """Return whether stylize has painted this file; at most 128 KiB are read, and nothing is decoded.

    Whatever cannot be read, or is no regular file, counts as not painted.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            head = file.read(END_BYTES)
            if format_of_content(head[:SIGNATURE_BYTES]) is None:
                return False
            if MARK.search(head):
                return True
            length = file.seek(0, os.SEEK_END)
            file.seek(max(len(head) - len(BEGINNING), length - END_BYTES))
            return MARK.search(file.read(END_BYTES)) is not None
    except (OSError, ValueError):
        return False


def png_text(mark: bytes) -> bytes:
    """Return the chunk of a PNG file that holds the mark."""
    chunk = b"tEXt" + KEYWORD + b"\0" + mark
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def jpeg_comment(mark: bytes) -> bytes:
    """Return the segment of a JPEG file that holds the mark."""
    return b"\xff\xfe" + struct.pack(">H", len(mark) + 2) + mark


def bmp_with(content: bytes, mark: bytes) -> bytes:
    """Append the mark to a BMP file, within the size that its header states."""
    return content[:2] + struct.pack("<I", len(content) + len(mark)) + content[6:] + mark


def webp_chunk(mark: bytes) -> bytes:
    """Return the chunk of an extended WebP file, after all others, that holds the mark."""
    return b"STYL" + struct.pack("<I", len(mark)) + mark + bytes(len(mark) % 2)


def avif_box(mark: bytes) -> bytes:
    """Return the last box of an AVIF file, which holds the mark."""
    return struct.pack(">I4s", 8 + len(BOX_ID) + len(mark), b"uuid") + BOX_ID + mark
