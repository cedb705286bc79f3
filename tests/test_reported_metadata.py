"""What files carry beside their pixels: marks, texts, EXIF, XMP, orientation and transparency."""

import io
import logging
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fixtures_runs import write_model
from PIL import Image, IptcImagePlugin, features
from test_images import icc_profile
from test_jobs import budget

import stylize
from stylize.cli.apply import apply
from stylize.errors import StylizeError
from stylize.inference.file_painter import FileOptions
from stylize.inference.jobs import Job, paint_files
from stylize.models.blends import blend_of
from stylize.pictures.mark import is_painted, mark_of
from stylize.pictures.reading import read_header, read_raster, read_rgb
from stylize.pictures.xmp import corrected_xmp

SUFFIXES = ("jpg", "png", "webp", "tif", "gif", "avif", "bmp", "ppm")


def ramp(mode: str = "RGB", width: int = 64, height: int = 48) -> Image.Image:
    levels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(levels).convert(mode)


def model(folder: Path) -> stylize.Model:
    return stylize.load(write_model(folder / "model.safetensors"), device="cpu")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_painted_files_carry_a_mark_and_photographs_none(tmp_path: Path, suffix: str) -> None:
    photograph = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x010E] = "x" * 30_000
    exif.get_ifd(0x8769)[0x927C] = bytes(30_000)
    options = {"exif": exif, "icc_profile": None} if suffix not in ("gif", "bmp", "ppm") else {}
    ramp().save(photograph, **options)
    assert not is_painted(photograph)
    painted = model(tmp_path).apply_file(photograph, tmp_path / f"b.{suffix}", strength=0)
    assert is_painted(painted)
    twice = model(tmp_path).apply_file(painted, tmp_path / f"c.{suffix}", strength=0)
    assert painted.read_bytes().count(b"Painted by stylize") == twice.read_bytes().count(b"Painted by stylize") == 1
    with Image.open(painted) as image:
        image.load()
        assert image.size == (64, 48)
    with read_raster(painted) as read:
        assert read.size == (64, 48)


def test_what_cannot_be_read_is_not_painted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(mark_of("dots"))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    names = ("a.png", "empty.png", "folder.png", "missing.png", "nul\0.png", "x" * 300)
    assert not any(is_painted(tmp_path / name) for name in names)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(image: Image.Image, before: Sequence[bytes] = (), after: Sequence[bytes] = ()) -> bytes:
    """A PNG file with chunks before and after its pixels."""
    content = io.BytesIO()
    image.save(content, "PNG")
    whole = content.getvalue()
    return whole[:33] + b"".join(before) + whole[33:-12] + b"".join(after) + whole[-12:]


def jpeg(image: Image.Image, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with segments (marker, content) after its first."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=100, subsampling=0)
    whole = content.getvalue()
    added = b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(s) + 2) + s for m, s in segments)
    return whole[:20] + added + whole[20:]


def exif(orientation: int | None = None) -> bytes:
    block = Image.Exif()
    block[0x010F] = "Maker"
    if orientation is not None:
        block[0x0112] = orientation
    return block.tobytes().removeprefix(b"Exif\0\0")


def raw_profile(kind: str, content: bytes, name: bytes = b"zTXt") -> bytes:
    lines = f"\n{kind}\n{len(content):8d}\n" + "\n".join(re.findall(".{1,72}", content.hex())) + "\n"
    text = b"\0" + zlib.compress(lines.encode()) if name == b"zTXt" else lines.encode()
    return chunk(name, f"Raw profile type {kind}".encode() + b"\0" + text)


def xmp(body: str = "", attributes: str = 'tiff:Orientation="6"', prefix: str = "tiff") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:{prefix}="http://ns.adobe.com/tiff/1.0/" {attributes}>{body}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


ELEMENT = xmp("<tiff:Orientation> 6 </tiff:Orientation>", "")
OTHER_PREFIX = xmp(attributes="t:Orientation='6'", prefix="t")
XMP_SEGMENT, EXIF_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0", b"Exif\0\0"


def packed(packet: bytes, compressed: bool = False) -> bytes:
    content = zlib.compress(packet) if compressed else packet
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([compressed]) + b"\0\0\0" + content)


