"""Texts, EXIF, XMP and IPTC in PNG files, before and after the pixels, which are passed over.

Source: Portable Network Graphics, third edition, sections 11.3.3 and 11.3.4; "Raw profile type": ImageMagick.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from stylize.pictures.mark import is_mark
from stylize.pictures.texts import MOST_BYTES, Notes, Text, TextRoom

XMP_KEYWORD = "XML:com.adobe.xmp"
RAW_PROFILE = "Raw profile type "
RAW_CONTENT = re.compile(rb"\s*(\w+)\s+(\d+)\s+([0-9a-fA-F\s]*)")
XMP_PREFIX, EXIF_PREFIX = b"http://ns.adobe.com/xap/1.0/\0", b"Exif\0\0"
WANTED = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
MOST_CHUNKS = 2**20


def read_png(path: Path) -> Notes:
    """Return what the chunks of a PNG file hold; what is damaged or too large is left out.

    Raises:
        OSError: The file cannot be read.
    """
    exif: bytes | None = None
    texts: list[Text] = []
    left_out: list[str] = []
    room = TextRoom()
    with path.open("rb", buffering=0) as file:  # a buffer would read the pixels, too
        for name, content in _chunks(file):
            if content is None:
                left_out.append("a text of more than 8 MiB" if name != b"eXIf" else "EXIF of more than 8 MiB")
            elif name == b"eXIf":
                exif = exif or content
            elif (text := _text(name, content, room)) is None:
                left_out.append("a damaged text, or more than 8 MiB of texts")
            elif not is_mark(text.content):
                texts.append(text)
    return _sorted(exif, texts, left_out)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes | None]]:
    """Name and content of every chunk that is wanted; None for one that is too long."""
    length_of_file = os.fstat(file.fileno()).st_size
    place = 8
    for _ in range(MOST_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head)
        place += 12 + length
        if name == b"IEND" or place > length_of_file:
            return
        if name in WANTED:
            yield name, file.read(length) if length <= MOST_BYTES else None


def _text(name: bytes, content: bytes, room: TextRoom) -> Text | None:
    keyword, _, rest = content.partition(b"\0")
    encoding, language, translated, is_compressed = "latin-1", b"", b"", name == b"zTXt"
    if name == b"iTXt":
        encoding, is_compressed, rest = "utf-8", rest[:1] == b"\1", rest[2:]
        language, _, rest = rest.partition(b"\0")
        translated, _, rest = rest.partition(b"\0")
    elif is_compressed:
        rest = rest[1:]
    unpacked = _decompressed(rest, room.bytes) if is_compressed else rest
    if unpacked is None or not room.takes(len(unpacked)):
        return None
    return Text(
        keyword.decode("latin-1"), unpacked, encoding, language.decode("latin-1"), translated.decode(errors="replace")
    )


def _decompressed(content: bytes, most: int) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        unpacked = stream.decompress(content, most + 1)
    except zlib.error:
        return None
    return unpacked if stream.eof and len(unpacked) <= most else None


def _sorted(exif: bytes | None, texts: Iterable[Text], left_out: list[str]) -> Notes:
    """Tell XMP and raw profiles from texts; the first of each kind counts, and a block before a raw profile."""
    kept: list[Text] = []
    xmp: bytes | None = None
    raw: dict[str, bytes] = {}
    for text in texts:
        if text.keyword == XMP_KEYWORD:
            xmp = xmp or text.content
        elif not text.keyword.startswith(RAW_PROFILE):
            kept.append(text)
        elif (kind := text.keyword.removeprefix(RAW_PROFILE).lower()) not in ("icc", "icm"):
            content = _raw_profile(text.content)
            if content is None:
                left_out.append(f"a damaged raw profile ({kind})")
            elif kind in ("exif", "xmp", "iptc", "8bim") or (kind := _kind_of_app1(content)):
                raw.setdefault(kind, content)
            else:
                kept.append(text)
    xmp = xmp or raw.get("xmp", b"").removeprefix(XMP_PREFIX) or None
    iptc = raw.get("iptc") or raw.get("8bim")
    return Notes(exif or raw.get("exif"), xmp, None, iptc, tuple(kept), tuple(dict.fromkeys(left_out)))


def _kind_of_app1(content: bytes) -> str:
    return "exif" if content.startswith(EXIF_PREFIX) else "xmp" if content.startswith(XMP_PREFIX) else ""


def _raw_profile(content: bytes) -> bytes | None:
    found = RAW_CONTENT.fullmatch(content.rstrip(b"\0"))
    if found is None:
        return None
    try:
        profile = bytes.fromhex(found[3].decode())
    except ValueError:
        return None
    return profile if len(profile) == int(found[2][:12]) else None


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return a whole chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def xmp_chunk(packet: bytes) -> bytes:
    """Return the chunk of an XMP packet, uncompressed, as the XMP specification wants it."""
    return png_chunk(b"iTXt", XMP_KEYWORD.encode() + b"\0\0\0\0\0" + packet)


def iptc_chunk(photoshop: bytes) -> bytes:
    """Return the raw profile of Photoshop resources, as ImageMagick and exiftool read it."""
    lines = photoshop.hex()
    wrapped = "\n".join(lines[i : i + 72] for i in range(0, len(lines), 72))
    return png_chunk(b"tEXt", f"{RAW_PROFILE}iptc\0\niptc\n{len(photoshop):8d}\n{wrapped}\n".encode())


def text_chunk(text: Text) -> bytes | None:
    """Return the chunk of a text; None where PNG cannot hold it: it is no text."""
    content, encoding = text.content, text.encoding
    keyword = text.keyword.encode("latin-1", "replace")[:79]
    if not encoding:  # a comment
        content = content.rstrip(b"\0")
        encoding = "latin-1" if content.isascii() or not _is_utf_8(content) else "utf-8"
    if not keyword or b"\0" in content:
        return None
    if encoding == "latin-1":
        return png_chunk(b"tEXt", keyword + b"\0" + content)
    language = text.language.encode("latin-1", "replace")
    return png_chunk(b"iTXt", keyword + b"\0\0\0" + language + b"\0" + text.translated.encode() + b"\0" + content)


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
