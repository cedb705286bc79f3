import io
import logging
import os
import random
import re
import signal
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
from fixtures_fuzz import TIMES, mutated, outcome
from numpy.typing import NDArray
from PIL import Image, ImageCms, IptcImagePlugin, features
from test_images import STORED, icc_profile, refusal

from stylize.errors import StylizeError
from stylize.pictures.exif import corrected_exif
from stylize.pictures.limits import limits
from stylize.pictures.picture import Picture
from stylize.pictures.raster import Header, Metadata, Raster, raster_of
from stylize.pictures.reading import open_picture, read_header, read_raster, read_rgb
from stylize.pictures.writing import write_raster
from stylize.pictures.xmp import corrected_xmp
from stylize.system.row_store import RowStore

Array = NDArray[Any]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KEEPERS = pytest.mark.parametrize("on_disk", (False, True), ids=("memory", "disk"))
MUTATIONS = 25 * TIMES
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


def raster(values: Array, notes: Metadata = Metadata(), frames: int = 1, folder: Path | None = None) -> Raster:  # noqa: B008
    rows = RowStore(values.shape, torch.from_numpy(values[:0]).dtype, folder, direct=False)
    rows.write(0, torch.from_numpy(np.ascontiguousarray(values)))
    rows.finish()
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
        "tiff-float-clipped": ("tif", tiff(floats, photometric=1), gray(unit_levels.astype(np.uint16))),
        "tiff-int32": ("tif", tiff(g16.astype(np.int32) * 32768 + 16384, photometric=1), gray(g16)),
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
        assert read.bits == read.metadata.bits == 8 * expected.itemsize
        assert read_header(path) == Header((13, 9), 1, read.bits, read.has_alpha)
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


def stored(upright: Array, orientation: int) -> Array:
    """How EXIF 2.32 has an upright picture lie in the file; see `STORED`."""
    across = upright.swapaxes(0, 1)
    return {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: across, 6: across[::-1], 7: across[::-1, ::-1], 8: across[:, ::-1],
    }[orientation]  # fmt: skip


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_the_reference_of_orientations_is_the_standards() -> None:
    upright = np.arange(1, 7).reshape(2, 3)
    assert {o: stored(upright, o).tolist() for o in STORED} == STORED


@KEEPERS
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ("png", "png16", "tif", "webp", "frames", "bmp"))
def test_pictures_stand_upright_as_exif_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, orientation: int, on_disk: bool
) -> None:
    monkeypatch.setattr(limits, "tile_px", 4)
    monkeypatch.setattr(limits, "strip_bytes", 100)
    upright = noise(11, 17, 4, bits=16 if suffix == "png16" else 8)
    if suffix in ("frames", "bmp"):
        upright[..., 3] = 255
    lying = np.ascontiguousarray(stored(upright, orientation))
    exif = exif_of(orientation)
    path = tmp_path / f"a.{'webp' if suffix == 'frames' else suffix[:3] if suffix != 'webp' else suffix}"
    if suffix.startswith("png"):
        path.write_bytes(png(lying, chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))))
    elif suffix == "tif":
        path.write_bytes(tiff(lying, orientation=orientation))
    elif suffix == "webp":
        Image.fromarray(lying).save(path, lossless=True, exact=True, exif=exif)
    elif suffix == "frames":
        pictures = [Image.fromarray(lying), Image.fromarray(lying[:, :, [2, 1, 0, 3]])]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True, exif=exif)
        upright = np.concatenate([upright, upright[:, :, [2, 1, 0, 3]]])[..., :3]
    else:
        pytest.importorskip("PIL").Image.fromarray(lying).convert("RGB").save(path)
        upright = lying[..., :3]  # BMP has no EXIF
    size = (upright.shape[1], 11) if suffix != "bmp" else upright.shape[1::-1]
    assert read_header(path).size == size
    with read_raster(path, folder=tmp_path if on_disk else None) as read:
        assert read.size == size
        assert np.array_equal(pixels(read)[..., : upright.shape[2]], upright)
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_stands_upright_and_at_full_size_has_pillows_colours(tmp_path: Path, orientation: int) -> None:
    path, upright = tmp_path / "a.jpg", smooth(40, 56)
    Image.fromarray(np.ascontiguousarray(stored(upright, orientation))).save(
        path, quality=95, subsampling=0, exif=exif_of(orientation)
    )
    with Image.open(path) as image:
        decoded = np.array(image)
    back = read_pixels(path)
    assert np.abs(stored(back, orientation).astype(int) - decoded).max() <= 1
    assert np.abs(back.astype(int) - upright).max() <= 6


def test_grays_in_jpegs_are_read(tmp_path: Path) -> None:
    Image.fromarray(smooth(16, 24)[..., 0]).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(read_pixels(tmp_path / "a.jpg"), gray(np.array(image)[..., None]))


CMYK = {"red": ((0, 255, 255, 0), 0), "blue": ((255, 255, 0, 0), 2), "green": ((255, 0, 255, 0), 1)}


@pytest.mark.parametrize("suffix", ("jpg", "tif"))
@pytest.mark.parametrize("colour", CMYK)
def test_the_inks_of_cmyk_become_their_colours(tmp_path: Path, suffix: str, colour: str) -> None:
    inks, strongest = CMYK[colour]
    Image.new("CMYK", (8, 8), inks).save(tmp_path / f"a.{suffix}")
    rgb = read_pixels(tmp_path / f"a.{suffix}")[4, 4].astype(int)
    assert read_rgb(tmp_path / f"a.{suffix}").getpixel((4, 4)) == tuple(rgb)
    assert rgb.argmax() == strongest
    assert rgb[strongest] > 110
    assert rgb[strongest] - np.delete(rgb, strongest).max() > 50


@pytest.mark.parametrize("suffix", ("jpg", "tif"))
def test_no_ink_is_white_and_all_black_ink_is_dark(tmp_path: Path, suffix: str) -> None:
    for inks, darkest, brightest in (((0, 0, 0, 0), 254, 255), ((0, 0, 0, 255), 0, 60)):
        Image.new("CMYK", (8, 8), inks).save(tmp_path / f"a.{suffix}")
        rgb = read_pixels(tmp_path / f"a.{suffix}")[4, 4]
        assert read_rgb(tmp_path / f"a.{suffix}").getpixel((4, 4)) == tuple(rgb)
        assert darkest <= rgb.min()
        assert rgb.max() <= brightest


