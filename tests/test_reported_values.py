"""What samples and colours mean, in painting and in training alike."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from test_images import icc_profile, refusal
from test_rasters import chunk, pixels, png, tiff

from stylize.errors import StylizeError
from stylize.inference.pixels import pixels_of
from stylize.pictures.png_color import PRIMARIES, SRGB_CURVE, SRGB_PRIMARIES, Stated, profile_of
from stylize.pictures.reading import read_raster, read_rgb
from stylize.pictures.values import Tags, range_of
from stylize.pictures.writing import write_raster

Array = NDArray[Any]
UNIT = np.linspace(0, 1, 48 * 16).reshape(16, 48, 1)
LEVELS = UNIT.repeat(3, -1) * 255
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def painted(path: Path) -> Array:
    """What painting reads, in levels of 8 bits."""
    with read_raster(path) as read:
        return pixels(read)[..., :3] / (257 if read.bits == 16 else 1)


def assert_means(path: Path, expected: Array, tolerance: float = 1) -> None:
    assert np.abs(painted(path) - expected).max() <= tolerance
    assert np.abs(np.asarray(read_rgb(path), float) - expected).max() <= tolerance + 0.5


def floats(brightest: float = 1, channels: int = 3) -> Array:
    values = UNIT.repeat(channels, -1).astype(np.float32)
    values[0, 0] = brightest
    return values


def with_white(value: float) -> Array:
    expected = LEVELS.copy()
    expected[0, 0] = value
    return expected


def opaque(values: Array) -> Array:
    return np.concatenate([values, np.full_like(values[..., :1], 1)], -1)


def integers(dtype: type, share: float = 1) -> Array:
    return np.floor(UNIT * (np.iinfo(dtype).max * share)).astype(dtype)


SAMPLES = {
    "float highlights above white are white": (tiff(floats(1.5)), with_white(255)),
    "rounding noise above white is white": (tiff(floats(1.0000001)), with_white(255)),
    "gray float highlights are white": (tiff(floats(1.5, 1), photometric=1), with_white(255)),
    "float highlights beside an alpha are white": (tiff(opaque(floats(1.01))), with_white(255)),
    "half floats": (tiff(floats(1.5).astype(np.float16)), with_white(255)),
    "infinity is white": (tiff(floats(np.inf)), with_white(255)),
    "minus infinity is black": (tiff(floats(-np.inf)), with_white(0)),
    "no number is black": (tiff(floats(np.nan)), with_white(0)),
    "no number of 16 bits is black": (tiff(floats(np.nan).astype(np.float16)), with_white(0)),
    "no number is black where white is zero": (tiff(1 - floats(np.nan, 1), photometric=0), with_white(0)),
    "floats whose white is zero": (tiff(1 - floats(0, 1), photometric=0), LEVELS),
    "unsigned integers of 32 bits": (tiff(integers(np.uint32), photometric=1), LEVELS),
    "unsigned integers of 32 bits whose white is zero": (
        tiff(2**32 - 1 - integers(np.uint32), photometric=0), LEVELS,
    ),
    "signed integers of 32 bits": (tiff(integers(np.int32), photometric=1), LEVELS),
    "signed integers of 16 bits": (tiff(integers(np.int16).repeat(3, -1)), LEVELS),
    "signed integers of 8 bits": (tiff(integers(np.int8).repeat(3, -1)), LEVELS - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_mean_what_their_type_says(tmp_path: Path, name: str) -> None:
    content, expected = SAMPLES[name]
    (tmp_path / "a.tif").write_bytes(content)
    assert_means(tmp_path / "a.tif", np.maximum(expected, 0), 2.1 if "8 bits" in name else 1)


@pytest.mark.parametrize(
    ("values", "message"),
    (
        (UNIT.astype(np.float32) * 65535, r"its samples: got \d+\.\d% above white \(1\); scale them"),
        (UNIT.astype(np.float32) * 255, r"its samples: got \d+\.\d% above white \(1\); scale them"),
        (-1 - UNIT.astype(np.float32), r"its samples: got 100\.0% below black \(0\); scale them"),
        (integers(np.uint16).astype(np.uint32), "its samples: got at most 65535 where 4294967295 is white: all"),
        (integers(np.uint16).astype(np.int32), "its samples: got at most 65535 where 2147483647 is white: all"),
    ),
)
def test_samples_that_must_mean_something_else_are_refused(tmp_path: Path, values: Array, message: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, photometric=1))
    for read in (read_raster, read_rgb):
        assert re.match(re.escape(f"{path}: ") + message, refusal(lambda read=read: read(path)))


def test_what_is_clipped_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, values = tmp_path / "a.tif", floats()
    values[:4] += 1
    path.write_bytes(tiff(values))
    read_rgb(path)
    painted(path)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{path}: its samples: 25.0% above white (1); clipped: scale them")


def test_rounding_noise_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(floats(1.0000001)))
    painted(tmp_path / "a.tif")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("number_format", "tags", "expected"),
    (
        ("float", {341: (65535.0,) * 3, 340: (0.0,) * 3}, (0, 65535)),
        ("float", {341: (1.5,)}, (0, 1)),
        ("float", {341: (float("nan"),)}, (0, 1)),
        ("ushort", {281: (4095,)}, (0, 4095)),
        ("ushort", {281: (51234,)}, (0, 65535)),
        ("uchar", {281: (255,)}, (0, 255)),
        ("short", {340: (-32768,), 341: (32767,)}, (-32768, 32767)),
        ("int", {281: (65535,)}, (0, 65535)),
        ("char", {281: (65535,)}, (0, 127)),
    ),
)
def test_a_stated_white_is_followed_unless_it_is_a_statistic(
    number_format: str, tags: dict[int, tuple[float, ...]], expected: tuple[float, float]
) -> None:
    assert tuple(range_of(number_format, Tags(tags))) == expected


@pytest.mark.parametrize("read", (read_raster, read_rgb))
def test_colours_of_no_usual_kind_are_refused_by_name(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.zeros((4, 5, 1), np.uint16), photometric=32803))
    assert refusal(lambda: read(path)).startswith(f"{path}: got a sensor's colour filters, must be gray, RGB, CMYK")


def test_inks_without_a_profile_are_the_same_colours_everywhere(tmp_path: Path) -> None:
    inks = Image.merge(
        "CMYK", [Image.fromarray((LEVELS[..., 0] * share).astype(np.uint8)) for share in (0.1, 1, 0.8, 0.2)]
    )
    inks.save(tmp_path / "a.tif")
    deep = np.asarray(inks).astype(np.uint16) * 257
    (tmp_path / "deep.tif").write_bytes(tiff(deep, photometric=5))
    (tmp_path / "float.tif").write_bytes(tiff((deep / 65535).astype(np.float32), photometric=5))
    expected = painted(tmp_path / "a.tif")
    for name in ("a.tif", "deep.tif", "float.tif"):
        assert_means(tmp_path / name, expected, 1.5)
    in_memory = pixels_of(inks).rgb[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(in_memory - expected).max() <= 1


# Colours


def linear_to_srgb(linear: Array) -> Array:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def encoded(levels: Array, gamma: float) -> Array:
    """Light in sRGB's curve of levels that are a power of it."""
    return linear_to_srgb((levels / 255) ** gamma) * 255


