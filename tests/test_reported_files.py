"""Which picture of a file is read, which files of a folder are taken, and what they cost."""

import io
import json
import logging
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fixtures_runs import picture, write_model
from PIL import Image, PngImagePlugin, features
from test_images import refusal

import stylize
from stylize.cli.apply import apply
from stylize.cli.check_data import check_data
from stylize.inference.jobs import plan_jobs
from stylize.pictures.find import find_images, search_folder
from stylize.pictures.formats import FORMATS
from stylize.pictures.mark import mark_of
from stylize.pictures.plugins import register
from stylize.pictures.raster import Header, Metadata, Raster
from stylize.pictures.reading import open_picture, read_header, read_raster, read_rgb, size_to_train_on
from stylize.pictures.writing import write_raster
from stylize.training.photographs import ContentConfig, find_photographs

Entries = dict[int, int | bytes]
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, MAKE, OFFSET, SAMPLES, ROWS, COUNT = (
    256, 257, 258, 259, 262, 271, 273, 277, 278, 279,
)  # fmt: skip
SUBFILE, OLD_SUBFILE, SUB, DNG = 254, 255, 330, 50706


def gray(value: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def page(value: int, width: int = 64, height: int = 48, **more: int | bytes) -> tuple[Entries, bytes]:
    """The tags and the pixels of a gray picture of one level; more tags by their numbers, `t254=1`."""
    pixels = bytes([value]) * (width * height)
    tags: Entries = {WIDTH: width, HEIGHT: height, BITS: 8, COMPRESSION: 1, PHOTOMETRIC: 1, SAMPLES: 1, ROWS: height}
    return tags | {COUNT: len(pixels)} | {int(name[1:]): number for name, number in more.items()}, pixels


def tiff(
    *pages: tuple[Entries, bytes], inner: Mapping[int, tuple[Entries, bytes]] | None = None, order: str = "<"
) -> bytes:
    """A TIFF file of these pages; `inner` are pictures in SubIFDs, by the page that has them."""
    content = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 0))

    def add(tags: Entries, pixels: bytes) -> int:
        place = len(content)
        content.extend(pixels)
        entries = b""
        heap: list[tuple[int, bytes]] = []
        for tag, value in sorted({**tags, OFFSET: place}.items()):
            if isinstance(value, bytes):
                heap.append((len(entries) + 8, value))
                entries += struct.pack(f"{order}HHII", tag, 2, len(value), 0)
            else:
                entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
        directory = len(content)
        content.extend(struct.pack(f"{order}H", len(entries) // 12) + entries + bytes(4))
        for at, value in heap:
            struct.pack_into(f"{order}I", content, directory + 2 + at, len(content))
            content.extend(value)
        return directory

    link = 4
    for number, (tags, pixels) in enumerate(pages):
        if inner and number in inner:
            tags = {**tags, SUB: add(*inner[number])}
        place = add(tags, pixels)
        struct.pack_into(f"{order}I", content, link, place)
        link = place + 2 + 12 * (len(tags) + 1)
    return bytes(content)


def level(raster: Raster, frame: int = 0) -> float:
    return float(raster.picture(frame).rgb.mean()) * 255


SMALL, FULL, OTHER = page(10, 20, 15), page(200), page(90, 30, 48)
THUMBNAIL = page(10, 20, 15, t254=1)

# Name: file, size and level of what is read, number of frames, and what is told.
PICTURES: dict[str, tuple[bytes, tuple[int, int], int, int, str]] = {
    "a thumbnail before the picture": (tiff(THUMBNAIL, FULL), (64, 48), 200, 1, ""),
    "a thumbnail after the picture": (tiff(FULL, THUMBNAIL), (64, 48), 200, 1, ""),
    "a thumbnail of the old kind": (tiff(page(10, 20, 15, t255=2), FULL), (64, 48), 200, 1, ""),
    "a thumbnail that does not say so": (tiff(SMALL, page(200, 40, 30)), (40, 30), 200, 1, ""),
    "big-endian": (tiff(THUMBNAIL, FULL, order=">"), (64, 48), 200, 1, ""),
    "the picture in a SubIFD": (tiff(THUMBNAIL, inner={0: FULL}), (64, 48), 200, 1, ""),
    "a smaller copy in a SubIFD": (tiff(FULL, inner={0: THUMBNAIL}), (64, 48), 200, 1, ""),
    "a mask before the picture": (tiff(page(10, t254=4), FULL), (64, 48), 200, 1, ""),
    "a mask after the picture": (tiff(FULL, page(10, t254=4)), (64, 48), 200, 1, ""),
    "reduced pictures only": (tiff(THUMBNAIL, page(200, t254=1)), (64, 48), 200, 1, ""),
    "a pyramid": (tiff(FULL, page(200, 32, 24, t254=1), page(200, 16, 12, t254=1)), (64, 48), 200, 1, ""),
    "pages": (tiff(page(50), page(100), page(150)), (64, 48), 50, 3, ""),
    "pages after a thumbnail": (tiff(THUMBNAIL, page(50), page(100)), (64, 48), 50, 2, ""),
    "pages and a thumbnail each": (
        tiff(page(50), THUMBNAIL, page(100), THUMBNAIL),
        (64, 48), 50, 1, "of 2 pictures in this file the first was taken",
    ),
    "pages of two sizes": (tiff(FULL, OTHER), (64, 48), 200, 1, "of 2 pictures in this file the first was taken"),
    "a larger page of another shape": (
        tiff(OTHER, page(7, 90, 40)), (30, 48), 90, 1, "of 2 pictures in this file the first was taken",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_the_photograph_is_read_among_the_pictures_of_a_tiff_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    content, size, expected, frames, told = PICTURES[name]
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    assert read_header(path) == Header(size, frames)
    with read_raster(path) as read:
        assert (read.size, read.frames) == (size, frames)
        assert level(read) == pytest.approx(expected, abs=0.6)
    assert caplog.messages == ([f"{path}: {told}"] if told else [])
    assert np.asarray(read_rgb(path)).mean() == pytest.approx(expected, abs=0.6)
    assert read_rgb(path, 24).size == size_to_train_on(size, 24)


def test_what_is_left_out_is_told_once_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(FULL, OTHER))
    with open_picture(tmp_path / "a.tif") as opened:
        opened.read().close()
        opened.read(max_size_px=20).close()
    assert len(caplog.messages) == 1


CAMERA = b"NIKON CORPORATION\0"
DEVELOPED = "its picture must be developed first, save it as TIFF or JPEG"
RAW: dict[str, tuple[bytes, str]] = {
    "DNG": (tiff(page(10, 20, 15, t254=1, t50706=1025, t271=b"Canon\0"), inner={0: page(9, t262=32803)}), "DNG"),
    "linear DNG": (tiff(page(10, t50706=1025, t262=34892)), "DNG"),
    "NEF": (tiff(page(10, 20, 15, t254=1, t271=CAMERA), inner={0: page(9, t262=32803)}), "NEF"),
    "ARW": (tiff(page(10, 20, 15, t254=1, t271=b"SONY\0"), inner={0: page(9, t259=32767)}), "ARW"),
    "PEF": (tiff(page(10, t262=32803, t271=b"PENTAX\0")), "PEF"),
    "camera that nobody knows": (tiff(page(10, 20, 15, t254=1, t271=b"New\0"), page(9, t262=32803)), "TIFF"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "CR2"),
    "CR3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(50), "CR3"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(50), "RAF"),
    "ORF": (b"IIRO\x08\0\0\0" + bytes(50), "ORF"),
    "RW2": (b"IIU\0\x18\0\0\0" + bytes(50), "RW2"),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("suffix", ("tif", "dng"))
def test_raw_files_are_refused_by_name(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(RAW[name][0])
    for read in (read_header, read_raster, read_rgb):
        assert refusal(lambda read=read: read(path)) == f"{path}: a raw file ({RAW[name][1]}): {DEVELOPED}"


AS_PICTURE = "save it as PNG, TIFF or JPEG first"
FOREIGN = {
    "a PDF": (b"%PDF-1.7\n", AS_PICTURE),
    "a PostScript file": (b"%!PS-Adobe-3.0 EPSF-3.0\n", AS_PICTURE),
    "a Photoshop file": (b"8BPS\0\1" + bytes(20), AS_PICTURE),
    "an SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', AS_PICTURE),
    "a video": (b"\0\0\0\x20ftypisom\0\0\2\0", "save a frame of it as PNG or JPEG first"),
    "a web page": (b"\n<!DOCTYPE html><html></html>", "download the picture itself"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull fetches the file"),
    "an archive": (b"PK\3\4" + bytes(30), "unpack it first"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_well_known_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(FOREIGN[name][0])
    assert refusal(lambda: read_raster(path)) == f"{path}: {name}: {FOREIGN[name][1]}"


# Animations and pages


def animation(path: Path, alpha: bool = False, **options: Any) -> list[Image.Image]:
    images = [gray(value).convert("RGBA" if alpha else "RGB") for value in (50, 120, 200)]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return images


@pytest.mark.parametrize("alpha", (False, True))
@pytest.mark.parametrize(
    ("suffix", "options"),
    (
        ("png", {"duration": [100, 200, 300], "loop": 2}),
        ("avif", {"duration": [100, 200, 300], "quality": 100}),
        ("tif", {}),
    ),
)
@pytest.mark.parametrize("target", ("png", "webp", "gif", "avif", "tif"))
def test_frames_and_pages_are_painted_into_every_format_that_holds_them(
    tmp_path: Path, suffix: str, options: dict[str, Any], target: str, alpha: bool
) -> None:
    if "avif" in (suffix, target) and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    animation(tmp_path / f"a.{suffix}", alpha, **options)
    model = stylize.load(write_model(tmp_path / "model.safetensors"), device="cpu")
    painted = model.apply_file(tmp_path / f"a.{suffix}", tmp_path / f"b.{target}", strength=0)
    with read_raster(painted) as read:
        assert (read.size, read.frames) == ((64, 48), 3)
        for frame, expected in enumerate((50, 120, 200)):
            assert level(read, frame) == pytest.approx(expected, abs=3)
        if suffix != "tif" and target != "tif":
            assert read.metadata.delays_ms == (100, 200, 300)
        if suffix == "png" and target in ("png", "webp"):
            assert read.metadata.loops == 2


def test_to_a_still_format_the_first_frame_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    animation(tmp_path / "a.png")
    model = stylize.load(write_model(tmp_path / "model.safetensors"), device="cpu")
    with caplog.at_level(logging.WARNING, "stylize"):
        model.apply_file(tmp_path / "a.png", tmp_path / "b.jpg", strength=0)
    assert caplog.messages == [f"{tmp_path / 'b.jpg'}: got 3 frames, of which JPEG holds the first"]


def test_a_still_picture_before_an_animated_png_is_no_frame_of_it(tmp_path: Path) -> None:
    images = [gray(value) for value in (10, 120, 200)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], default_image=True)
    with read_raster(tmp_path / "a.png") as read:
        assert [round(level(read, i)) for i in range(read.frames)] == [120, 200]


def test_an_animated_png_of_16_bits_is_read_with_8_which_is_told(tmp_path: Path) -> None:
    def frame(value: int, number: int) -> tuple[bytes, bytes]:
        control = struct.pack(">IIIIIHHBB", number, 20, 20, 0, 0, 1, 10, 0, 0)
        return chunk(b"fcTL", control), zlib.compress((b"\0" + struct.pack(">H", value * 257) * 20) * 20)

    (first, pixels), (second, more) = frame(50, 0), frame(200, 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 0, 0, 0, 0))
    parts = [header, chunk(b"acTL", struct.pack(">II", 2, 0)), first, chunk(b"IDAT", pixels), second]
    parts += [chunk(b"fdAT", struct.pack(">I", 2) + more), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with read_raster(tmp_path / "a.png") as read:
        assert [round(level(read, i)) for i in range(read.frames)] == [50, 200]
        assert read.metadata.left_out == ("more than 8 bits of its frames",)


def test_pages_of_16_bits_are_told_in_an_animated_png(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = [Image.fromarray(np.full((20, 20), value, np.uint16)) for value in (257 * 50, 257 * 200)]
    deep[0].save(tmp_path / "a.tif", save_all=True, append_images=deep[1:])
    with read_raster(tmp_path / "a.tif") as read:
        assert (read.frames, read.bits) == (2, 16)
        write_raster(tmp_path / "b.png", read)
    assert caplog.messages == [f"{tmp_path / 'b.png'}: 16 bits become 8, the most that PNG is written with"]
    with read_raster(tmp_path / "b.png") as read:
        assert [round(level(read, i)) for i in range(read.frames)] == [50, 200]


def test_the_pages_of_a_painted_tiff_stay_behind_its_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "three pages"
    animation(tmp_path / "a.tif")
    with read_raster(tmp_path / "a.tif") as read:
        noted = Raster(read.rows, read.frames, Metadata(exif=exif.tobytes(), iptc=b"\x1c\2\5\0\4dusk"))
        write_raster(tmp_path / "b.tif", noted)
    with Image.open(tmp_path / "b.tif") as image:
        assert image.n_frames == 3
        assert image.getexif()[0x010E] == "three pages"


def test_training_takes_the_first_frame(tmp_path: Path) -> None:
    animation(tmp_path / "a.png")
    animation(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        assert np.unique(np.asarray(read_rgb(tmp_path / name, 32))).tolist() == [50]


def test_of_an_animation_cut_short_a_line_is_left(tmp_path: Path) -> None:
    animation(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    path = tmp_path / "b.png"
    path.write_bytes(whole[: whole.rindex(b"fdAT") - 50])
    message = refusal(lambda: read_raster(path))
    assert message.startswith(f"{path}: cannot be read as an image (")


# Formats of plug-ins

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\xff\x0a" + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "kind", "plugin"),
    (
        ("a.heic", HEIC, "HEIF", "pillow_heif"),
        ("a.jpg", HEIC, "HEIF", "pillow_heif"),
        ("a.jxl", JXL, "JXL", "pillow_jxl"),
    ),
)
def test_without_a_plugin_its_formats_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, kind: str, plugin: str
) -> None:
    monkeypatch.setattr(
        "stylize.pictures.formats.find_spec", lambda module: None if module == plugin else find_spec(module)
    )
    (tmp_path / name).write_bytes(content)
    assert refusal(lambda: read_raster(tmp_path / name)) == (
        f"{tmp_path / name}: {kind} files need a plug-in that is not installed: pip install 'stylize[formats]'"
    )
    assert find_images(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize(("suffix", "plugin"), (("heic", "pillow_heif"), ("jxl", "pillow_jxl")))
@pytest.mark.parametrize("orientation", (1, 6))
def test_with_a_plugin_its_formats_are_read_and_written(
    tmp_path: Path, suffix: str, plugin: str, orientation: int
) -> None:
    module = pytest.importorskip(plugin)
    if hasattr(module, "register_heif_opener"):
        module.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "a lake"
    halves = gray(40)
    halves.paste((200, 200, 200), (32, 0, 64, 48))
    halves.save(tmp_path / f"a.{suffix}", quality=95, exif=exif.tobytes())
    model = stylize.load(write_model(tmp_path / "model.safetensors"), device="cpu")
    painted = model.apply_file(tmp_path / f"a.{suffix}", strength=0)
    assert painted.suffix == f".{suffix}"
    for path in (tmp_path / f"a.{suffix}", painted):
        rgb = np.asarray(read_rgb(path))
        first, second = (rgb[:, :30], rgb[:, 34:]) if orientation == 1 else (rgb[:30], rgb[34:])
        assert rgb.shape[:2] == ((48, 64) if orientation == 1 else (64, 48))
        assert first.mean() == pytest.approx(40, abs=4)
        assert second.mean() == pytest.approx(200, abs=4)
        with read_raster(path) as read:
            assert b"a lake" in (read.metadata.exif or b"")


def test_a_stand_in_for_a_plugin_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of registering are tried without the plug-ins themselves."""
    (tmp_path / "stand_in.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class File(ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self):\n"
        "        self._size, self._mode = (20, 20), 'RGB'\n"
        "    def load(self):\n"
        "        self.im = Image.new('RGB', (20, 20), (7, 7, 7)).im\n"
        "def register_heif_opener():\n"
        "    Image.register_open('STANDIN', File, lambda prefix: prefix[4:12] == b'ftypheic')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = next(row for row in FORMATS if row.name == "HEIF")
    monkeypatch.setattr("stylize.pictures.opening.check_installed", lambda path, image_format: None)
    monkeypatch.setattr("stylize.pictures.opening.load_plugin", lambda image_format: register("stand_in"))

    assert row.plugin == "pillow_heif"
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert np.unique(np.asarray(read_rgb(tmp_path / "a.heic"))).tolist() == [7]


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def painted(path: Path) -> Path:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("stylize", mark_of("dots").decode())
    path.parent.mkdir(parents=True, exist_ok=True)
    gray(90).save(path, "PNG", pnginfo=notes)
    return path


def run(command: Any, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert not isinstance(result.exception, ValueError | OSError | RuntimeError), result.exception
    return result.output + (str(result.exception) if result.exception else "")


@pytest.mark.parametrize("suffix", ("jfif", "jpe", "jif", "JFIF", "apng", "tf8", "btf", "dib", "pnm"))
def test_all_usual_suffixes_are_those_of_images(folder: Path, suffix: str) -> None:
    picture(folder / "a.png").rename(folder / f"a.{suffix}")
    assert find_images(folder) == [folder / f"a.{suffix}"]
    assert read_header(folder / f"a.{suffix}").size == (48, 40)
    assert plan_jobs([folder], None, "dots", False)[0].target == folder / f"a.dots.{suffix}"


@pytest.mark.parametrize("name", ("photo", "photo.png_", "photo.2024"))
def test_images_without_a_suffix_are_found_by_their_content(tmp_path: Path, folder: Path, name: str) -> None:
    picture(folder / "a.png").rename(folder / name)
    (folder / "notes.txt").write_text("BM is how bitmaps begin")
    (folder / "list").write_text("P3 is a format")
    assert search_folder(folder).images == [folder / name]
    assert plan_jobs([folder], None, "dots", False)[0].target == folder / f"{name}.dots.png"
    assert plan_jobs([folder], tmp_path / "out", "dots", False)[0].target == tmp_path / "out" / f"{name}.png"


def test_raw_files_of_a_folder_are_passed_over_and_named(folder: Path) -> None:
    picture(folder / "a.jpg")
    for name, (content, _) in RAW.items():
        (folder / f"{name}.raw").write_bytes(content)
    search = search_folder(folder)
    assert search.images == [folder / "a.jpg"]
    assert len(search.passed_over) == len(RAW)


def test_what_is_passed_over_is_named_in_one_short_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(folder / "a.png")
    (folder / "b\n.txt").touch()
    (folder / ("x" * 200)).touch()
    for i in range(100):
        (folder / f"{i}.zip").write_bytes(b"PK\3\4")
    with caplog.at_level(logging.INFO, "stylize"):
        plan_jobs([folder], None, "dots", False)
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: passed over 102 files: 0.zip, 1.zip, 10.zip, 11.zip, 12.zip, and 97 more")
    assert "\n" not in line
    assert "passed over 102 files" in run(check_data, folder)


def test_names_that_are_no_text_are_shown_escaped(folder: Path) -> None:
    folder.mkdir()
    name = os.fsdecode(b"\xff\x1b.txt")
    try:
        (folder / name).touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    assert list(search_folder(folder).told()) == [f"{folder}: passed over 1 file: \\udcff\\x1b.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_told(folder: Path) -> None:
    picture(folder / "a.png")
    picture(folder / "b" / "c.png")
    (folder / "b").chmod(0)
    try:
        assert list(search_folder(folder).told()) == [f"{folder}: cannot read 1 folder: b"]
    finally:
        (folder / "b").chmod(0o700)


def test_a_folder_that_fails_to_open_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(folder / "a.png")
    picture(folder / "b" / "c.png")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if path == folder / "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    search = search_folder(folder)
    assert search.images == [folder / "a.png"]
    assert list(search.told()) == [f"{folder}: cannot read 1 folder: b"]


LINKS: dict[str, tuple[dict[str, str], list[str]]] = {
    "a link to a folder elsewhere": ({"photos/far": "elsewhere"}, ["a.png", "far/e.png", "inner/b.png"]),
    "a link to itself": ({"photos/loop": "photos"}, ["a.png", "inner/b.png"]),
    "a link upwards": ({"photos/inner/up": "photos"}, ["a.png", "inner/b.png"]),
    "links in a circle": ({"photos/x": "elsewhere", "elsewhere/y": "photos"}, ["a.png", "inner/b.png", "x/e.png"]),
    "two links to one folder": (
        {"photos/x": "elsewhere", "photos/y": "elsewhere"},
        ["a.png", "inner/b.png", "x/e.png"],
    ),
    "a link to a folder of the same folder": ({"photos/again": "photos/inner"}, ["a.png", "inner/b.png"]),
    "a link to nothing": ({"photos/nothing": "missing"}, ["a.png", "inner/b.png"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_links_to_folders_are_followed_once(tmp_path: Path, folder: Path, name: str) -> None:
    picture(folder / "a.png")
    picture(folder / "inner" / "b.png")
    picture(tmp_path / "elsewhere" / "e.png")
    links, expected = LINKS[name]
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == expected
    assert [path.relative_to(folder).as_posix() for path in search_folder(folder, distinct=True).images] == expected
    jobs = plan_jobs([folder], tmp_path / "out", "dots", True)
    assert [job.target.relative_to(tmp_path / "out").as_posix() for job in jobs] == expected


def test_many_links_among_folders_end(folder: Path) -> None:
    for i in range(12):
        picture(folder / str(i) / "a.png")
    for i in range(12):
        for j in range(12):
            (folder / str(i) / f"to{j}").symlink_to(folder / str(j))
    assert len(find_images(folder)) == 12


def test_a_linked_photograph_counts_once_in_training(folder: Path) -> None:
    for i in range(4):
        picture(folder / f"{i}.png", seed=i)
    (folder / "again.png").symlink_to(folder / "1.png")
    (folder / "twice").mkdir()
    (folder / "twice" / "2.png").symlink_to(folder / "2.png")
    config = ContentConfig(path=str(folder), validation=1)
    photographs = find_photographs(config, 0)
    assert sorted([*photographs.training, *photographs.validation]) == [folder / f"{i}.png" for i in range(4)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path, folder: Path) -> None:
    picture(folder / "a.jpg")
    os.mkfifo(folder / "b.png")
    os.mkfifo(folder / "c")
    (folder / "d.png").symlink_to("/dev/zero")
    search = search_folder(folder)
    assert search.images == [folder / name for name in ("a.jpg", "b.png", "d.png")]
    for name in ("b.png", "c", "d.png"):
        assert refusal(lambda name=name: read_raster(folder / name)) == (
            f"{folder / name}: not a regular file, must be an image file"
        )
    assert "not a regular file" in run(check_data, folder)


# Painted files


def test_painted_files_of_a_folder_are_left_alone_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        picture(folder / f"{i}.png")
    painted(folder / "old.png")
    painted(folder / "inner" / "4.png")
    with caplog.at_level(logging.INFO, "stylize"):
        jobs = plan_jobs([folder], None, "waves", True)
    assert [job.source.name for job in jobs] == ["0.png", "1.png", "2.png"]
    told = f"{folder}: left alone 2 painted pictures: inner/4.png, old.png"
    assert caplog.messages == [told]
    with caplog.at_level(logging.INFO, "stylize"):
        photographs = find_photographs(ContentConfig(path=str(folder), validation=1), 0)
    assert len(photographs.training) == 2
    assert caplog.messages[-1] == f"content.path: {told}"
    assert told in run(check_data, folder)


def test_a_painted_file_that_is_named_is_painted(folder: Path) -> None:
    path = painted(folder / "old.png")
    assert [job.source for job in plan_jobs([path], None, "dots", False)] == [path]


def test_a_folder_of_painted_files_alone_is_refused(folder: Path) -> None:
    painted(folder / "old.png")
    assert refusal(lambda: plan_jobs([folder], None, "dots", True)) == f"{folder}: holds no images but painted ones"
    assert "holds no image files but painted ones" in run(check_data, folder)


@pytest.mark.parametrize("suffix", ("png", "bmp", "jpg", "tif"))
def test_a_folder_is_painted_into_itself_again_and_again(tmp_path: Path, folder: Path, suffix: str) -> None:
    picture(folder / f"a.{suffix}")
    picture(folder / "inner" / f"b.{suffix}")
    for style in ("dots", "dots", "waves"):
        model = write_model(tmp_path / f"{style}.safetensors", style)
        out = ["-o", folder / "painted"]
        run(apply, folder, "--recursive", "--model", model, "--strength", 0, "--overwrite", "--device", "cpu", *out)
        run(apply, folder, "--recursive", "--model", model, "--strength", 0, "--overwrite", "--device", "cpu")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == sorted(
        [
            *(f"{name}{style}.{suffix}" for name in ("a", "inner/b") for style in ("", ".dots", ".waves")),
            *(f"painted/{name}.{suffix}" for name in ("a", "inner/b")),
        ]
    )


def test_the_output_folder_is_left_out_even_where_its_files_have_no_mark(folder: Path) -> None:
    picture(folder / "a.png")
    picture(folder / "out" / "a.png")
    assert [job.source for job in plan_jobs([folder], folder / "out", "dots", True)] == [folder / "a.png"]


# Costs


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    (
        ((600, 400), 288, (432, 288)),
        ((300, 15), 288, (4608, 288)),
        ((15, 300), 288, (288, 4608)),
        ((100_000, 2), 288, (4608, 288)),
        ((30_000, 600), 288, (14_400, 288)),
        ((100, 10), 8192, (16_384, 8192)),
    ),
)
def test_thin_pictures_are_cropped_before_they_are_enlarged(
    size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    assert size_to_train_on(size, side) == expected


@pytest.mark.parametrize("suffix", ("png", "jpg"))
@pytest.mark.parametrize("orientation", (1, 6))
def test_of_a_thin_picture_the_middle_is_read(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = gray(0, 400, 10)
    image.paste((200, 200, 200), (100, 0, 300, 10))
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    rgb = read_rgb(tmp_path / f"a.{suffix}", 100)
    assert rgb.size == ((1600, 100) if orientation == 1 else (100, 1600))
    middle = np.asarray(rgb).mean((1, 2) if orientation == 6 else (0, 2))
    assert np.abs(middle[10:-10] - 200).max() < 4


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, pixels: bytes, *chunks: bytes, bits: int = 8, kind: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )


def claims() -> dict[str, bytes]:
    """Files of some kilobytes that claim, or hold, very much."""
    bomb = zlib.compress(bytes(300 << 20), 9)
    small = png(16, 16, bytes(49 * 16))
    endless = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    endless += chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 10, 0, 0))
    frame = b"!\xf9\4\0\1\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    gif = b"GIF89a" + struct.pack("<HHBBB", 400, 400, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    progressive = io.BytesIO()
    gray(9, 16, 16).save(progressive, "JPEG", progressive=True)
    jpeg = bytearray(progressive.getvalue())
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc2") + 5, 13_000, 13_000)
    lossless = io.BytesIO()
    gray(9, 16, 16).save(lossless, "WEBP", lossless=True)
    webp = bytearray(lossless.getvalue())
    struct.pack_into("<I", webp, webp.index(b"VP8L") + 9, 13_000 | 13_000 << 14)
    big = {WIDTH: 13_000, HEIGHT: 13_000, ROWS: 13_000, COMPRESSION: 8}
    tiles = {322: 65_536, 323: 65_536, 324: 8, 325: 100}
    tags, pixels = page(9)
    return {
        "claim.png": png(50_000, 50_000, bytes(100)),
        "claimed.png": png(13_000, 13_000, bytes(100)),
        "black.png": png(13_000, 13_000, bytes(13_000 * 1626), bits=1, kind=0),
        "text.png": small[:33] + chunk(b"zTXt", b"Comment\0\0" + bomb) + small[33:],
        "long.png": small[:33] + chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb) + small[33:],
        "profile.png": small[:33] + chunk(b"iCCP", b"icc\0\0" + bomb) + small[33:],
        "thin.png": png(100_000, 2, bytes(300_001 * 2)),
        "high.png": png(1, 500_000, bytes(4 * 500_000)),
        "frames.png": png(64, 64, bytes(193 * 64), endless),
        "frames.gif": gif + frame * 1100 + b";",
        "claim.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + gif[13:] + frame + b";",
        "claim.jpg": bytes(jpeg),
        "claim.webp": bytes(webp),
        "strip.tif": tiff((tags | big, b"x" * 100)),
        "tiles.tif": tiff((tags | tiles, pixels)),
        "large tile.tif": tiff((tags | big | {322: 13_008, 323: 13_008, 324: 8, 325: 100}, pixels)),
        "claim.ppm": b"P6 13000 13000 255\n" + b"x" * 100,
        "claim.pnm": b"P4 13000 13000\n" + b"x" * 100,
    }


MEASURE = """
import json, resource, sys
from pathlib import Path
from stylize.errors import StylizeError
from stylize.pictures.reading import read_raster, read_rgb
def train(path): read_rgb(path, 288)
def paint(path): read_raster(path).close()
read = {"train": train, "paint": paint}[sys.argv[1]]
read(Path(sys.argv[2]))
for path in sys.argv[3:]:
    start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(Path(path))
        told = "read"
    except StylizeError as error:
        told = str(error)
    print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
@pytest.mark.parametrize("use", ("train", "paint"))
def test_no_small_file_takes_memory_out_of_proportion(tmp_path: Path, use: str) -> None:
    first = picture(tmp_path / "first.png")
    files = [tmp_path / name for name in claims()]
    for path, content in zip(files, claims().values(), strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, use, str(first), *map(str, files)], capture_output=True, text=True, timeout=200
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for path, (told, grown_kib) in zip(files, outcomes, strict=True):
        assert grown_kib < 300 * 1024, (path.name, told, grown_kib)
        assert "\n" not in told


def test_bombs_are_refused_by_arithmetic_and_painted_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylize.pictures.limits.limits.surely_safe_pixels", 1000)
    path = tmp_path / "a.png"
    path.write_bytes(png(1000, 1000, bytes(126_000), bits=1, kind=0))
    length = path.stat().st_size
    expected = f"{path}: got 1.0 megapixels in {length} bytes, must be at most 2,000 pixels a byte; "
    assert refusal(lambda: read_raster(path)) == f"{expected}--max-pixels lifts the limit"
    assert refusal(lambda: read_rgb(path)) == f"{expected}shrink it with another program"
    assert read_raster(path, max_pixels=10**6).size == (1000, 1000)


CALLS: tuple[Callable[[Path], object], ...] = (read_header, read_raster, read_rgb)


@pytest.mark.parametrize("read", CALLS)
def test_a_tiff_with_endless_pages_ends(tmp_path: Path, read: Callable[[Path], object]) -> None:
    content = bytearray(tiff(FULL))
    at = len(content) - 4
    struct.pack_into("<I", content, at, struct.unpack_from("<I", content, 4)[0])
    (tmp_path / "a.tif").write_bytes(content)
    read(tmp_path / "a.tif")
