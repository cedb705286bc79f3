"""The directories of a TIFF file: which of its pictures is the photograph.

A TIFF file is a chain of pages, each of which may have directories of its own (SubIFDs). Beside the photograph there
may be smaller copies of it, masks, and, in raw files, the values of the sensor with a thumbnail before them.

Source: TIFF 6.0; Adobe Photoshop TIFF Technical Note 1 (SubIFDs); DNG 1.7.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from stylize.errors import StylizeError
from stylize.pictures.foreign import DEVELOPED, check_foreign

MOST_DIRECTORIES, MOST_ENTRIES, MOST_VALUES = 10_000, 4096, 64
NEW_SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
MAKE, SAMPLES, ROWS_PER_STRIP, SUB_DIRECTORIES, SAMPLE_FORMAT = 271, 277, 278, 330, 339
TILE_WIDTH, TILE_HEIGHT, DNG_VERSION = 322, 323, 50706
KEPT = frozenset((
    NEW_SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, MAKE, SAMPLES, ROWS_PER_STRIP,
    SUB_DIRECTORIES, SAMPLE_FORMAT, TILE_WIDTH, TILE_HEIGHT, DNG_VERSION,
))  # fmt: skip
KINDS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
REDUCED, MASK, OLD_REDUCED = 1, 4, 2
COLOR_FILTERS, LINEAR_RAW = 32803, 34892
RAW_COMPRESSIONS = frozenset((32767, 32769, 32770, 34713, 65000, 65535))
RAW_MAKERS = {
    b"NIKON": "NEF", b"SONY": "ARW", b"PENTAX": "PEF", b"RICOH": "PEF", b"SAMSUNG": "SRW", b"CANON": "CR2",
    b"HASSELBLAD": "3FR", b"KODAK": "DCR", b"EASTMAN KODAK": "DCR", b"PHASE ONE": "IIQ", b"LEAF": "MOS",
}  # fmt: skip
LARGEST_BLOCK_PX = 1 << 26  # of a strip or tile, beyond which it must not be much larger than the picture
SAME_SHAPE = 0.03


@dataclass(frozen=True)
class Directory:
    """A picture of a TIFF file.

    Attributes:
        page: Its number in the chain of pages.
        sub: Its number among the directories of its page; −1 for the page itself.
        place: Its offset in the file.
        tags: The values of the tags that matter here.
    """

    page: int
    sub: int
    place: int
    tags: dict[int, tuple[int, ...]] = field(repr=False)

    def first(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return self.tags.get(tag, ())[0] if self.tags.get(tag) else default

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.first(WIDTH), self.first(HEIGHT)

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.size[0] * self.size[1]

    @property
    def is_reduced(self) -> bool:
        """Whether it says of itself that it is a smaller copy, or a mask."""
        return bool(self.first(NEW_SUBFILE) & (REDUCED | MASK)) or self.first(OLD_SUBFILE) == OLD_REDUCED

    @property
    def is_raw(self) -> bool:
        """Whether it holds values of a sensor."""
        return (
            self.first(PHOTOMETRIC) in (COLOR_FILTERS, LINEAR_RAW) or self.first(COMPRESSION) in RAW_COMPRESSIONS
        ) and self.pixels > 0

    def matches(self, other: Directory) -> bool:
        """Return whether both may be pages of one document: of one size and one kind of pixels."""
        kind = (WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT)
        return all(self.tags.get(tag) == other.tags.get(tag) for tag in kind)


@dataclass(frozen=True)
class Choice:
    """Which pictures of a TIFF file are read.

    Attributes:
        page: The first one.
        sub: Its number among the directories of its page; −1 for the page itself.
        count: Number of pages.
        note: What is told of pictures that are left out; empty if nothing is.
        place: Offset of its directory in the file; 0 for the first one.
    """

    page: int = 0
    sub: int = -1
    count: int = 1
    note: str = ""
    place: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it begins with the file's first page."""
        return self.page == 0 and self.sub < 0

    @property
    def options(self) -> dict[str, int]:
        """What asks libvips for them."""
        chosen = {"page": self.page, "subifd": self.sub, "n": self.count}
        return {name: value for name, value in chosen.items() if value != {"page": 0, "subifd": -1, "n": 1}[name]}


def choose_pages(path: Path) -> Choice:
    """Choose the photograph, or all pages of a document, among the pictures of a TIFF file.

    Raises:
        StylizeError: It is a raw file, or one that states absurd sizes. Other damage is left to the decoder.
    """
    try:
        with path.open("rb") as file:
            found = list(_directories(file, path))
    except (struct.error, OverflowError, OSError):
        return Choice()  # the decoder has its own word for it
    check_raw(path, found)
    choice = _chosen(found)
    for directory in found:
        if (directory.page, directory.sub) == (choice.page, choice.sub):
            _check_blocks(path, directory)
            return replace(choice, place=directory.place)
    return choice


def is_raw_tiff(path: Path, head: bytes) -> bool:
    """Return whether a TIFF file, of which this is the beginning, is a raw file."""
    try:
        check_foreign(path, head)
        choose_pages(path)
    except StylizeError as error:
        return DEVELOPED in str(error)
    return False


