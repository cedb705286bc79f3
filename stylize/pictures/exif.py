"""EXIF and IPTC as bytes: kept as they are, except for values that are no longer true.

libvips would rewrite EXIF with a library that loses unknown tags and maker notes. These functions change the few values
that must change in place, and insert the block into the encoded file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

EXIF_PREFIX = b"Exif\0\0"
JPEG_EXIF_BYTES = 65535 - 2 - len(EXIF_PREFIX)
IMAGE, EXTENSION = 0x2C, 0x21  # the blocks of GIF
TAIL_BYTES, LEAST_ZEROS = 1 << 16, 512
PHOTOSHOP, IPTC_RESOURCE = b"Photoshop 3.0\0", b"8BIM\4\4"

WIDTH, HEIGHT, ORIENTATION, EXIF_IFD, GPS_IFD = 0x0100, 0x0101, 0x0112, 0x8769, 0x8825
EXIF_WIDTH, EXIF_HEIGHT = 0xA002, 0xA003
THUMBNAIL_OFFSET, THUMBNAIL_BYTES = 0x0201, 0x0202
# Tags of a TIFF's own directory that describe the photograph, not how its pixels are stored.
DESCRIBING = frozenset(
    (0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, EXIF_IFD, GPS_IFD, *range(0x9C9B, 0x9CA0))
)
IPTC = 0x83BB
SHORT, LONG, UNDEFINED, DIRECTORY_64 = 3, 4, 7, 18
INTEGERS = {1: "B", SHORT: "H", LONG: "I"}
TYPE_BYTES = {1: 1, 2: 1, SHORT: 2, LONG: 4, 5: 8, 6: 1, UNDEFINED: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def corrected_exif(block: bytes, size: tuple[int, int]) -> bytes | None:
    """Return an EXIF block for an upright picture of this size: without its thumbnail, all else in place.

    Args:
        block: With the prefix of JPEG or without.
        size: Width and height of the picture in px.

    Returns:
        The block without a prefix, or None where it is damaged.
    """
    tiff = bytearray(block.removeprefix(EXIF_PREFIX))
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(tiff[:4])]
        first = struct.unpack_from(f"{order}I", tiff, 4)[0]
        for tag, at in _entries(tiff, order, first):
            if tag == ORIENTATION:
                struct.pack_into(f"{order}HIHH", tiff, at + 2, SHORT, 1, 1, 0)
            _correct_side(tiff, order, tag, at, {WIDTH: size[0], HEIGHT: size[1]})
            if tag == EXIF_IFD:
                for inner, place in _entries(tiff, order, struct.unpack_from(f"{order}I", tiff, at + 8)[0]):
                    _correct_side(tiff, order, inner, place, {EXIF_WIDTH: size[0], EXIF_HEIGHT: size[1]})
        _drop_thumbnail(tiff, order, first)
    except (KeyError, struct.error):
        return None
    return bytes(tiff)


def exif_orientation(block: bytes) -> int | None:
    """Return the orientation that an EXIF block gives, 1 to 8, or None if it gives none or is damaged."""
    tiff = bytearray(block.removeprefix(EXIF_PREFIX))
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(tiff[:4])]
        for tag, at in _entries(tiff, order, struct.unpack_from(f"{order}I", tiff, 4)[0]):
            if tag == ORIENTATION:
                code = INTEGERS.get(struct.unpack_from(f"{order}H", tiff, at + 2)[0], "H")
                value = int(struct.unpack_from(f"{order}{code}", tiff, at + 8)[0])
                return value if 1 <= value <= 8 else None
    except (KeyError, struct.error):
        return None
    return None


def jpeg_with(head: bytes, dpi: tuple[float, float] | None, segments: bytes) -> bytes:
    """Insert a JFIF header and other segments into the beginning of a JPEG file that has none.

    Args:
        head: At least the first two bytes.
        dpi: The resolution, if there is one.
        segments: Whole segments, or nothing.
    """
    across, down = (min(65535, max(1, round(value))) for value in dpi or (1, 1))
    jfif = b"JFIF\0\1\2" + struct.pack(">BHHBB", dpi is not None, across, down, 0, 0)
    return head[:2] + _segment(0xE0, jfif) + segments + head[2:]


def exif_segment(exif: bytes) -> bytes:
    """Return the segment of a JPEG file for an EXIF block without prefix, of at most 65,527 bytes."""
    return _segment(0xE1, EXIF_PREFIX + exif)


def gif_is_whole(content: bytes) -> bool:
    """Return whether all blocks of a GIF file are complete; libvips skips the frames that a truncated file has lost.

    Data after the last block, or a missing trailer, are ignored.
    """
    at = 13 + _palette_bytes(content[10:11])
    while at < len(content) and content[at] in (IMAGE, EXTENSION):
        at += 10 + _palette_bytes(content[at + 9 : at + 10]) + 1 if content[at] == IMAGE else 2
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    return at <= len(content)


def jpeg_is_whole(path: Path) -> bool:
    """Return whether the data of a JPEG file do not end in zeros, as those of a copy that broke off do.

    Zeros after the end of the image are what cameras fill files with. libjpeg takes the others for black or gray.
    """
    with path.open("rb") as file:
        length = place = file.seek(0, os.SEEK_END)
        end = b""
        while place > 0 and not end:
            part = min(place, TAIL_BYTES)
            place -= part
            file.seek(place)
            end = file.read(part).rstrip(b"\0")
        zeros = length - place - len(end)
        file.seek(max(0, length - zeros - 2))
        return zeros < max(LEAST_ZEROS, length // 32) or file.read(2) == b"\xff\xd9"


def _palette_bytes(flags: bytes) -> int:
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def to_photoshop(iptc: bytes, prefix: bytes = PHOTOSHOP) -> bytes:
    """Return an IPTC block as JPEG files hold it: as a Photoshop resource."""
    return prefix + IPTC_RESOURCE + struct.pack(">HI", 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def from_photoshop(content: bytes) -> bytes | None:
    """Return the IPTC block of Photoshop resources, or None if there is none; a bare block is returned as it is."""
    if not content.startswith((PHOTOSHOP, b"8BIM")):
        return content if content.startswith(b"\x1c") else None
    at = len(PHOTOSHOP) if content.startswith(PHOTOSHOP) else 0
    while content[at : at + 4] == b"8BIM" and at + 12 <= len(content):
        kind = content[at : at + 6]
        at += 6 + (content[at + 6] + 2) // 2 * 2
        length = int.from_bytes(content[at : at + 4], "big")
        if kind == IPTC_RESOURCE:
            return content[at + 4 : at + 4 + length]
        at += 4 + length + length % 2
    return None


def webp_with(content: bytes, exif: bytes | None, last: bytes) -> bytes:
    """Insert an EXIF block into a WebP file that has none, and append other chunks."""
    if exif is None and not last:
        return content
    body = content[12:]
    if body[:4] != b"VP8X":
        body = _extended_header(body) + body
    if exif is not None:
        body = body[:8] + bytes([body[8] | 0x08]) + body[9:]
        chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
        place = body.find(b"XMP ", _end_of_pictures(body))  # it comes last
        body = body + chunk if place < 0 else body[:place] + chunk + body[place:]
    body += last
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def add_to_tiff(file: BinaryIO, exif: bytes | None, iptc: bytes | None) -> None:
    """Append a new first directory to a TIFF file: the old one, an EXIF block's tags, an IPTC block.

    Args:
        file: Open for reading and writing.
        exif: Without prefix.
        iptc: Bare.
    """
    if exif is None and iptc is None:
        return
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    entry, count, pointer = (20, "Q", "Q") if big else (12, "H", "I")
    file.seek(struct.unpack_from(f"{order}{pointer}", head, 8 if big else 4)[0])
    number = struct.unpack(f"{order}{count}", file.read(struct.calcsize(count)))[0]
    raw = file.read(number * entry)
    following = file.read(struct.calcsize(pointer))  # the next page
    entries = {struct.unpack_from(f"{order}H", raw, i)[0]: raw[i : i + entry] for i in range(0, len(raw), entry)}
    for tag, kind, values, content in [] if exif is None else _describing(exif, order):
        entries[tag] = _placed(file, order, big, tag, kind, values, content)
    if iptc is not None:
        entries[IPTC] = _placed(file, order, big, IPTC, UNDEFINED, len(iptc), iptc)
    place = _end(file)
    joined = b"".join(entries[tag] for tag in sorted(entries))
    file.write(struct.pack(f"{order}{count}", len(entries)) + joined + following)
    file.seek(8 if big else 4)
    file.write(struct.pack(f"{order}{pointer}", place))


def exif_of_tiff(image: Image.Image) -> bytes | None:
    """Return the tags of a TIFF file, opened by Pillow, that describe the photograph, as an EXIF block, or None."""
    found, kept = image.getexif(), Image.Exif()
    for tag in DESCRIBING & set(found):
        if tag in (EXIF_IFD, GPS_IFD):
            kept.get_ifd(tag).update(found.get_ifd(tag))
        else:
            kept[tag] = found[tag]
    told = len(kept) or any(kept.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD))
    return kept.tobytes().removeprefix(EXIF_PREFIX) if told else None


def _segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def _entries(tiff: bytearray, order: str, at: int) -> Iterator[tuple[int, int]]:
    """Tag and place of every entry of the directory at an offset."""
    for i in range(struct.unpack_from(f"{order}H", tiff, at)[0]):
        place = at + 2 + 12 * i
        yield struct.unpack_from(f"{order}HHII", tiff, place)[0], place


def _correct_side(tiff: bytearray, order: str, tag: int, at: int, sides: dict[int, int]) -> None:
    if tag in sides:
        struct.pack_into(f"{order}HII", tiff, at + 2, LONG, 1, sides[tag])


def _drop_thumbnail(tiff: bytearray, order: str, first: int) -> None:
    link = first + 2 + 12 * struct.unpack_from(f"{order}H", tiff, first)[0]
    if link + 4 > len(tiff):  # some write no link where there is no thumbnail
        return
    second = struct.unpack_from(f"{order}I", tiff, link)[0]
    struct.pack_into(f"{order}I", tiff, link, 0)
    if not 8 <= second < len(tiff) - 2:
        return
    found = {tag: struct.unpack_from(f"{order}I", tiff, at + 8)[0] for tag, at in _entries(tiff, order, second)}
    start, length = found.get(THUMBNAIL_OFFSET, 0), found.get(THUMBNAIL_BYTES, 0)
    if start > second and start + length >= len(tiff) - 1:
        del tiff[start:]
    elif start >= 8:
        tiff[start : start + length] = bytes(len(tiff[start : start + length]))


def _extended_header(body: bytes) -> bytes:
    """Return the chunk that must precede the only chunk of a simple WebP file before others may follow."""
    if body[:4] == b"VP8L":
        bits = struct.unpack_from("<I", body, 9)[0]
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bits >> 28 & 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 14))
        alpha = 0
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return struct.pack("<4sIB3x", b"VP8X", 10, 0x10 * alpha) + bytes(sides)


def _end_of_pictures(body: bytes) -> int:
    at = end = 0
    while at + 8 <= len(body):
        name, length = struct.unpack_from("<4sI", body, at)
        at += 8 + length + length % 2
        if name not in (b"XMP ", b"EXIF"):
            end = at
    return end


def _describing(block: bytes, order: str) -> Iterator[tuple[int, int, int, bytes | dict[int, tuple[int, int, bytes]]]]:
    """Yield tag, type, count and content, in this byte order, of what a TIFF file takes from an EXIF block."""
    source = {b"II": "<", b"MM": ">"}[block[:2]]
    tiff = bytearray(block)
    for tag, at in _entries(tiff, source, struct.unpack_from(f"{source}I", tiff, 4)[0]):
        if tag not in DESCRIBING:
            continue
        if tag in (EXIF_IFD, GPS_IFD):
            inner = {t: _value(tiff, source, order, p) for t, p in _entries(tiff, source, _pointer(tiff, source, at))}
            yield tag, LONG, 1, {t: value for t, value in inner.items() if value is not None}
        elif (value := _value(tiff, source, order, at)) is not None:
            yield (tag, *value)


def _pointer(tiff: bytearray, order: str, at: int) -> int:
    return int(struct.unpack_from(f"{order}I", tiff, at + 8)[0])


def _value(tiff: bytearray, source: str, order: str, at: int) -> tuple[int, int, bytes] | None:
    """Return type, count and content of an entry in another byte order, or None if it is damaged."""
    kind, count = struct.unpack_from(f"{source}HI", tiff, at + 2)
    if kind not in TYPE_BYTES or struct.unpack_from(f"{source}H", tiff, at)[0] == 0xA005:  # points into the old block
        return None
    length = TYPE_BYTES[kind] * count
    place = at + 8 if length <= 4 else _pointer(tiff, source, at)
    content = bytes(tiff[place : place + length])
    if len(content) < length:
        return None
    word = 4 if kind in (5, 10) else TYPE_BYTES[kind]
    if source != order and word > 1:
        content = b"".join(content[i : i + word][::-1] for i in range(0, length, word))
    return kind, count, content


def _placed(
    file: BinaryIO, order: str, big: bool, tag: int, kind: int, count: int,
    content: bytes | dict[int, tuple[int, int, bytes]],
) -> bytes:  # fmt: skip
    """Return a directory's entry; content that it cannot hold is appended to the file."""
    if isinstance(content, dict):
        inner = [_placed(file, order, big, t, *value) for t, value in sorted(content.items())]
        directory = struct.pack(f"{order}{'Q' if big else 'H'}", len(inner)) + b"".join(inner) + bytes(8 if big else 4)
        place = _end(file)
        file.write(directory)
        content = struct.pack(f"{order}I", place)
        if big:
            kind, content = DIRECTORY_64, struct.pack(f"{order}Q", place)
    room, word = (8, "Q") if big else (4, "I")
    if len(content) > room:
        place = _end(file)
        file.write(content)
        content = struct.pack(f"{order}{word}", place)
    return struct.pack(f"{order}HH{word}", tag, kind, count) + content.ljust(room, b"\0")


def _end(file: BinaryIO) -> int:
    """Return the end of the file, padded to an even offset, as TIFF requires."""
    end = file.seek(0, 2)
    return end + file.write(b"\0") if end % 2 else end