RGB = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
P3, ADOBE = PRIMARIES[12], (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def gama(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(primaries: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(100000 * value) for value in primaries)))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def cicp(*code_points: int) -> bytes:
    return chunk(b"cICP", bytes(code_points))


def by_pillow(levels: Array, primaries: tuple[float, ...], curve: tuple[float, ...]) -> Array:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile_of(Stated(primaries, curve))))
    converted = ImageCms.profileToProfile(Image.fromarray(levels), source, SRGB, outputMode="RGB")
    return np.asarray(converted, float)


LINEAR = profile_of(Stated(SRGB_PRIMARIES, (1.0,)))
COLOURS = {
    "no chunk is sRGB": (png(RGB), RGB),
    "a gamma of 1 is linear": (png(RGB, gama(100000)), encoded(RGB, 1)),
    "a gamma of 1/1.8": (png(RGB, gama(55556)), encoded(RGB, 1.8)),
    "a gamma of 1/2.2 is sRGB": (png(RGB, gama(45455)), RGB),
    "a gamma of 0 says nothing": (png(RGB, gama(0)), RGB),
    "a gamma of 1 in grays": (png(RGB[..., :1], gama(100000)), encoded(RGB[..., :1], 1).repeat(3, -1)),
    "a gamma of 1 in grays of 16 bits": (
        png(RGB[..., :1].astype(np.uint16) * 257, gama(100000)), encoded(RGB[..., :1], 1).repeat(3, -1),
    ),
    "primaries of grays say nothing": (png(RGB[..., :1], gama(45455) + chrm(P3)), RGB[..., :1].repeat(3, -1)),
    "sRGB's primaries say nothing": (png(RGB, chrm(SRGB_PRIMARIES)), RGB),
    "primaries of P3": (png(RGB, gama(45455) + chrm(P3)), by_pillow(RGB, P3, SRGB_CURVE)),
    "primaries of Adobe RGB": (png(RGB, gama(45455) + chrm(ADOBE)), by_pillow(RGB, ADOBE, SRGB_CURVE)),
    "primaries that no colours have": (png(RGB, chrm((0.0,) * 8)), RGB),
    "sRGB goes before a gamma": (png(RGB, chunk(b"sRGB", b"\0") + gama(100000)), RGB),
    "a profile goes before a gamma": (png(RGB, gama(45455) + iccp(LINEAR)), encoded(RGB, 1)),
    "code points go before a profile": (png(RGB, cicp(1, 13, 0, 1) + iccp(LINEAR)), RGB),
    "code points of linear light": (png(RGB, cicp(1, 8, 0, 1)), encoded(RGB, 1)),
    "code points of P3": (png(RGB, cicp(12, 13, 0, 1)), by_pillow(RGB, P3, SRGB_CURVE)),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOURS)