@pytest.mark.parametrize("bits", (8, 16))
def test_inks_of_a_profile_become_the_colours_that_pillow_gives_them(tmp_path: Path, bits: int) -> None:
    image = pyvips.Image.new_from_array(smooth(24, 40)).copy(interpretation="srgb")
    inks = image.icc_transform("cmyk", input_profile="srgb", embedded=False)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(inks.get("icc-profile-data")))
    printed = Image.fromarray(inks.numpy(), "CMYK")
    expected = np.array(ImageCms.profileToProfile(printed, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"))
    inks = inks if bits == 8 else (inks * 257).cast("ushort").copy(interpretation="cmyk")
    inks.tiffsave(str(tmp_path / "a.tif"))
    with read_raster(tmp_path / "a.tif") as read:
        assert (read.bits, read.metadata.profile) == (bits, None)
        assert np.abs(pixels(read) / (257 if bits == 16 else 1) - expected).max() <= 1.5


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_array(smooth(24, 40)).copy(interpretation="srgb")
    image.colourspace("lab").tiffsave(str(tmp_path / "a.tif"))
    assert np.abs(read_pixels(tmp_path / "a.tif") / 257 - smooth(24, 40)).max() <= 1


def test_gray_with_alpha_takes_its_profile(tmp_path: Path) -> None:
    values = np.dstack([smooth(8, 9)[..., 0], noise(8, 9)])
    gray_profile = icc_profile().replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC")
    Image.fromarray(values, "LA").save(tmp_path / "a.png", icc_profile=gray_profile)
    back = read_pixels(tmp_path / "a.png")
    assert np.array_equal(back[..., 3], values[..., 1])
    assert np.abs(back[..., :3] - gamma_to_srgb(values[..., :1].astype(float), 255)).max() <= 1.5


def test_more_than_8_bits_of_an_avif_stay(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_array(smooth(24, 40)).copy(interpretation="srgb")
    image = (image * 257).cast("ushort").copy(interpretation="rgb16")
    try:
        image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=10, Q=95, subsample_mode="off")
    except pyvips.Error:
        pytest.skip("this libvips cannot write AVIF")
    assert read_header(tmp_path / "a.avif").bits == 16
    assert np.abs(read_pixels(tmp_path / "a.avif") / 257 - smooth(24, 40)).mean() < 2


@needs_avif
@KEEPERS
def test_avif_is_read_upright_with_its_alpha(tmp_path: Path, on_disk: bool) -> None:
    path, upright = tmp_path / "a.avif", np.dstack([smooth(24, 40), noise(24, 40)])
    Image.fromarray(np.ascontiguousarray(stored(upright, 6))).save(path, quality=100, exif=exif_of(6))
    assert read_header(path) == Header((40, 24), 1, 8, True)
    back = read_pixels(path, folder=tmp_path if on_disk else None).astype(int)
    assert np.array_equal(back[..., 3], upright[..., 3])
    assert np.abs(back[..., :3] - upright[..., :3]).mean() < 3


def frames(number: int = 3, height: int = 10, width: int = 14) -> list[Array]:
    """Frames of few colours, so that a palette holds them exactly."""
    colours = noise(7, 3)
    return [colours[(noise(height, width) + i) % 7] for i in range(number)]


@KEEPERS
@pytest.mark.parametrize("suffix", ("gif", "webp"))
def test_all_frames_of_an_animation_are_read_with_delays_and_loops(tmp_path: Path, suffix: str, on_disk: bool) -> None:
    path, expected = tmp_path / f"a.{suffix}", frames()
    images = [Image.fromarray(frame) for frame in expected]
    options = {"lossless": True} if suffix == "webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=[50, 120, 90], loop=3, **options)
    assert read_header(path).frames == 3
    with read_raster(path, folder=tmp_path if on_disk else None) as read:
        assert (read.frames, read.size) == (3, (14, 10))
        assert read.metadata.delays_ms == (50, 120, 90)
        # GIF counts how often it is repeated
        assert read.metadata.loops == (4 if suffix == "gif" else 3)
        for i, frame in enumerate(expected):
            rgb = read.picture(i).rgb.permute(1, 2, 0).numpy() * 255
            assert np.array_equal(rgb.round(), frame)


def test_of_an_animated_png_and_a_tiff_of_pages_all_frames_are_read(tmp_path: Path) -> None:
    expected = frames(2)
    images = [Image.fromarray(frame) for frame in expected]
    for suffix in ("png", "tif"):
        images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:])
        assert read_header(tmp_path / f"a.{suffix}").frames == 2
        assert np.array_equal(read_pixels(tmp_path / f"a.{suffix}")[..., :3], np.concatenate(expected))


