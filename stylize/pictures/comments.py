"""Comments of JPEG, GIF and PPM files, and the extension of XMP in JPEG files.

Source: XMP Specification Part 3, section 1.1.3.1 (extended XMP).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from stylize.pictures.mark import is_mark
from stylize.pictures.texts import COMMENT, MOST_BYTES, Notes, Text, TextRoom

XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
EXTENSION_PREFIX = b"http://ns.adobe.com/xmp/extension/\0"
SEGMENT_BYTES = 65_533
JPEG_XMP_BYTES = SEGMENT_BYTES - len(XMP_PREFIX)
EXTENSION_HEAD_BYTES = len(EXTENSION_PREFIX) + 40
EXTENSION_PART_BYTES = 65_000
GIF_IMAGE, GIF_EXTENSION, GIF_COMMENT = 0x2C, 0x21, 0xFE
PPM_HEAD_BYTES = 64 * 1024
MOST_SEGMENTS = 2**16


def read_jpeg(path: Path) -> Notes:
    """Return the comments and the extended XMP that stand before the pixels of a JPEG file.

    Raises:
        OSError: The file cannot be read.
    """
    comments: list[bytes] = []
    parts: dict[bytes, dict[int, bytes]] = {}
    with path.open("rb", buffering=0) as file:
        place = 2
        for _ in range(MOST_SEGMENTS):
            file.seek(place)
            head = file.read(4)
            if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
                break
            if head[1] == 0xFF or 0xD0 <= head[1] <= 0xD8 or head[1] == 1:  # fill byte, or a marker alone
                place += 1 if head[1] == 0xFF else 2
                continue
            length = max(2, int.from_bytes(head[2:], "big"))
            place += 2 + length
            if head[1] == 0xFE:
                comments.append(file.read(length - 2))
            elif head[1] == 0xE1 and length > EXTENSION_HEAD_BYTES + 2 and file.read(35) == EXTENSION_PREFIX:
                digest, offset = file.read(32), int.from_bytes(file.read(8)[4:], "big")
                parts.setdefault(digest, {})[offset] = file.read(length - 2 - EXTENSION_HEAD_BYTES)
    return _notes(comments, *_joined(parts))


def _joined(parts: dict[bytes, dict[int, bytes]]) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the whole extension, and what is left out."""
    if not parts:
        return None, ()
    pieces = next(iter(parts.values()))
    joined = b""
    for offset, content in sorted(pieces.items()):
        if offset != len(joined) or len(joined) > MOST_BYTES:
            return None, ("a damaged extension of XMP, or one of more than 8 MiB",)
        joined += content
    return joined, ()


def _notes(comments: list[bytes], extension: bytes | None = None, left_out: tuple[str, ...] = ()) -> Notes:
    room = TextRoom()
    kept = [Text(COMMENT, comment) for comment in comments if not is_mark(comment)]
    taken = tuple(text for text in kept if room.takes(len(text.content)))
    if len(taken) < len(kept):
        left_out = (*left_out, "comments of more than 8 MiB")
    return Notes(xmp_extension=extension, texts=taken, left_out=left_out)


def read_gif(path: Path) -> Notes:
    """Return the comments of a GIF file.

    Raises:
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    comments: list[bytes] = []
    at = 13 + _palette_bytes(content[10:11])
    while at < len(content) and content[at] in (GIF_IMAGE, GIF_EXTENSION):
        is_comment = content[at : at + 2] == bytes([GIF_EXTENSION, GIF_COMMENT])
        at += 10 + _palette_bytes(content[at + 9 : at + 10]) + 1 if content[at] == GIF_IMAGE else 2
        blocks: list[bytes] = []
        while at < len(content) and content[at]:
            if is_comment:
                blocks.append(content[at + 1 : at + 1 + content[at]])
            at += 1 + content[at]
        at += 1
        if is_comment:
            comments.append(b"".join(blocks))
    return _notes(comments)


def _palette_bytes(flags: bytes) -> int:
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def read_ppm(path: Path) -> Notes:
    """Return the comments in the head of a PPM file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(PPM_HEAD_BYTES)
    found = re.match(rb"P[1-6](?:\s+|#[^\r\n]*[\r\n])*?(?:\d+(?:\s|#[^\r\n]*[\r\n])+){2}", head)
    lines = re.findall(rb"#([^\r\n]*)", b"" if found is None else found[0])
    return _notes([line.removeprefix(b" ") for line in lines])


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Return a whole segment; the content has at most 65,533 bytes."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def xmp_segments(packet: bytes, extension: bytes | None) -> bytes:
    """Return the segments of an XMP packet of at most `JPEG_XMP_BYTES`, and of its extension."""
    found = re.search(rb"HasExtendedXMP(?:\s*=\s*[\"']|[^>]*>)\s*([0-9A-Fa-f]{32})", packet)
    parts = [jpeg_segment(0xE1, XMP_PREFIX + packet)]
    if found is not None and extension is not None:
        for at in range(0, len(extension), EXTENSION_PART_BYTES):
            head = EXTENSION_PREFIX + found[1] + struct.pack(">II", len(extension), at)
            parts.append(jpeg_segment(0xE1, head + extension[at : at + EXTENSION_PART_BYTES]))
    return b"".join(parts)


def add_to_gif(file: BinaryIO, comments: Sequence[bytes]) -> None:
    """Append comments to a whole GIF file, before its trailer."""
    if not comments:
        return
    file.seek(-1, os.SEEK_END)
    for comment in comments:
        parts = (comment[i : i + 255] for i in range(0, len(comment), 255))
        blocks = b"".join(bytes([len(part)]) + part for part in parts)
        file.write(bytes([GIF_EXTENSION, GIF_COMMENT]) + blocks + b"\0")
    file.write(b";")


def ppm_with(content: bytes, comments: Sequence[bytes]) -> bytes:
    """Insert comments into a PPM file, after its first line."""
    first, _, rest = content.partition(b"\n")
    lines = [line for comment in comments for line in re.split(rb"[\r\n]+", comment)]
    return b"\n".join([first, *(b"# " + line for line in lines), rest])