def test_colours_mean_what_a_png_states(tmp_path: Path, name: str) -> None:
    content, expected = COLOURS[name]
    (tmp_path / "a.png").write_bytes(content)
    assert_means(tmp_path / "a.png", expected, 1.1)


@pytest.mark.parametrize("name", COLOURS)
def test_stated_colours_show_the_same_after_writing(tmp_path: Path, name: str) -> None:
    content, expected = COLOURS[name]
    (tmp_path / "a.png").write_bytes(content)
    with read_raster(tmp_path / "a.png") as read:
        write_raster(tmp_path / "b.png", read)
    assert np.abs(painted(tmp_path / "b.png") - expected).max() <= 12  # dark levels of linear light are far apart
    assert np.abs(painted(tmp_path / "b.png") - expected).mean() <= 1


def test_the_primaries_of_p3_are_those_of_its_profile() -> None:
    red = ImageCms.ImageCmsProfile(io.BytesIO(profile_of(Stated(P3, SRGB_CURVE)))).profile.red_colorant
    assert red[0] == pytest.approx((0.5151, 0.2412, -0.0011), abs=2e-3)


@pytest.mark.parametrize(("transfer", "curve"), ((16, "PQ"), (18, "HLG")))
@pytest.mark.parametrize("read", (read_raster, read_rgb))
def test_high_dynamic_range_is_refused_by_name(tmp_path: Path, transfer: int, curve: str, read: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(RGB, cicp(9, transfer, 0, 1)))
    assert refusal(lambda: read(path)).startswith(f"{path}: got {curve} of high dynamic range (cICP), must be")


def renamed(profile: bytes, name: bytes) -> bytes:
    """The profile with another description of at most seven letters."""
    assert b"swapped" in profile
    return profile.replace(b"swapped", name.ljust(7))


@pytest.mark.parametrize("suffix", ("png", "jpg", "tif"))
def test_a_profile_called_srgb_is_converted_if_its_curve_is_another(tmp_path: Path, suffix: str) -> None:
    profile = renamed(icc_profile(), b"sRGB").replace(struct.pack(">IH", 1, 563), struct.pack(">IH", 1, 256))
    path = tmp_path / f"a.{suffix}"
    smooth = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    Image.fromarray(smooth).save(path, icc_profile=profile, **({"quality": 100} if suffix == "jpg" else {}))
    assert_means(path, encoded(smooth, 1), 1.5 if suffix != "jpg" else 6)


@pytest.mark.parametrize("name", (b"sRGB", b"another"))
def test_a_profile_that_is_srgb_under_any_name_changes_no_level(tmp_path: Path, name: bytes) -> None:
    profile = profile_of(Stated(SRGB_PRIMARIES, SRGB_CURVE))
    profile = profile.replace("stated".encode("utf-16-be"), name.decode().ljust(6)[:6].encode("utf-16-be"))
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(painted(tmp_path / "a.png"), RGB)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), RGB)


@pytest.mark.parametrize("progressive", (False, True))
@pytest.mark.parametrize("read", ("painting", "training"))
def test_a_jpeg_whose_copy_broke_off_is_refused_and_one_that_is_filled_up_is_not(
    tmp_path: Path, progressive: bool, read: str
) -> None:
    path = tmp_path / "a.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90, progressive=progressive)
    whole = path.read_bytes()

    def decode() -> None:
        if read == "painting":
            read_raster(path).close()
        else:
            read_rgb(path)

    path.write_bytes(whole + bytes(len(whole)))  # as cameras do
    decode()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(StylizeError, match=r"a\.jpg: cannot be read as an image"):
        decode()


DAMAGED = {
    "an end after half": lambda whole: whole[: len(whole) // 2] + b"\xff\xd9",
    "a hole": lambda whole: whole[: len(whole) // 2] + whole[len(whole) // 2 + 500 :],
}


@pytest.mark.parametrize("read", ("painting", "training"))
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_jpeg_with_damage_is_read_and_told(
    tmp_path: Path, damage: str, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    if read == "painting":
        read_raster(path).close()
    else:
        read_rgb(path, 64)
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [f"{path}: its data are damaged"]