@pytest.mark.parametrize("suffix", ("png", "jpg", "tif", "webp", "bmp"))
@pytest.mark.parametrize("orientation", (1, 6))
@pytest.mark.parametrize("max_size_px", (300, 149, 40, 20, 6))
def test_pictures_are_shrunk_to_their_longer_side(
    tmp_path: Path, suffix: str, orientation: int, max_size_px: int
) -> None:
    path, upright = tmp_path / f"a.{suffix}", smooth(200, 301)
    lying = Image.fromarray(np.ascontiguousarray(stored(upright, orientation if suffix != "bmp" else 1)))
    options = {} if suffix == "bmp" else {"exif": exif_of(orientation)}
    options |= {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    lying.save(path, **options)
    back = read_pixels(path, max_size_px=max_size_px)
    size = max_size_px, max(1, round(200 * max_size_px / 301))
    assert back.shape == (*size[::-1], 3)
    expected = np.asarray(Image.fromarray(upright).resize(size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(back - expected).mean() < 2
    assert np.abs(back - expected).max() < 12


def test_small_pictures_are_not_enlarged(tmp_path: Path) -> None:
    Image.fromarray(noise(5, 7, 3)).save(tmp_path / "a.png")
    assert np.array_equal(read_pixels(tmp_path / "a.png", max_size_px=7), noise(5, 7, 3))
    assert np.array_equal(read_pixels(tmp_path / "a.png", max_size_px=70), noise(5, 7, 3))


def test_what_is_not_seen_does_not_bleed_into_a_shrunk_picture(tmp_path: Path) -> None:
    values = np.zeros((32, 32, 4), np.uint8)
    values[:, :16] = (200, 100, 50, 255)
    values[:, 16:] = (0, 255, 0, 0)
    for suffix in ("png", "tga"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        back = read_pixels(tmp_path / f"a.{suffix}", max_size_px=8)
        seen = back[back[..., 3] > 30][:, :3].astype(int)
        assert np.abs(seen - [200, 100, 50]).max() <= 3
        assert back[..., 3].min() == 0


def test_shrunk_frames_do_not_run_into_each_other(tmp_path: Path) -> None:
    images = [Image.new("RGB", (40, 20), colour) for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0))]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    with read_raster(tmp_path / "a.gif", max_size_px=8) as read:
        assert (read.size, read.frames) == ((8, 4), 3)
        for i, image in enumerate(images):
            assert (read.picture(i).rgb * 255).round().unique(dim=1).reshape(3, -1).T.tolist()[0] == list(
                image.getpixel((0, 0))
            )
            assert read.picture(i).rgb.flatten(1).std(1).max() == 0


def gamma_to_srgb(values: Array, white: int) -> Array:
    """Levels of `icc_profile`, whose curve is a power of 2.2, in sRGB's curve (IEC 61966-2-1)."""
    linear = (values / white) ** (563 / 256)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * white


@pytest.mark.parametrize("suffix", ("png", "png16", "jpg", "tif", "webp"))
def test_colours_of_a_profile_become_srgb_and_it_stays_in_the_notes(tmp_path: Path, suffix: str) -> None:
    profile, values = icc_profile(red=2, blue=0), smooth(24, 32)
    path = tmp_path / f"a.{suffix[:3] if suffix != 'webp' else suffix}"
    white = 65535 if suffix == "png16" else 255
    if suffix == "png16":
        values = values.astype(np.uint16) * 257
        path.write_bytes(png(values, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))))
    else:
        options = (
            {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
        )
        Image.fromarray(values).save(path, icc_profile=profile, **options)
    with read_raster(path) as read:
        assert read.metadata.profile == profile
        assert read.bits == (16 if suffix == "png16" else 8)
        expected = gamma_to_srgb(values[..., ::-1].astype(float), white)
        assert np.abs(pixels(read) - expected).max() <= (40 if suffix == "png16" else 5 if suffix == "jpg" else 1.5)


@pytest.mark.parametrize("suffix", ("png", "jpg", "tif", "webp", "bmp"))
@pytest.mark.parametrize("profile", (None, icc_profile(red=2, blue=0)), ids=("srgb", "profile"))
def test_what_is_trained_on_is_what_is_painted(tmp_path: Path, suffix: str, profile: bytes | None) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth(96, 150)).save(path, icc_profile=profile)
    for size in ((150, 96), (75, 48), (50, 32)):
        with open_picture(path) as picture:
            trained = picture.read_rgb(size).astype(int)
        painted = read_pixels(path, max_size_px=size[0])
        # a JPEG that is painted is shrunk by the better filter alone
        limit = 4 if suffix == "jpg" and size != (150, 96) else 1 if profile else 0
        assert np.abs(trained - painted).max() <= limit


def test_an_srgb_profile_changes_no_level_and_stays(tmp_path: Path) -> None:
    values = noise(9, 13, 3)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=SRGB)
    with read_raster(tmp_path / "a.png") as read:
        assert np.array_equal(pixels(read), values)
        write_raster(tmp_path / "b.png", read)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == SRGB
        assert np.array_equal(np.array(image), values)


def test_alpha_lies_beside_the_colours_of_a_profile_unchanged(tmp_path: Path) -> None:
    values = np.dstack([smooth(12, 15), noise(12, 15)])
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=icc_profile(red=2, blue=0))
    back = read_pixels(tmp_path / "a.png")
    assert np.array_equal(back[..., 3], values[..., 3])
    assert np.abs(back[..., :3] - gamma_to_srgb(values[..., 2::-1].astype(float), 255)).max() <= 1.5


@pytest.mark.parametrize(("suffix", "tolerance"), (("png", 2), ("tif", 2), ("webp", 9), ("jpg", 4), ("avif", 9)))
def test_colours_are_written_as_the_photographs_profile_had_them(tmp_path: Path, suffix: str, tolerance: int) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    profile, values = icc_profile(red=2, blue=0), smooth(24, 32)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=profile)
    with read_raster(tmp_path / "a.png") as read:
        write_raster(tmp_path / f"b.{suffix}", read, quality=100)
    with Image.open(tmp_path / f"b.{suffix}") as image:
        assert image.info["icc_profile"] == profile
        assert np.abs(np.array(image).astype(int) - values).max() <= tolerance


@KEEPERS
def test_16_bit_colours_are_written_as_their_profile_had_them(tmp_path: Path, on_disk: bool) -> None:
    profile, values = icc_profile(red=2, blue=0), smooth(24, 32).astype(np.uint16) * 251
    path = tmp_path / "a.png"
    path.write_bytes(png(values, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))))
    with read_raster(path, folder=tmp_path if on_disk else None) as read:
        for suffix in ("png", "tif"):
            write_raster(tmp_path / f"b.{suffix}", read)
            back = pyvips.Image.new_from_file(str(tmp_path / f"b.{suffix}")).numpy()
            assert back.dtype == np.uint16
            assert np.abs(back.astype(int) - values).max() <= 40


@pytest.mark.parametrize("suffix", ("gif", "bmp", "ppm"))
def test_formats_without_profiles_are_written_in_srgb(tmp_path: Path, suffix: str) -> None:
    values = np.tile(np.array([[[200, 100, 50]]], np.uint8), (4, 5, 1))
    write_raster(tmp_path / f"a.{suffix}", raster(values, Metadata(profile=icc_profile(red=2, blue=0))))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert np.abs(np.array(image.convert("RGB")).astype(int) - values).max() <= 1


def test_profiles_of_grays_and_inks_are_left_behind(tmp_path: Path) -> None:
    gray_profile = icc_profile().replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC")
    Image.fromarray(smooth(8, 9)[..., 0]).save(tmp_path / "a.png", icc_profile=gray_profile)
    with read_raster(tmp_path / "a.png") as read:
        assert read.metadata.profile is None
        expected = gamma_to_srgb(smooth(8, 9)[..., :1].astype(float), 255)
        assert np.abs(pixels(read) - expected).max() <= 1.5