def saved(image_format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    ramp().save(content, image_format, **options)
    return content.getvalue()


def oriented(kind: str) -> bytes:
    """A file of a picture that lies on its side (orientation 6)."""
    image, third = ramp(), xmp(attributes='tiff:Orientation="3"')
    return {
        "PNG, EXIF before the pixels": lambda: png(image, [chunk(b"eXIf", exif(6))]),
        "PNG, EXIF after the pixels": lambda: png(image, (), [chunk(b"eXIf", exif(6))]),
        "PNG, raw profile exif": lambda: png(image, [raw_profile("exif", EXIF_SEGMENT + exif(6))]),
        "PNG, raw profile exif, not compressed": lambda: png(image, [raw_profile("exif", exif(6), b"tEXt")]),
        "PNG, raw profile APP1 after the pixels": lambda: png(image, (), [raw_profile("APP1", EXIF_SEGMENT + exif(6))]),
        "PNG, raw profile xmp": lambda: png(image, [raw_profile("xmp", xmp())]),
        "PNG, raw profile APP1 of XMP": lambda: png(image, [raw_profile("APP1", XMP_SEGMENT + xmp())]),
        "PNG, XMP": lambda: png(image, [packed(xmp())]),
        "PNG, XMP after the pixels, compressed": lambda: png(image, (), [packed(ELEMENT, True)]),
        "PNG, XMP in zTXt": lambda: png(image, [chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(xmp()))]),
        "PNG, EXIF before XMP": lambda: png(image, [packed(third)], [chunk(b"eXIf", exif(6))]),
        "PNG, EXIF without orientation beside XMP": lambda: png(image, [chunk(b"eXIf", exif()), packed(xmp())]),
        "PNG, EXIF of orientation 0 beside XMP": lambda: png(image, [chunk(b"eXIf", exif(0)), packed(xmp())]),
        "JPEG, EXIF": lambda: jpeg(image, (0xE1, EXIF_SEGMENT + exif(6))),
        "JPEG, XMP attribute": lambda: jpeg(image, (0xE1, XMP_SEGMENT + xmp())),
        "JPEG, XMP element": lambda: jpeg(image, (0xE1, XMP_SEGMENT + ELEMENT)),
        "JPEG, XMP of another prefix": lambda: jpeg(image, (0xE1, XMP_SEGMENT + OTHER_PREFIX)),
        "JPEG, EXIF before XMP": lambda: jpeg(
            image, (0xE1, XMP_SEGMENT + third), (0xE1, EXIF_SEGMENT + exif(6))
        ),
        "WebP, EXIF": lambda: saved("WEBP", lossless=True, exif=exif(6)),
        "WebP, XMP": lambda: saved("WEBP", lossless=True, xmp=xmp()),
        "TIFF, tag": lambda: saved("TIFF", tiffinfo={0x0112: 6}),
        "TIFF, XMP": lambda: saved("TIFF", tiffinfo={700: xmp()}),
        "TIFF, tag before XMP": lambda: saved("TIFF", tiffinfo={0x0112: 6, 700: third}),
        "AVIF, box": lambda: saved("AVIF", quality=100, subsampling="4:4:4", exif=exif(6)),
    }[kind]()  # fmt: skip


ORIENTED = (
    "PNG, EXIF before the pixels", "PNG, EXIF after the pixels", "PNG, raw profile exif",
    "PNG, raw profile exif, not compressed", "PNG, raw profile APP1 after the pixels", "PNG, raw profile xmp",
    "PNG, raw profile APP1 of XMP", "PNG, XMP", "PNG, XMP after the pixels, compressed", "PNG, XMP in zTXt",
    "PNG, EXIF before XMP", "PNG, EXIF without orientation beside XMP", "PNG, EXIF of orientation 0 beside XMP",
    "JPEG, EXIF", "JPEG, XMP attribute", "JPEG, XMP element", "JPEG, XMP of another prefix", "JPEG, EXIF before XMP",
    "WebP, EXIF", "WebP, XMP", "TIFF, tag", "TIFF, XMP", "TIFF, tag before XMP", "AVIF, box",
)  # fmt: skip