def check_raw(path: Path, found: Sequence[Directory]) -> None:
    """Check that no picture holds values of a sensor.

    Raises:
        StylizeError: One does.
    """
    if not found or not (DNG_VERSION in found[0].tags or any(directory.is_raw for directory in found)):
        return
    if DNG_VERSION not in found[0].tags and MAKE not in found[0].tags and len(found) == 1:
        return  # of no camera: the decoder says what is wrong with its samples
    maker = bytes(found[0].tags.get(MAKE, ())).upper()
    name = next((name for start, name in RAW_MAKERS.items() if maker.startswith(start)), "TIFF")
    raise StylizeError(f"{path}: a raw file ({'DNG' if DNG_VERSION in found[0].tags else name}): {DEVELOPED}")


def _chosen(found: Sequence[Directory]) -> Choice:
    whole = [directory for directory in found if not directory.is_reduced and directory.pixels]
    if not whole:  # all call themselves reduced: the largest is the nearest to a photograph
        readable = [d for d in found if d.pixels and not d.first(NEW_SUBFILE) & MASK]
        best = max(readable, key=lambda d: d.pixels, default=None)
        return Choice() if best is None else Choice(best.page, best.sub)
    largest = max(whole, key=lambda d: d.pixels)
    if all((_has_shape_of(directory, largest) and directory.pixels != largest.pixels) or directory is largest
           for directory in whole):  # fmt: skip
        return Choice(largest.page, largest.sub)  # the others are smaller copies of it
    pages = [directory for directory in whole if directory.sub < 0]
    if not pages:
        return Choice(largest.page, largest.sub, note=_left_out(len(whole)))
    first = pages[0]
    inner = max((d for d in whole if d.page == first.page), key=lambda d: d.pixels)
    if inner is not first:  # the page itself is the smaller copy
        return Choice(inner.page, inner.sub, note=_left_out(len(pages)))
    if all(page.matches(first) and page.page == first.page + i for i, page in enumerate(pages)):
        return Choice(first.page, count=len(pages))
    return Choice(first.page, note=_left_out(len(pages)))


def _left_out(count: int) -> str:
    return f"of {count} pictures in this file the first was taken" if count > 1 else ""


def _has_shape_of(one: Directory, other: Directory) -> bool:
    return abs(one.size[0] * other.size[1] / (one.size[1] * other.size[0]) - 1) <= SAME_SHAPE


def _check_blocks(path: Path, directory: Directory) -> None:
    """Check that a strip or tile, of which the decoder holds at least one, is not out of proportion to the picture."""
    width, height = directory.size
    if TILE_WIDTH in directory.tags:
        block, name = directory.first(TILE_WIDTH) * directory.first(TILE_HEIGHT), "tiles"
        limit = max(16 * width * height, 1 << 20)
    else:
        block, name = width * min(directory.first(ROWS_PER_STRIP, height), height), "strips"
        limit = LARGEST_BLOCK_PX * 4
    if block > limit or (name == "tiles" and block > LARGEST_BLOCK_PX):
        raise StylizeError(
            f"{path}: cannot be read as an image (its {name} have {block / 1e6:,.0f} megapixels, "
            f"of a picture of {width}×{height})"
        )


def _directories(file: BinaryIO, path: Path) -> Iterator[Directory]:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    is_big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    reader = _Reader(file, order, is_big)
    place = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", head, 8 if is_big else 4)[0]
    seen: set[int] = set()
    page = 0
    while place and place not in seen:
        seen.add(place)
        tags, following = reader.directory(place)
        yield Directory(page, -1, place, tags)
        for sub, inner in enumerate(tags.get(SUB_DIRECTORIES, ())):
            if inner and inner not in seen:
                seen.add(inner)
                yield Directory(page, sub, inner, reader.directory(inner)[0])
        if len(seen) > MOST_DIRECTORIES:
            raise StylizeError(f"{path}: got more than {MOST_DIRECTORIES:,} pages, must be a picture or a document")
        page, place = page + 1, following


@dataclass
class _Reader:
    """Reads directories of a TIFF file; damage raises `struct.error`."""

    file: BinaryIO
    order: str
    is_big: bool

    def directory(self, place: int) -> tuple[dict[int, tuple[int, ...]], int]:
        """Return the tags of the directory at an offset, and the offset of the next one."""
        entry_bytes, count, pointer = (20, "Q", "Q") if self.is_big else (12, "H", "I")
        number = self._unpacked(place, count)[0]
        if number > MOST_ENTRIES:
            raise struct.error("more entries than there are tags")
        start = place + struct.calcsize(f"={count}")
        self.file.seek(start)
        raw = self.file.read(number * entry_bytes)
        tags = {}
        for at in range(0, len(raw) - entry_bytes + 1, entry_bytes):
            tag, kind = struct.unpack_from(f"{self.order}HH", raw, at)
            if tag in KEPT and kind in KINDS:
                tags[tag] = self._values(raw[at : at + entry_bytes], KINDS[kind], pointer)
        try:
            return tags, self._unpacked(start + number * entry_bytes, pointer)[0]
        except struct.error:  # some files end here
            return tags, 0

    def _values(self, entry: bytes, code: str, pointer: str) -> tuple[int, ...]:
        count = struct.unpack_from(f"{self.order}{pointer}", entry, 4)[0]
        room = struct.calcsize(f"={pointer}")
        kept = min(count, MOST_VALUES)
        if count * struct.calcsize(f"={code}") <= room:
            return struct.unpack_from(f"{self.order}{kept}{code}", entry, 4 + room)
        return self._unpacked(struct.unpack_from(f"{self.order}{pointer}", entry, 4 + room)[0], f"{kept}{code}")

    def _unpacked(self, place: int, code: str) -> tuple[int, ...]:
        self.file.seek(place)
        content = self.file.read(struct.calcsize(f"={code}"))
        return struct.unpack(f"{self.order}{code}", content)
