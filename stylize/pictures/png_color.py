"""Colours that a PNG file states in chunks of its own, without a profile, as an ICC profile."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stylize.errors import StylizeError

SIGNATURE_BYTES, MOST_CHUNKS, LONGEST = 8, 1000, 32
STATED = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"IHDR")
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green, blue
PRIMARIES = {  # numbers of ITU-T H.273
    1: SRGB_PRIMARIES,
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
# The curve from a sample to light: (γ), or (γ, a, b, c, d) of ICC's second parametric type.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
VIDEO_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CURVES = {
    1: VIDEO_CURVE, 4: (2.2,), 5: (2.8,), 6: VIDEO_CURVE, 8: (1.0,), 13: SRGB_CURVE, 14: VIDEO_CURVE, 15: VIDEO_CURVE,
}  # fmt: skip
HDR_CURVES = {16: "PQ", 18: "HLG"}
SRGB_GAMMA = range(45000, 46001)  # 1/2.2, in which every program writes sRGB
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])


class Stated(NamedTuple):
    """What chunks say of colours.

    Attributes:
        primaries: x and y of white, red, green and blue.
        curve: From a sample to light; a power, or the parameters of ICC's type 3.
    """

    primaries: tuple[float, ...]
    curve: tuple[float, ...]


def png_profile(path: Path) -> tuple[bytes | None, bool]:
    """Return an ICC profile of the colours that a PNG file's chunks state, and whether it precedes an embedded one.

    None: sRGB, nothing, or an embedded profile. The order is PNG's (third edition): cICP, iCCP, sRGB, gAMA and cHRM.
    The profile is of RGB for gray files, too: of a linear curve Little CMS converts grays with errors of up to 7
    levels, RGB of 1.

    Raises:
        StylizeError: The colours are of high dynamic range, or of a kind that is not converted.
    """
    chunks = dict(_chunks(path))
    is_gray = len(chunks.get(b"IHDR", b"")) >= 10 and chunks[b"IHDR"][9] in (0, 4)
    if len(chunks.get(b"cICP", b"")) == 4:
        stated = _of_code_points(path, *chunks[b"cICP"])
        return profile_of(stated), True
    if b"iCCP" in chunks or b"sRGB" in chunks or (b"gAMA" not in chunks and b"cHRM" not in chunks):
        return None, False
    gamma = _gamma(chunks.get(b"gAMA", b""))
    primaries = None if is_gray else _primaries(chunks.get(b"cHRM", b""))
    if primaries is None and gamma in (None, SRGB_CURVE):
        return None, False
    return profile_of(Stated(primaries or SRGB_PRIMARIES, gamma or SRGB_CURVE)), False


def _chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the chunks of colours before the pixels."""
    with path.open("rb") as file:
        file.seek(SIGNATURE_BYTES)
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IDAT":
                return
            length = struct.unpack(">I", head[:4])[0]
            if head[4:] in STATED:
                content = file.read(min(length, LONGEST))
                yield head[4:], content
                file.seek(length - len(content) + 4, 1)
            else:
                file.seek(length + 4, 1)


def _gamma(content: bytes) -> tuple[float, ...] | None:
    if len(content) != 4:
        return None
    value = struct.unpack(">I", content)[0]
    if value in SRGB_GAMMA:
        return SRGB_CURVE
    return (100000 / value,) if 10000 <= value <= 1000000 else None


def _primaries(content: bytes) -> tuple[float, ...] | None:
    """Return valid primaries that are not sRGB's."""
    if len(content) != 32:
        return None
    found = tuple(value / 100000 for value in struct.unpack(">8I", content))
    if max(abs(a - b) for a, b in zip(found, SRGB_PRIMARIES, strict=True)) < 0.002:
        return None
    try:
        matrix = _matrix(found)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    return found if np.isfinite(matrix).all() and np.abs(matrix).max() < 10 else None


def _of_code_points(path: Path, primaries: int, transfer: int, matrix: int, full: int) -> Stated:
    if transfer in HDR_CURVES:
        raise StylizeError(
            f"{path}: got {HDR_CURVES[transfer]} of high dynamic range (cICP), must be of standard range; "
            "convert it with another program"
        )
    if primaries not in PRIMARIES or transfer not in CURVES or matrix != 0 or full != 1:
        raise StylizeError(
            f"{path}: got the colours {primaries}/{transfer}/{matrix}/{full} in cICP, must be full-range RGB of "
            f"primaries {', '.join(map(str, PRIMARIES))} and transfer {', '.join(map(str, CURVES))}; convert it to sRGB"
        )
    return Stated(PRIMARIES[primaries], CURVES[transfer])


def _matrix(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the colorants in XYZ under D50, a column each."""
    white, *colours = [
        np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    ]
    columns = np.stack(colours, 1)
    scaled = columns * np.linalg.solve(columns, white)
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD @ scaled
    return np.asarray(adapted, np.float64)


def profile_of(stated: Stated) -> bytes:
    """Return an ICC profile (version 4.2) of a matrix and curves."""
    curve = b"para" + bytes(4) + struct.pack(">HH", 0 if len(stated.curve) == 1 else 3, 0) + _fixed(*stated.curve)
    tags = {b"desc": _text("stated by the file"), b"cprt": _text("none"), b"wtpt": b"XYZ " + bytes(4) + _fixed(*D50)}
    matrix = _matrix(stated.primaries)
    for i, colour in enumerate((b"r", b"g", b"b")):
        tags[colour + b"XYZ"] = b"XYZ " + bytes(4) + _fixed(*matrix[:, i])
        tags[colour + b"TRC"] = curve
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for signature, content in tags.items():
        table += signature + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI", start + len(data), 0x04200000) + b"mntrRGB XYZ "
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*D50)
    return head.ljust(128, b"\0") + table + data


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(encoded), 28) + encoded