@pytest.mark.parametrize("kind", ORIENTED)
def test_a_picture_stands_upright_wherever_its_orientation_is_given(tmp_path: Path, kind: str) -> None:
    if "AVIF" in kind and not features.check("avif"):
        pytest.skip("Pillow writes no AVIF here")
    path = tmp_path / f"a.{kind.split(',')[0].lower()}".replace(".jpeg", ".jpg")
    path.write_bytes(oriented(kind))
    expected = np.asarray(ramp().transpose(Image.Transpose.ROTATE_270)).astype(int)
    trained = np.asarray(read_rgb(path)).astype(int)
    assert read_header(path).size == (48, 64)
    tolerance = 6 if path.suffix in (".jpg", ".avif") else 0
    assert abs(trained - expected).max() <= tolerance
    painted = model(tmp_path).apply_file(path, tmp_path / "b.png", strength=0)
    with Image.open(painted) as image:
        image.load()
        assert abs(np.asarray(image).astype(int) - trained).max() <= 1
        assert image.getexif().get(0x0112, 1) == 1
        assert not re.search(rb"Orientation[=>\"' ]+[2-8]", image.info.get("xmp", b""))
        has_exif, has_xmp = "EXIF" in kind or "raw profile exif" in kind or "APP1 after" in kind, "XMP" in kind
        assert not has_exif or image.getexif()[0x010F] == "Maker"
        assert not has_xmp or b"rdf:RDF" in image.info["xmp"]


TEXTS = [
    chunk(b"tEXt", b"Author\0J\xf6rg"),
    chunk(b"iTXt", b"Title\0\0\0de-DE\0Titel\0" + "Kätzchen 長".encode()),
    chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"caf\xe9 " * 100)),
    chunk(b"iTXt", b"Description\0\1\0\0\0" + zlib.compress("長い".encode())),
]


@pytest.mark.parametrize("is_after", (False, True))
def test_texts_of_a_png_stay_what_they_are(tmp_path: Path, is_after: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(ramp(), () if is_after else TEXTS, TEXTS if is_after else ()))
    painted = model(tmp_path).apply_file(path, tmp_path / "b.png", strength=0)
    with Image.open(painted) as image:
        image.load()
        assert image.text["Author"] == "Jörg"
        title = image.text["Title"]
        assert (title, title.lang, title.tkey) == ("Kätzchen 長", "de-DE", "Titel")
        assert image.text["Comment"] == "café " * 100
        assert image.text["Description"] == "長い"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def comments_of(path: Path) -> list[bytes]:
    with read_raster(path) as read:
        return [text.as_comment() for text in read.metadata.texts]


@pytest.mark.parametrize("suffix", ("jpg", "gif", "ppm", "png"))
def test_comments_and_their_equivalents_pass_between_formats(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(ramp(), TEXTS))
    painted = model(tmp_path).apply_file(path, tmp_path / f"b.{suffix}", strength=0)
    comments = [("café " * 100).encode(), "長い".encode()]
    if suffix != "png":
        assert [c.strip() for c in comments_of(painted)] == [c.strip() for c in comments]
        (told,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert told.endswith("has no place for it: texts (Author, Title)")
    back = model(tmp_path).apply_file(painted, tmp_path / "c.png", strength=0)
    assert [c.strip() for c in comments_of(back)][-2:] == [c.strip() for c in comments]


def test_comments_of_a_jpeg_stay_byte_by_byte(tmp_path: Path) -> None:
    comments = [b"first", b"\0\xff\xfe not a text", "zweiter: ä".encode(), b""]
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(ramp(), *((0xFE, comment) for comment in comments)))
    painted = model(tmp_path).apply_file(path, tmp_path / "b.jpg", strength=0)
    assert comments_of(path) == comments_of(painted) == comments
    with Image.open(painted) as image:
        assert image.info["comment"] == b""  # the last


def test_extended_xmp_stays_in_a_jpeg_and_is_told_of_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest, long = b"0123456789ABCDEF" * 2, b"<x>" + b"y" * 150_000 + b"</x>"
    note = 'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP='
    main = xmp(attributes=f'{note}"{digest.decode()}"')
    head = b"http://ns.adobe.com/xmp/extension/\0" + digest
    parts = [head + struct.pack(">II", len(long), at) + long[at : at + 60_000] for at in range(0, len(long), 60_000)]
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(ramp(), (0xE1, XMP_SEGMENT + main), *((0xE1, part) for part in reversed(parts))))
    painted = model(tmp_path).apply_file(path, tmp_path / "b.jpg", strength=0)
    with read_raster(painted) as read:
        assert (read.metadata.xmp, read.metadata.xmp_extension) == (main, long)
    assert not caplog.records
    model(tmp_path).apply_file(path, tmp_path / "b.png", strength=0)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / 'b.png'}: left out, for PNG has no place for it: extended XMP"
    ]