@pytest.mark.parametrize(
    "profile", (b"no profile", icc_profile()[:200], icc_profile().replace(b"RGB XYZ ", b"CMYKXYZ "))
)
def test_a_profile_that_cannot_be_used_is_logged_and_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, profile: bytes
) -> None:
    Image.fromarray(noise(6, 7, 3)).save(tmp_path / "a.tif", icc_profile=profile)
    with caplog.at_level(logging.WARNING, "stylize"), read_raster(tmp_path / "a.tif") as read:
        assert np.array_equal(pixels(read), noise(6, 7, 3))
        assert read.metadata.profile is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{tmp_path / 'a.tif'}: its colour profile cannot be used (")
    assert caplog.messages[0].endswith("); taken as sRGB")


WRITTEN = (
    ("png", 3, 8), ("png", 4, 8), ("png", 3, 16), ("png", 4, 16), ("tif", 3, 8), ("tiff", 4, 8), ("tif", 3, 16),
    ("tif", 4, 16), ("bmp", 3, 8), ("ppm", 3, 8), ("PNG", 3, 8),
)  # fmt: skip


@KEEPERS
@pytest.mark.parametrize(("suffix", "channels", "bits"), WRITTEN)
def test_lossless_formats_keep_every_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, channels: int, bits: int, on_disk: bool
) -> None:
    monkeypatch.setattr(limits, "strip_bytes", 200)
    path, values = tmp_path / f"a.{suffix}", noise(11, 13, channels, bits=bits)
    with raster(values, Metadata(bits), folder=tmp_path if on_disk else None) as original:
        write_raster(path, original)
    assert list(tmp_path.iterdir()) == [path]
    if bits == 8:
        with Image.open(path) as image:
            assert image.mode == ("RGB" if channels == 3 else "RGBA")
            assert np.array_equal(np.array(image), values)
    assert np.array_equal(read_pixels(path), values)


