import errno
import io
import logging
import math
import os
import random
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from stylize.errors import StylizeError
from stylize.images import Picture
from stylize.metadata import corrected_exif, corrected_xmp
from stylize.rasters import Notes, Raster, raster_of, read_header, read_raster, write_raster
from stylize.rows import RowStore
from test_images import STORED, icc_profile, refusal

Array = NDArray[Any]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KEEPERS = pytest.mark.parametrize("on_disk", (False, True), ids=("memory", "disk"))
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")


def noise(*shape: int, bits: int = 8) -> Array:
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(0).integers(0, 2**bits, shape, dtype=dtype)


def smooth(height: int, width: int) -> Array:
    small = Image.fromarray(np.random.default_rng(1).integers(60, 196, (3, 4, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def pixels(raster: Raster) -> Array:
    return raster.rows.read(0, raster.rows.shape[0]).numpy()


def read_pixels(path: Path, **options: Any) -> Array:
    with read_raster(path, **options) as raster:
        return pixels(raster).copy()


def raster(values: Array, notes: Notes = Notes(), frames: int = 1, folder: Path | None = None) -> Raster:  # noqa: B008
    rows = RowStore(values.shape, torch.from_numpy(values[:0]).dtype, folder, direct=False)
    rows.write(0, torch.from_numpy(np.ascontiguousarray(values)))
    return Raster(rows, frames, notes)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(values: Array, *chunks: bytes) -> bytes:
    """A PNG of an array `(H, W, 1 to 4)` of 8 or 16 bits, as the format's specification has it."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in values)
    parts = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(values: Array, order: str = "<", photometric: int = 2, orientation: int = 1) -> bytes:
    """An uncompressed TIFF of an array `(H, W, C)` of any number format."""
    height, width, channels = values.shape
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    place = 8 + len(content)
    wide = struct.pack(f"{order}{channels}H", *[8 * values.itemsize] * channels)
    wide += struct.pack(f"{order}{channels}H", *[kind] * channels)
    formats = place + 2 * channels
    directory = place + 4 * channels
    extra = channels - (1 if photometric < 2 else 3)
    short = channels <= 2

    def many(tag: int, at: int, value: int) -> bytes:
        if short:
            return struct.pack(f"{order}HHI", tag, 3, channels) + struct.pack(f"{order}HH", *[value] * 2)
        return struct.pack(f"{order}HHII", tag, 3, channels, at)

    def one(tag: int, value: int, kind: int = 4) -> bytes:
        packed = struct.pack(f"{order}I", value) if kind == 4 else struct.pack(f"{order}HH", value, 0)
        return struct.pack(f"{order}HHI", tag, kind, 1) + packed

    entries = [one(256, width), one(257, height), many(258, place, 8 * values.itemsize), one(259, 1, 3)]
    entries += [one(262, photometric, 3), one(273, 8), one(274, orientation, 3), one(277, channels, 3)]
    entries += [one(278, height), one(279, len(content))]
    entries += [one(338, 2, 3)] if extra == 1 else []
    entries += [many(339, formats, kind)]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory)
    return head + content + wide + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


def gray(values: Array) -> Array:
    """One or two channels → three or four."""
    return np.concatenate([values[..., :1]] * 3 + [values[..., 1:]], -1)


def opaque_but(values: Array, transparent: Array) -> Array:
    white = np.iinfo(values.dtype).max
    return np.concatenate([values, np.where(transparent, 0, white).astype(values.dtype)[..., None]], -1)


def lossless_cases() -> dict[str, tuple[str, bytes, Array]]:
    """Name: suffix, file, and the pixels that it holds."""
    h, w = 9, 13
    g, ga, rgb, rgba = (noise(h, w, c) for c in (1, 2, 3, 4))
    g16, ga16, rgb16, rgba16 = (noise(h, w, c, bits=16) for c in (1, 2, 3, 4))
    bit = noise(h, w) > 127
    index = noise(h, w) % 5
    colours, opacity = noise(5, 3), np.array([255, 0, 128, 7, 255], np.uint8)
    palette = Image.new("P", (w, h))
    palette.putdata(index.reshape(-1).tolist())
    palette.putpalette(colours.reshape(-1).tolist())
    black_white = gray(np.where(bit, 255, 0).astype(np.uint8)[..., None])
    one, levels = Image.fromarray(bit), Image.fromarray(g[..., 0])
    with_alpha = Image.fromarray(rgba)
    floats = np.linspace(-0.25, 1.25, h * w, dtype=np.float32).reshape(h, w, 1)
    floats[0, 0] = np.nan
    as_levels = np.floor(np.clip(np.nan_to_num(floats).astype(np.float64) / 1.0, 0, 255) * (65535 / 255) + 0.5)
    unit = np.clip(floats, 0, 1)
    unit_levels = np.floor(np.nan_to_num(unit).astype(np.float64) * 65535 + 0.5)
    first = int(g[2, 3, 0])
    key16 = g16[2, 3, 0]
    return {
        "png-1": ("png", saved(one, "PNG"), black_white),
        "png-L": ("png", png(g), gray(g)),
        "png-LA": ("png", png(ga), gray(ga)),
        "png-RGB": ("png", png(rgb), rgb),
        "png-RGBA": ("png", png(rgba), rgba),
        "png-P": ("png", saved(palette, "PNG"), colours[index]),
        "png-P-transparency": (
            "png",
            saved(palette, "PNG", transparency=opacity.tobytes()),
            np.concatenate([colours[index], opacity[index][..., None]], -1),
        ),
        "png-L-transparency": (
            "png",
            png(g, chunk(b"tRNS", struct.pack(">H", first))),
            opaque_but(gray(g), g[..., 0] == first),
        ),
        "png-L16-transparency": (
            "png",
            png(g16, chunk(b"tRNS", struct.pack(">H", key16))),
            opaque_but(gray(g16), g16[..., 0] == key16),
        ),
        "png-RGB-transparency": (
            "png",
            png(rgb, chunk(b"tRNS", struct.pack(">3H", *rgb[4, 4]))),
            opaque_but(rgb, (rgb == rgb[4, 4]).all(-1)),
        ),
        "png-L16": ("png", png(g16), gray(g16)),
        "png-LA16": ("png", png(ga16), gray(ga16)),
        "png-RGB16": ("png", png(rgb16), rgb16),
        "png-RGBA16": ("png", png(rgba16), rgba16),
        "tiff-1": ("tif", saved(one, "TIFF"), black_white),
        "tiff-1-fax": ("tif", saved(one, "TIFF", compression="group4"), black_white),
        "tiff-L": ("tif", tiff(g, photometric=1), gray(g)),
        "tiff-L-white-is-0": ("tif", tiff(255 - g, photometric=0), gray(g)),
        "tiff-LA": ("tif", tiff(ga, photometric=1), gray(ga)),
        "tiff-P": ("tif", saved(palette, "TIFF"), colours[index]),
        "tiff-RGB": ("tif", tiff(rgb), rgb),
        "tiff-RGB-lzw": ("tif", saved(Image.fromarray(rgb), "TIFF", compression="tiff_lzw"), rgb),
        "tiff-RGBA": ("tif", tiff(rgba), rgba),
        "tiff-L16": ("tif", tiff(g16, photometric=1), gray(g16)),
        "tiff-RGB16": ("tif", tiff(rgb16), rgb16),
        "tiff-RGB16-big-endian": ("tif", tiff(rgb16, ">"), rgb16),
        "tiff-RGBA16": ("tif", tiff(rgba16), rgba16),
        "tiff-float-to-1": ("tif", tiff(unit, photometric=1), gray(unit_levels.astype(np.uint16))),
        "tiff-float-to-255": ("tif", tiff(floats, photometric=1), gray(as_levels.astype(np.uint16))),
        "tiff-int32": ("tif", tiff(g16.astype(np.int32) * 2, photometric=1), gray(np.minimum(g16.astype(int) * 2, 65535).astype(np.uint16))),
        "webp-RGB": ("webp", saved(Image.fromarray(rgb), "WEBP", lossless=True), rgb),
        "webp-RGBA": ("webp", saved(with_alpha, "WEBP", lossless=True, exact=True), rgba),
        "gif-1": ("gif", saved(one, "GIF"), black_white),
        "gif-L": ("gif", saved(levels, "GIF"), gray(g)),
        "gif-P": ("gif", saved(palette, "GIF"), colours[index]),
        "bmp-1": ("bmp", saved(one, "BMP"), black_white),
        "bmp-L": ("bmp", saved(levels, "BMP"), gray(g)),
        "bmp-P": ("bmp", saved(palette, "BMP"), colours[index]),
        "bmp-RGB": ("bmp", saved(Image.fromarray(rgb), "BMP"), rgb),
        "ppm-RGB": ("ppm", saved(Image.fromarray(rgb), "PPM"), rgb),
        "ppm-L": ("ppm", saved(levels, "PPM"), gray(g)),
        "tga-RGBA": ("tga", saved(with_alpha, "TGA"), rgba),
    }  # fmt: skip


LOSSLESS = lossless_cases()


@KEEPERS
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_are_read_to_the_level(tmp_path: Path, name: str, on_disk: bool) -> None:
    suffix, content, expected = LOSSLESS[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with read_raster(path, folder=tmp_path if on_disk else None) as read:
        assert read.rows.in_memory != on_disk
        assert (read.frames, read.size) == (1, (13, 9))
        assert pixels(read).dtype == expected.dtype
        assert np.array_equal(pixels(read), expected)
        assert read.bits == read.notes.bits == 8 * expected.itemsize
        assert read_header(path) == type(read_header(path))((13, 9), 1, read.bits, read.has_alpha)
    assert list(tmp_path.iterdir()) == [path]


def test_a_transparent_colour_of_a_gif_becomes_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 1, 0, 1, 0, 0, 1])
    image.save(tmp_path / "a.gif", transparency=0)
    expected = np.array([[0, 255, 255, 0], [255, 0, 0, 255]])
    read = read_pixels(tmp_path / "a.gif")
    assert np.array_equal(read[..., 3], expected)
    assert (read[..., :3][expected == 255] == [200, 100, 50]).all()