def test_xmp_and_comments_too_long_for_a_jpeg_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = chunk(b"tEXt", b"Comment\0" + b"x" * 70_000)
    path = tmp_path / "a.png"
    path.write_bytes(png(ramp(), [packed(xmp("y" * 70_000)), long]))
    model(tmp_path).apply_file(path, tmp_path / "b.jpg", strength=0)
    told = " ".join(r.getMessage() for r in caplog.records)
    assert "its XMP of " in told and "its comment of 70,000 bytes is left out: JPEG holds 65,533" in told


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
def test_a_compressed_text_takes_no_memory_out_of_proportion(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(400 * 2**20), 9)
    path = tmp_path / "a.png"
    path.write_bytes(png(ramp(), [chunk(b"zTXt", b"Comment\0\0" + bomb), TEXTS[0], raw_profile("exif", exif(6))]))
    code = (
        "import resource, sys; from pathlib import Path; from stylize.pictures.reading import read_raster\n"
        "m = read_raster(Path(sys.argv[1])).metadata\n"
        "print(m.left_out, [t.keyword for t in m.texts], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    read = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert "a damaged text, or more than 8 MiB of texts" in read and "['Author']" in read
    empty = tmp_path / "b.png"
    ramp().save(empty)
    without = subprocess.run([sys.executable, "-c", code, empty], capture_output=True, text=True, check=True).stdout
    assert int(read.split()[-1]) - int(without.split()[-1]) < 64 * 1024


def test_iptc_passes_through_a_png(tmp_path: Path) -> None:
    iptc = b"\x1c\2\x78" + struct.pack(">H", 7) + b"caption"
    resources = b"Photoshop 3.0\x008BIM\4\4" + struct.pack(">HI", 0, len(iptc)) + iptc
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(ramp(), (0xED, resources)))
    middle = model(tmp_path).apply_file(path, tmp_path / "b.png", strength=0)
    with read_raster(middle) as read:
        assert read.metadata.iptc == iptc
    last = model(tmp_path).apply_file(middle, tmp_path / "c.jpg", strength=0)
    with Image.open(last) as image:
        assert IptcImagePlugin.getiptcinfo(image)[2, 120] == b"caption"