def test_16_bits_become_the_nearest_of_8_where_the_format_has_no_more(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16)[: 64 * 63].reshape(64, 63, 1).repeat(3, -1)
    write_raster(tmp_path / "a.ppm", raster(values, Metadata(16)))
    with Image.open(tmp_path / "a.ppm") as image:
        assert np.array_equal(np.array(image), (values.astype(int) + 128) // 257)
    for suffix in ("jpg", "webp", "gif"):
        write_raster(tmp_path / f"a.{suffix}", raster(values, Metadata(16)))
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert np.abs(np.array(image.convert("RGB")).astype(int) - values / 257).mean() < 4


@needs_avif
def test_avif_keeps_alpha_and_nearly_the_colours(tmp_path: Path) -> None:
    values = np.dstack([smooth(24, 40), noise(24, 40)])
    write_raster(tmp_path / "a.avif", raster(values))
    back = read_pixels(tmp_path / "a.avif").astype(int)
    assert np.abs(back[..., 3] - values[..., 3]).max() <= 4
    assert np.abs(back[..., :3] - values[..., :3]).mean() < 3


def test_webp_keeps_alpha_and_nearly_the_colours(tmp_path: Path) -> None:
    values = np.dstack([smooth(24, 40), np.maximum(noise(24, 40), 1)])
    write_raster(tmp_path / "a.webp", raster(values), quality=100)
    with Image.open(tmp_path / "a.webp") as image:
        back = np.array(image).astype(int)
    assert np.array_equal(back[..., 3], values[..., 3])
    assert np.abs(back[..., :3] - values[..., :3]).mean() < 3


@pytest.mark.parametrize("suffix", ("jpg", "bmp", "ppm"))
def test_alpha_is_laid_on_white_where_the_format_has_none(tmp_path: Path, suffix: str) -> None:
    values = np.dstack([smooth(24, 40), np.zeros((24, 40), np.uint8)])
    write_raster(tmp_path / f"a.{suffix}", raster(values))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.mode == "RGB"
        assert np.array(image).min() >= (253 if suffix == "jpg" else 255)


def test_a_gif_keeps_whether_a_pixel_is_seen(tmp_path: Path) -> None:
    values = np.dstack([frames(1)[0], np.where(noise(10, 14) > 127, 250, 10).astype(np.uint8)])
    write_raster(tmp_path / "a.gif", raster(values))
    with Image.open(tmp_path / "a.gif") as image:
        back = np.array(image.convert("RGBA")).astype(int)
    assert np.array_equal(back[..., 3], np.where(values[..., 3] > 127, 255, 0))
    assert np.abs(back[..., :3] - values[..., :3])[values[..., 3] > 127].max() <= 4


def test_jpegs_have_full_colour_resolution_and_quality_decides_their_size(tmp_path: Path) -> None:
    sizes = []
    for quality in (10, 95):
        write_raster(tmp_path / "a.jpg", raster(smooth(48, 64)), quality=quality)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        assert np.abs(np.array(image).astype(int) - smooth(48, 64)).max() <= 8
    assert sizes[0] < sizes[1]


@KEEPERS
@pytest.mark.parametrize("suffix", ("gif", "webp"))
@pytest.mark.parametrize("loops", (0, 1, 5))
def test_animations_keep_frames_delays_and_loops(tmp_path: Path, suffix: str, loops: int, on_disk: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    expected = frames(3, 40, 56) if suffix == "gif" else [smooth(40, 56), 255 - smooth(40, 56), smooth(40, 56)[::-1]]
    notes = Metadata(delays_ms=(50, 120, 90), loops=loops)
    with raster(np.concatenate(expected), notes, 3, tmp_path if on_disk else None) as original:
        write_raster(path, original, quality=100)
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (3, (56, 40))
        delays = []
        for i, frame in enumerate(expected):
            image.seek(i)
            image.load()
            delays.append(image.info["duration"])
            difference = np.abs(np.array(image.convert("RGB")).astype(int) - frame)
            assert difference.mean() < (1 if suffix == "gif" else 4)
        assert delays == [50, 120, 90]
    with read_raster(path) as back:
        assert (back.frames, back.metadata.delays_ms, back.metadata.loops) == (3, notes.delays_ms, loops)


def test_what_stands_still_in_an_animated_gif_does_not_flicker(tmp_path: Path) -> None:
    still, moving = smooth(40, 56), smooth(40, 56)
    moving[:8, :8] = (255, 0, 0)
    write_raster(tmp_path / "a.gif", raster(np.concatenate([still, moving]), Metadata(delays_ms=(50, 50)), 2))
    with read_raster(tmp_path / "a.gif") as back:
        first, second = (back.picture(i).rgb for i in range(2))
    assert torch.equal(first[:, 8:], second[:, 8:])
    assert (first - torch.from_numpy(still).permute(2, 0, 1) / 255).abs().max() < 0.1


@pytest.mark.parametrize("suffix", ("jpg", "bmp"))
def test_of_an_animation_a_still_format_gets_the_first_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    path, values = tmp_path / f"a.{suffix}", np.concatenate([smooth(24, 40), 255 - smooth(24, 40)])
    with caplog.at_level(logging.WARNING, "stylize"):
        write_raster(path, raster(values, frames=2))
    kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    assert caplog.messages == [f"{path}: got 2 frames, of which {kind} holds the first"]
    with Image.open(path) as image:
        assert image.size == (40, 24)
        assert np.abs(np.array(image).astype(int) - smooth(24, 40)).mean() < 4


MAKERS_NOTE = b"Maker\0" + bytes(range(200))
NOTED = ("jpg", "png", "webp", "tif", "avif")


def full_exif(order: str = "<", thumbnail: bytes = b"\xff\xd8thumbnail\xff\xd9") -> bytes:
    """An EXIF block with a thumbnail, wrong sizes, orientation 6, GPS, a maker's note, and a tag that nobody knows."""

    def ascii_or(tag: int, kind: int, content: bytes, heap: bytearray, start: int) -> bytes:
        count = len(content) // {2: 1, 7: 1, 5: 8, 3: 2, 4: 4}[kind]
        if len(content) <= 4:
            return struct.pack(f"{order}HHI", tag, kind, count) + content.ljust(4, b"\0")
        place = start + len(heap)
        heap += content
        return struct.pack(f"{order}HHII", tag, kind, count, place)

    def directory(entries: list[tuple[int, int, bytes]], start: int, link: int) -> bytes:
        heap, end = bytearray(), start + 2 + 12 * len(entries) + 4
        packed = b"".join(ascii_or(*entry, heap, end) for entry in entries)
        return struct.pack(f"{order}H", len(entries)) + packed + struct.pack(f"{order}I", link) + bytes(heap)

    def short(value: int) -> bytes:
        return struct.pack(f"{order}H", value)

    def long(value: int) -> bytes:
        return struct.pack(f"{order}I", value)

    inner = [(0x9003, 2, b"2020:01:02 03:04:05\0"), (0x927C, 7, MAKERS_NOTE), (0x9286, 7, b"UNICODE\0h\0i\0")]
    inner += [(0xA002, 3, short(999)), (0xA003, 4, long(888)), (0xA434, 2, b"a lens\0\0")]
    places = struct.pack(f"{order}6I", 48, 1, 12, 1, 30, 1)
    gps = [(1, 2, b"N\0"), (2, 5, places)]

    def first(exif_at: int, gps_at: int) -> list[tuple[int, int, bytes]]:
        return [
            (0x010E, 2, b"a lake\0\0"), (0x0112, 3, short(6)), (0x013B, 2, b"somebody\0\0"), (0x8769, 4, long(exif_at)),
            (0x8825, 4, long(gps_at)), (0x9C9B, 7, "title".encode("utf-16-le")), (0xC123, 2, b"nobody knows\0\0"),
        ]  # fmt: skip

    exif_at = 8 + len(directory(first(0, 0), 8, 0))
    gps_at = exif_at + len(directory(inner, exif_at, 0))
    second_at = gps_at + len(directory(gps, gps_at, 0))
    second = [(0x0103, 3, short(6)), (0x0201, 4, long(0)), (0x0202, 4, long(len(thumbnail)))]
    second[1] = (0x0201, 4, long(second_at + len(directory(second, second_at, 0))))
    block = directory(first(exif_at, gps_at), 8, second_at) + directory(inner, exif_at, 0) + directory(gps, gps_at, 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + block + directory(second, second_at, 0) + thumbnail


def assert_told(exif: Image.Exif, size: tuple[int, int], *, unknown: bool = True) -> None:
    assert exif.get(0x0112, 1) == 1
    assert exif[0x010E].rstrip("\0") == "a lake"
    assert exif[0x013B].rstrip("\0") == "somebody"
    assert bytes(exif[0x9C9B]) == "title".encode("utf-16-le")
    assert (0xC123 in exif) == unknown
    inner = exif.get_ifd(0x8769)
    assert inner[0x9003] == "2020:01:02 03:04:05"
    assert inner[0x927C] == MAKERS_NOTE
    assert inner[0x9286] == b"UNICODE\0h\0i\0"
    assert (inner[0xA002], inner[0xA003]) == size
    assert inner[0xA434].rstrip("\0") == "a lens"
    assert exif.get_ifd(0x8825)[2] == (48, 12, 30)


@pytest.mark.parametrize("order", "<>")
def test_exif_loses_its_thumbnail_and_orientation_and_nothing_else(order: str) -> None:
    block = full_exif(order)
    assert b"thumbnail" in block
    corrected = corrected_exif(b"Exif\0\0" + block, (40, 24))
    assert b"thumbnail" not in corrected
    assert len(corrected) == len(block) - len(b"\xff\xd8thumbnail\xff\xd9")
    exif = Image.Exif()
    exif.load(corrected)
    assert_told(exif, (40, 24))
    assert exif.get_ifd(1) == {}
    changed = [i for i, pair in enumerate(zip(block, corrected, strict=False)) if pair[0] != pair[1]]
    assert len(changed) <= 20


@pytest.mark.parametrize("content", (b"", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\0\0", full_exif()[:60]))
def test_damaged_exif_is_given_up(content: bytes) -> None:
    assert corrected_exif(content, (4, 3)) is None


def test_xmp_stands_upright_too() -> None:
    assert corrected_xmp(b"<tiff:Orientation>8</tiff:Orientation>") == b"<tiff:Orientation>1</tiff:Orientation>"
    assert corrected_xmp(b"<a tiff:Orientation = '3' b='3'>") == b"<a tiff:Orientation = '1' b='3'>"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("target", NOTED)
@pytest.mark.parametrize("source", NOTED)
def test_exif_outlasts_every_pair_of_formats(tmp_path: Path, source: str, target: str, order: str) -> None:
    if "avif" in (source, target) and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    first, second, exif = tmp_path / f"a.{source}", tmp_path / f"b.{target}", full_exif(order)
    if source == "tif":
        loaded = Image.Exif()
        loaded.load(exif)
        Image.fromarray(smooth(40, 24)).save(first, exif=loaded)
    else:
        Image.fromarray(smooth(40, 24)).save(first, exif=b"Exif\0\0" + exif)
    with read_raster(first) as read:
        assert read.size == (40, 24)
        write_raster(second, read)
        with read_raster(second) as again:
            assert again.size == (40, 24)
            assert np.abs(pixels(again).astype(int) - pixels(read)).mean() < 4
    with Image.open(second) as image:
        image.load()
        told = image.getexif()
        assert_told(told, (40, 24), unknown="tif" not in (source, target))
        assert b"thumbnail" not in second.read_bytes()


def test_exif_too_long_for_a_jpeg_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = full_exif().replace(b"nobody knows", b"nobody") + bytes(70_000)
    with caplog.at_level(logging.WARNING, "stylize"):
        write_raster(tmp_path / "a.jpg", raster(smooth(8, 8), Metadata(exif=corrected_exif(long, (8, 8)))))
    assert len(caplog.messages) == 1
    assert re.fullmatch(
        re.escape(f"{tmp_path / 'a.jpg'}: its EXIF of ") + r"7\d,\d{3} bytes is left out: JPEG holds 65,527",
        caplog.messages[0],
    )
    assert read_header(tmp_path / "a.jpg").size == (8, 8)


@pytest.mark.parametrize("suffix", ("jpg", "png", "webp", "gif"))
def test_a_file_without_exif_gets_none(tmp_path: Path, suffix: str) -> None:
    write_raster(tmp_path / f"a.{suffix}", raster(smooth(8, 8)))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert dict(image.getexif()) == {}


XMP = b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6">a lake</x:xmpmeta>'


@pytest.mark.parametrize("suffix", NOTED)
def test_xmp_outlasts_painting(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    Image.fromarray(smooth(12, 16)).save(tmp_path / "a.jpg", xmp=XMP)
    with read_raster(tmp_path / "a.jpg") as read:
        assert read.metadata.xmp == XMP.replace(b'"6"', b'"1"')
        write_raster(tmp_path / f"b.{suffix}", read)
    with read_raster(tmp_path / f"b.{suffix}") as again:
        assert again.metadata.xmp == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("suffix", ("jpg", "png", "tif", "bmp"))
def test_resolution_outlasts_painting(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(smooth(12, 16)).save(tmp_path / f"a.{suffix}", dpi=(300, 200))
    with read_raster(tmp_path / f"a.{suffix}") as read:
        assert read.metadata.dpi == pytest.approx((300, 200), abs=0.1)
        write_raster(tmp_path / f"b.{suffix}", read)
    with Image.open(tmp_path / f"b.{suffix}") as image:
        assert [float(value) for value in image.info["dpi"]] == pytest.approx([300, 200], abs=0.6)


IPTC = b"\x1c\x02\x78\x00\x06a lake\x1c\x02\x05\x00\x04dusk"


def test_iptc_outlasts_painting(tmp_path: Path) -> None:
    other = b"8BIM\x04\x0c\x01t" + struct.pack(">I", 5) + b"small" + b"\0"
    wanted = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
    resources = b"Photoshop 3.0\0" + other + wanted
    plain = saved(Image.fromarray(smooth(12, 16)), "JPEG")
    segment = b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources
    (tmp_path / "a.jpg").write_bytes(plain[:20] + segment + plain[20:])
    before = "a.jpg"
    for after in ("b.jpg", "c.tif", "d.tif", "e.jpg"):
        with read_raster(tmp_path / before) as read:
            assert read.metadata.iptc == IPTC
            write_raster(tmp_path / after, read)
        with Image.open(tmp_path / after) as image:
            found = IptcImagePlugin.getiptcinfo(image)
        assert found == {(2, 120): b"a lake", (2, 5): b"dusk"}
        before = after


@pytest.mark.parametrize("read", (read_header, read_raster))
@pytest.mark.parametrize("suffix", ("jpg", "png", "tif", "gif", "webp", "avif", "bmp"))
def test_files_that_are_no_images_are_refused(tmp_path: Path, read: Callable[[Path], object], suffix: str) -> None:
    text, folder, missing = (tmp_path / f"{name}.{suffix}" for name in "abc")
    text.write_text("no image")
    folder.mkdir()
    assert refusal(lambda: read(text)) == f"{text}: not an image of a known format"
    assert refusal(lambda: read(folder)) == f"{folder}: is a folder, must be an image file"
    assert refusal(lambda: read(missing)) == f"{missing}: no such file"
    text.write_bytes(b"")
    assert refusal(lambda: read(text)) == f"{text}: not an image of a known format"


def seeds() -> dict[str, bytes]:
    """A file of every format that is read, not tiny, some of the lesser used kinds."""
    values = smooth(60, 80)
    image = Image.fromarray(values)
    more = [Image.fromarray(255 - values), Image.fromarray(values[::-1].copy())]
    profile, noted = icc_profile(red=2, blue=0), b"Exif\0\0" + full_exif()
    files = {
        "turned.jpg": saved(image, "JPEG", exif=noted, icc_profile=profile),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "rgb.png": saved(image, "PNG", exif=noted),
        "sixteen.png": png(noise(60, 80, 4, bits=16)),
        "palette.png": saved(image.convert("P"), "PNG", transparency=3),
        "rgb.tif": saved(image, "TIFF", compression="tiff_lzw"),
        "float.tif": tiff((values[..., :1] / 255).astype(np.float32), photometric=1),
        "jpeg.tif": saved(image, "TIFF", compression="jpeg"),
        "still.gif": saved(image, "GIF"),
        "moving.gif": saved(image, "GIF", save_all=True, append_images=more, duration=[50, 60, 70]),
        "still.webp": saved(image, "WEBP", exif=noted),
        "moving.webp": saved(image, "WEBP", save_all=True, append_images=more, duration=[50, 60, 70]),
        "rgb.bmp": saved(image, "BMP"),
        "rgb.ppm": saved(image, "PPM"),
    }
    return files | ({"rgb.avif": saved(image, "AVIF")} if features.check("avif") else {})


SEEDS = seeds()


@pytest.mark.parametrize("name", SEEDS)
def test_files_cut_short_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, SEEDS[name]
    path.write_bytes(content)
    read_raster(path).close()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        path.write_bytes(content[: int(len(content) * share)])
        message = refusal(lambda: read_raster(path, folder=tmp_path))
        assert re.fullmatch(
            re.escape(str(path)) + r": (not an image of a known format|cannot be read as an image \(\S[^\n]*\S\))",
            message,
        )
        assert list(tmp_path.iterdir()) == [path]


BY_LIBTIFF = re.compile(r"_?TIFF\w+: |Estimate\w+: ")  # Pillow leaves it its own handler of errors, standard error


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_files_are_read_or_refused_in_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    draw, path, outcomes = random.Random(0), tmp_path / name, set()
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(SEEDS[name], draw))
        outcomes.add(outcome(path, lambda path: read_raster(path).close()))
        outcome(path, lambda path: read_raster(path, max_size_px=20).close())
        assert outcome(path, read_header) in ("read", "refused")
    assert "refused" in outcomes
    told = [line for line in capfd.readouterr().err.splitlines() if not BY_LIBTIFF.match(line)]
    assert told == []


@pytest.mark.parametrize("suffix", NOTED)
def test_a_picture_is_written_whatever_its_damaged_exif_holds(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    draw, path, block, kept = random.Random(0), tmp_path / f"a.{suffix}", full_exif(), 0
    for _ in range(MUTATIONS):
        exif = corrected_exif(mutated(block, draw), (16, 12))
        write_raster(path, raster(smooth(12, 16), Metadata(exif=exif)))
        with read_raster(path) as back:
            assert back.size == (16, 12)
            kept += back.metadata.exif is not None
        path.unlink()
    assert kept > MUTATIONS / 4


def test_names_need_not_be_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))
    try:
        write_raster(path, raster(noise(5, 7, 3)))
    except StylizeError:
        pytest.skip("this file system wants text")
    assert np.array_equal(read_pixels(path), noise(5, 7, 3))


@pytest.mark.parametrize("suffix", ("png", "tif"))
def test_rows_past_the_systems_cache_are_written_too(tmp_path: Path, suffix: str) -> None:
    values = noise(9, 13, 3)
    rows = RowStore(values.shape, torch.uint8, tmp_path, direct=True)
    rows.write(0, torch.from_numpy(values))
    with Raster(rows) as original:
        write_raster(tmp_path / f"a.{suffix}", original)
    assert np.array_equal(read_pixels(tmp_path / f"a.{suffix}"), values)


def test_more_pixels_than_pillow_takes_are_refused_before_decoding(tmp_path: Path) -> None:
    bomb = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    assert read_header(bomb).size == (20_000, 10_000)
    for options in ({}, {"max_size_px": 100}):
        assert refusal(lambda options=options: read_raster(bomb, **options)) == (
            f"{bomb}: got 200.0 megapixels (20000×10000), must be at most 179.0; --max-pixels lifts the limit"
        )


@pytest.mark.parametrize("suffix", ("png", "gif", "bmp"))
def test_the_limit_of_pixels_is_lifted_and_lowered_knowingly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (1000, 600)).save(path)
    assert read_raster(path, max_pixels=600_000).size == (1000, 600)
    assert refusal(lambda: read_raster(path, max_pixels=500_000)) == (
        f"{path}: got 0.6 megapixels (1000×600), must be at most 0.5; --max-pixels lifts the limit"
    )
    monkeypatch.setattr(limits, "safe_pixels", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    assert refusal(lambda: read_raster(path)) == (
        f"{path}: got 0.6 megapixels (1000×600), must be at most 0.1; --max-pixels lifts the limit"
    )
    assert read_raster(path, max_pixels=10**6).size == (1000, 600)
    assert Image.MAX_IMAGE_PIXELS == 50_000


def test_the_frames_of_an_animation_count_together(tmp_path: Path) -> None:
    images = [Image.new("L", (300, 200), level) for level in (0, 100, 200)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    assert refusal(lambda: read_raster(tmp_path / "a.gif", max_pixels=100_000)) == (
        f"{tmp_path / 'a.gif'}: got 0.2 megapixels (3 frames of 300×200), must be at most 0.1; "
        "--max-pixels lifts the limit"
    )


def test_names_that_libvips_would_take_for_options_are_names(tmp_path: Path) -> None:
    path = tmp_path / "a[page=1].png"
    write_raster(path, raster(noise(5, 7, 3)))
    assert np.array_equal(read_pixels(path), noise(5, 7, 3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("suffix", "width"), (("webp", 20_000), ("jpg", 70_000), ("gif", 70_000), ("avif", 70_000)))
def test_a_picture_too_large_for_the_format_is_refused(tmp_path: Path, suffix: str, width: int) -> None:
    path = tmp_path / f"a.{suffix}"
    message = refusal(lambda: write_raster(path, raster(np.zeros((2, width, 3), np.uint8))))
    assert re.fullmatch(re.escape(str(path)) + r": cannot be written \(\S[^\n]*\S\)", message)
    assert list(tmp_path.iterdir()) == []


@KEEPERS
@pytest.mark.parametrize("room", (0, 10, 5000))
@pytest.mark.parametrize("suffix", ("jpg", "png", "tif", "gif", "webp", "bmp", "ppm", "avif"))
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, suffix: str, room: int, on_disk: bool) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    resource = pytest.importorskip("resource")
    path = tmp_path / f"a.{suffix}"
    path.write_text("an older file")
    with raster(noise(100, 120, 3), folder=tmp_path if on_disk else None) as original:
        usual, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
        try:
            message = refusal(lambda: write_raster(path, original))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            signal.signal(signal.SIGXFSZ, handler)
    assert message == f"{path}: cannot be written (File too large)"
    assert path.read_text() == "an older file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
@pytest.mark.parametrize("name", SEEDS)
def test_a_forked_process_decodes_after_its_parent_has_read_and_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(SEEDS[name])

    def read() -> list[Array]:
        rgb = [np.asarray(read_rgb(path, side_px)) for side_px in (None, 37, 99)]
        return [*rgb, read_pixels(path), read_pixels(path, max_size_px=30)]

    write_raster(tmp_path / "a.png", raster(noise(9, 13, 3)))  # libvips' threads are there now
    expected = read()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        torch.set_num_threads(1)  # as in decoding processes: the threads of OpenMP are gone, too
        os._exit(0 if all(map(np.array_equal, read(), expected)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", SEEDS)
def test_the_header_and_several_sizes_of_a_picture_take_one_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, opened = tmp_path / name, []
    path.write_bytes(SEEDS[name])
    expected = [read_pixels(path), read_pixels(path, max_size_px=20), read_pixels(path, max_size_px=70)]
    for owner, call in ((pyvips.Source, "new_from_file"), (Image, "open")):
        usual = getattr(owner, call)
        monkeypatch.setattr(owner, call, lambda *a, usual=usual, **k: opened.append(usual) or usual(*a, **k))
    with open_picture(path) as picture:
        assert len(opened) == 1
        assert picture.header.size in ((80, 60), (60, 80))
        for max_size_px, pixels_of_size in zip((None, 20, 70), expected, strict=True):
            with picture.read(max_size_px=max_size_px) as read:
                assert np.array_equal(pixels(read), pixels_of_size)
    # Pillow reads the EXIF of a TIFF file, whenever its pixels are read
    assert len(opened) == (4 if name.endswith(".tif") else 1)


@pytest.mark.parametrize("strip_bytes", (1, 3000, 2**20))
@pytest.mark.parametrize("name", ("turned.jpg", "sixteen.png", "rgb.png", "rgb.tif", "moving.webp", "rgb.bmp"))
@pytest.mark.parametrize("max_size_px", (None, 79, 41, 20, 3))
def test_pixels_do_not_depend_on_the_strips_in_which_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, max_size_px: int | None, strip_bytes: int
) -> None:
    path = tmp_path / name
    path.write_bytes(SEEDS[name])
    expected = read_pixels(path, max_size_px=max_size_px)
    monkeypatch.setattr(limits, "strip_bytes", strip_bytes)
    assert np.array_equal(read_pixels(path, max_size_px=max_size_px), expected)


def test_a_folder_without_room_is_refused_before_decoding(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.png", raster(noise(5, 7, 3)))
    folder = tmp_path / "none"
    assert refusal(lambda: read_raster(tmp_path / "a.png", folder=folder)) == (
        f"{folder}: no temporary file can be made there (No such file or directory)"
    )


def test_an_interruption_while_encoding_is_raised_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stylize.system.row_store.RowStore.read", interrupted)
    for suffix in ("png", "jpg", "tif", "gif"):
        with pytest.raises(KeyboardInterrupt):
            write_raster(tmp_path / f"a.{suffix}", raster(noise(50, 70, 3)))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_many_threads_read_and_write_at_once(tmp_path: Path) -> None:
    kinds = ["png", "tif", "bmp", "ppm"]
    originals = [np.roll(noise(60, 70, 3), i, 0) for i in range(16)]
    failures: list[object] = []

    def work(i: int) -> None:
        try:
            path = tmp_path / f"{i}.{kinds[i % 4]}"
            with raster(originals[i], folder=tmp_path if i % 3 else None) as original:
                write_raster(path, original)
            for _ in range(3):
                assert np.array_equal(read_pixels(path, folder=tmp_path if i % 2 else None), originals[i])
            broken = tmp_path / f"{i}.broken"
            broken.write_bytes(path.read_bytes()[:2000])
            message = refusal(lambda: read_raster(broken))
            assert re.fullmatch(
                re.escape(str(broken)) + r": (cannot be read as an image \(.*\)|not an image of .*)", message
            )
        except BaseException as error:
            failures.append((i, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("bits", (8, 16))
def test_painted_pictures_are_rounded_to_the_nearest_level(bits: int) -> None:
    white = 2**bits - 1
    levels = torch.tensor([-1.0, 0.0, 0.4 / white, 0.6 / white, 1.0, 7.0]).expand(3, 1, -1)
    with raster_of([Picture(levels), Picture(1 - levels)], Metadata(bits)) as painted:
        assert (painted.size, painted.frames, painted.bits) == ((6, 1), 2, bits)
        assert pixels(painted)[0, :, 0].tolist() == [0, 0, 0, 1, white, white]
        assert pixels(painted)[1, :, 2].tolist() == [white, white, white, white - 1, 0, 0]


@pytest.mark.parametrize("bits", (8, 16))
def test_a_picture_of_a_raster_becomes_the_same_raster(bits: int) -> None:
    values = noise(6, 7, 4, bits=bits)
    picture = raster(values, Metadata(bits)).picture()
    assert picture.rgb.dtype == torch.float32
    assert picture.alpha is not None
    assert torch.equal(picture.alpha[0], torch.from_numpy(values[..., 3].astype(np.float32)) / (2**bits - 1))
    assert np.array_equal(pixels(raster_of([picture], Metadata(bits))), values)


def test_where_only_some_frames_are_transparent_the_others_are_opaque() -> None:
    rgb = torch.rand(3, 2, 4)
    with raster_of([Picture(rgb), Picture(rgb, torch.zeros(1, 2, 4))], Metadata()) as painted:
        assert painted.has_alpha
        assert pixels(painted)[:2, :, 3].min() == 255
        assert pixels(painted)[2:, :, 3].max() == 0


PEAK = """
import sys
from pathlib import Path
from stylize.pictures.reading import read_raster
from stylize.pictures.writing import write_raster
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) // 1024
folder, before = Path(sys.argv[1]).parent, peak()
with read_raster(Path(sys.argv[1]), folder=folder) as raster:
    write_raster(Path(sys.argv[2]), raster)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory by /proc")
@pytest.mark.parametrize(("source", "target", "orientation"), (("jpg", "png", 1), ("png", "jpg", 6), ("tif", "tif", 8)))
def test_a_large_picture_takes_a_share_of_its_size_in_memory(
    tmp_path: Path, source: str, target: str, orientation: int
) -> None:
    first, second = tmp_path / f"a.{source}", tmp_path / f"b.{target}"
    large = Image.new("RGB", (11000, 8000), (200, 100, 50))  # 252 MiB
    options = {"compression": "tiff_lzw"} if source == "tif" else {}
    large.save(first, exif=exif_of(orientation), **options)
    done = subprocess.run([sys.executable, "-c", PEAK, str(first), str(second)], capture_output=True, text=True)
    assert done.stderr == ""
    assert int(done.stdout) < 200
    with Image.open(second) as image:
        assert image.size == ((11000, 8000) if orientation == 1 else (8000, 11000))