def see_through() -> Image.Image:
    """Gray, hidden magenta on the right, and between them an edge of half opacity."""
    pixels = np.full((48, 64, 4), (100, 100, 100, 255), np.uint8)
    pixels[:, 32:] = 255, 0, 255, 0
    pixels[:, 30:32, 3] = 128
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("suffix", "background", "hidden"),
    [("bmp", None, (255,) * 3), ("jpg", None, (255,) * 3), ("ppm", None, (255,) * 3), ("bmp", "navy", (0, 0, 128)),
     ("png", "#ff8000", (255, 128, 0)), ("gif", "red", (255, 0, 0)), ("tif", "rgb(1, 2, 3)", (1, 2, 3))],
)  # fmt: skip
@pytest.mark.parametrize("source", ("png", "webp", "tif"))
def test_hidden_colours_never_show(
    tmp_path: Path, source: str, suffix: str, background: str | None, hidden: tuple[int, int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / f"a.{source}"
    see_through().save(path, **({"lossless": True, "exact": True} if source == "webp" else {}))
    painted = model(tmp_path).apply_file(path, tmp_path / f"b.{suffix}", strength=0, background=background)
    with Image.open(painted) as image:
        pixels = np.asarray(image.convert("RGBA")).astype(int)
    tolerance = 12 if suffix in ("jpg", "gif") else 1
    edge = (np.array((100, 100, 100)) * 128 + np.array(hidden) * 127) / 255
    assert pixels[..., 3].min() == 255
    assert abs(pixels[:, 40:, :3] - hidden).max() <= tolerance
    assert abs(pixels[:, :26, :3] - 100).max() <= tolerance
    assert suffix == "jpg" or abs(pixels[:, 30:32, :3] - edge).max() <= tolerance
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == (background is None)


def test_hidden_colours_do_not_reach_the_strokes(tmp_path: Path) -> None:
    see_through().save(tmp_path / "a.png")
    other = np.array(see_through())
    other[:, 32:, :3] = 0, 255, 0
    Image.fromarray(other).save(tmp_path / "b.png")
    painted = [model(tmp_path).apply_file(tmp_path / f"{n}.png", tmp_path / f"{n}.bmp") for n in "ab"]
    first, second = (np.asarray(Image.open(path)) for path in painted)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("text", ("no colour", "", "#12", "#11223344", "rgb(300, 0, 0)", "x" * 1000))
def test_a_background_that_is_no_colour_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    see_through().save(tmp_path / "a.png")
    with pytest.raises(StylizeError, match=r"^background: got '.*', must be an opaque colour") as refusal:
        model(tmp_path).apply_file(tmp_path / "a.png", background=text)
    assert len(str(refusal.value)) < 300


def test_losses_of_a_folder_are_summed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    for i in range(5):
        see_through().save(tmp_path / "in" / f"{i}.png")
    write_model(tmp_path / "model.safetensors")
    painter = stylize.load(tmp_path / "model.safetensors", device="cpu")
    options = FileOptions(budget(tmp_path), style="dots", overwrite=True)
    jobs = [Job(path, tmp_path / f"{path.stem}.bmp") for path in sorted((tmp_path / "in").iterdir())]
    stylizer = painter._stylizer_for(blend_of(None, painter.styles))
    assert all(item.error is None for item in paint_files(jobs, stylizer, options))
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 2
    assert "its transparency is laid on white, for BMP has none" in told[0]
    assert told[1].startswith("4 more of the files: its transparency is laid on white")


@pytest.mark.parametrize(
    ("source", "suffix", "said"),
    [
        ("EXIF", "bmp", "left out, for BMP has no place for it: EXIF"),
        ("16 bits", "jpg", "16 bits become 8, the most that JPEG is written with"),
        ("profile", "gif", "its colours become sRGB, for GIF has no place for a colour profile"),
        ("soft edge", "gif", "partly transparent pixels are shown or hidden, for GIF has nothing in between"),
        ("texts", "webp", "left out, for WEBP has no place for it: texts (Author, Title, Comment, Description)"),
        ("damaged EXIF", "png", "not kept: damaged EXIF"),
        ("damaged text", "png", "not kept: a damaged text, or more than 8 MiB of texts"),
    ],
)
def test_what_a_format_cannot_hold_is_told_in_one_line(
    tmp_path: Path, source: str, suffix: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    if source == "16 bits":
        Image.fromarray(np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)).save(path)
    elif source == "profile":
        ramp().save(path, icc_profile=icc_profile(red=2, blue=0))
    elif source == "soft edge":
        see_through().save(path)
    else:
        chunks = {
            "EXIF": [chunk(b"eXIf", exif(1))], "texts": TEXTS,
            "damaged EXIF": [chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")],
            "damaged text": [chunk(b"zTXt", b"Comment\0\0nothing")],
        }  # fmt: skip
        path.write_bytes(png(ramp(), chunks[source]))
    model(tmp_path).apply_file(path, tmp_path / f"b.{suffix}", strength=0)
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / f'b.{suffix}'}: {said}"]


def test_sides_that_xmp_gives_agree_with_the_picture() -> None:
    packet = (
        b'<a tiff:ImageWidth="640" tiff:ImageLength="480" other:ImageWidth="7"><exif:PixelXDimension>640'
        b"</exif:PixelXDimension><exif:PixelYDimension>480</exif:PixelYDimension></a>"
    )
    corrected = corrected_xmp(packet, (48, 64))
    assert corrected == packet.replace(b'"640"', b'"48"').replace(b'"480"', b'"64"').replace(b">640", b">48").replace(
        b">480", b">64"
    )


def test_the_command_lays_transparency_on_a_colour(tmp_path: Path) -> None:
    see_through().save(tmp_path / "a.png")
    command = ["apply", str(tmp_path / "a.png"), "--model", str(write_model(tmp_path / "model.safetensors"))]
    command += ["--strength", "0", "-o", str(tmp_path / "b.png"), "--background"]
    done = CliRunner().invoke(apply, [*command[1:], "teal"], catch_exceptions=False)
    assert done.exit_code == 0
    with Image.open(tmp_path / "b.png") as image:
        assert (image.mode, image.getpixel((60, 20))) == ("RGB", (0, 128, 128))
    with pytest.raises(StylizeError, match=r"^--background: got 'tea', must be an opaque colour"):
        CliRunner().invoke(apply, [*command[1:], "tea"], catch_exceptions=False)
