import errno
import io
import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from torch import Tensor

from stylize.errors import StylizeError
from stylize.pictures.find import find_images
from stylize.pictures.formats import FORMATS, SIGNATURE_BYTES, Format, format_of, format_of_content
from stylize.pictures.opening import open_file
from stylize.pictures.picture import Picture, scaled_size, to_bytes, to_image, to_tensor
from stylize.pictures.reading import read_header, read_picture, read_rgb
from stylize.pictures.sheets import contact_sheet
from stylize.pictures.writing import write_picture

RGB = tuple[int, int, int]
BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)
GRAY = (200, 200, 200)

HALVES = (
    ("jpg", "L", 0, 200, BLACK, GRAY),
    ("jpg", "RGB", RED, BLUE, RED, BLUE),
    ("png", "1", 0, 255, BLACK, WHITE),
    ("png", "L", 0, 200, BLACK, GRAY),
    ("png", "LA", (0, 255), (200, 255), BLACK, GRAY),
    ("png", "P", RED, BLUE, RED, BLUE),
    ("png", "RGB", RED, BLUE, RED, BLUE),
    ("png", "RGBA", (*RED, 255), (*BLUE, 255), RED, BLUE),
    ("png", "I;16", 0, 200 * 257, BLACK, GRAY),
    ("webp", "RGB", RED, BLUE, RED, BLUE),
    ("webp", "RGBA", (*RED, 255), (*BLUE, 255), RED, BLUE),
    ("gif", "1", 0, 255, BLACK, WHITE),
    ("gif", "L", 0, 200, BLACK, GRAY),
    ("gif", "P", RED, BLUE, RED, BLUE),
    ("tiff", "1", 0, 255, BLACK, WHITE),
    ("tiff", "L", 0, 200, BLACK, GRAY),
    ("tiff", "LA", (0, 255), (200, 255), BLACK, GRAY),
    ("tiff", "P", RED, BLUE, RED, BLUE),
    ("tiff", "RGB", RED, BLUE, RED, BLUE),
    ("tiff", "RGBA", (*RED, 255), (*BLUE, 255), RED, BLUE),
    ("tiff", "I;16", 0, 200 * 257, BLACK, GRAY),
    ("tiff", "F", 0.0, 200 / 255, BLACK, GRAY),
    ("bmp", "1", 0, 255, BLACK, WHITE),
    ("bmp", "L", 0, 200, BLACK, GRAY),
    ("bmp", "P", RED, BLUE, RED, BLUE),
    ("bmp", "RGB", RED, BLUE, RED, BLUE),
    ("ppm", "RGB", RED, BLUE, RED, BLUE),
)

# EXIF 2.32, tag 0x0112: how the upright picture 1 2 3 / 4 5 6 lies in the file.
STORED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[3, 6], [2, 5], [1, 4]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[4, 1], [5, 2], [6, 3]],
}


def halves(mode: str, left: object, right: object) -> Image.Image:
    colours = "RGB" if mode == "P" else mode
    image = Image.new(colours, (64, 48), left)
    image.paste(right, (32, 0, 64, 48))
    return image.quantize(4) if mode == "P" else image


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StylizeError) as caught:
        call()
    return str(caught.value)


def smooth_photo(width: int, height: int) -> Image.Image:
    small = (torch.rand(3, 4, 3) * 255).byte().numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def picture(height: int = 6, width: int = 8, alpha: bool = False) -> Picture:
    levels = torch.randint(0, 256, (3, height, width)) / 255
    return Picture(levels, torch.randint(0, 256, (1, height, width)) / 255 if alpha else None)


@pytest.mark.parametrize(
    ("suffix", "mode", "left", "right", "left_rgb", "right_rgb"),
    HALVES,
    ids=[f"{suffix}-{mode}" for suffix, mode, *_ in HALVES],
)
def test_colours_are_right_in_every_format_and_mode(
    tmp_path: Path,
    suffix: str,
    mode: str,
    left: object,
    right: object,
    left_rgb: RGB,
    right_rgb: RGB,
) -> None:
    path = tmp_path / f"image.{suffix}"
    halves(mode, left, right).save(path, **({"lossless": True} if suffix == "webp" else {}))
    levels = 3 if suffix == "jpg" else 0.5
    rgb = read_picture(path).rgb
    assert rgb.dtype == torch.float32
    assert rgb.shape == (3, 48, 64)
    for column, expected in ((12, left_rgb), (51, right_rgb)):
        assert (rgb[:, 24, column] * 255).tolist() == pytest.approx(expected, abs=levels)
        assert read_rgb(path).getpixel((column, 24)) == pytest.approx(expected, abs=levels)
    assert read_header(path).size == (64, 48)


def test_an_opaque_image_has_no_alpha(tmp_path: Path) -> None:
    halves("RGB", RED, BLUE).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").alpha is None


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    first, second = halves("RGB", RED, RED), halves("RGB", BLUE, BLUE)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert read_rgb(tmp_path / "a.gif").getpixel((5, 5)) == RED


@pytest.mark.parametrize("orientation", STORED)
def test_pictures_stand_upright_as_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array(STORED[orientation], dtype=np.uint8) * 40
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = (read_picture(tmp_path / "a.png").rgb[0] * 255 / 40).round().int()
    assert upright.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read_header(tmp_path / "a.png").size == (3, 2)


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_stand_upright_when_decoded_small(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    tiles = np.kron(np.array(STORED[orientation], dtype=np.uint8) * 40, np.ones((64, 64), np.uint8))
    Image.fromarray(tiles).save(tmp_path / "a.jpg", exif=exif)
    image = read_rgb(tmp_path / "a.jpg", 32)
    assert image.size == (48, 32)
    centres = [[image.getpixel((x, y))[0] for x in (8, 24, 40)] for y in (8, 24)]
    assert np.allclose(centres, np.array([[40, 80, 120], [160, 200, 240]]), atol=4)


@pytest.mark.parametrize("suffix", ("png", "webp", "tiff"))
def test_alpha_survives_writing_and_reading(tmp_path: Path, suffix: str) -> None:
    path, original = tmp_path / f"a.{suffix}", picture(alpha=True)
    write_picture(path, original)
    back = read_picture(path)
    assert torch.equal(back.alpha, original.alpha)
    if suffix != "webp":
        assert torch.equal(back.rgb, original.rgb)


@pytest.mark.parametrize("suffix", ("jpg", "bmp", "ppm"))
def test_alpha_is_laid_on_white_where_the_format_has_none(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"a.{suffix}", picture(alpha=True))
    assert read_picture(tmp_path / f"a.{suffix}").alpha is None


def test_transparent_palette_colour_becomes_alpha(tmp_path: Path) -> None:
    image = halves("P", RED, BLUE)
    image.save(tmp_path / "a.gif", transparency=image.getpixel((0, 0)))
    alpha = read_picture(tmp_path / "a.gif").alpha
    assert alpha is not None
    assert alpha[0, 24, [5, 60]].tolist() == [0, 1]


def test_a_16_bit_gray_with_a_transparent_level_keeps_its_grays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    halves("I;16", 100 * 257, 200 * 257).save(path, transparency=100 * 257)
    assert (read_picture(path).rgb[:, 24, 51] * 255).tolist() == pytest.approx(GRAY)
    assert read_rgb(path).getpixel((51, 24)) == GRAY


def test_transparency_is_laid_on_white_for_training(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (*RED, alpha))
    image.save(tmp_path / "a.png")
    colours = [read_rgb(tmp_path / "a.png").getpixel((x, 0)) for x in range(3)]
    assert colours == [WHITE, (255, 204, 204), RED]


def icc_profile(red: int = 0, blue: int = 2) -> bytes:
    """A matrix profile with sRGB's colorants, linear, with red and blue in the given places."""
    colorants = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))

    name = b"swapped\0"
    desc = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {
        b"desc": desc + bytes(-len(desc) % 4),
        b"cprt": b"text" + bytes(4) + b"none",
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"rXYZ": xyz(colorants[red]),
        b"gXYZ": xyz(colorants[1]),
        b"bXYZ": xyz(colorants[blue]),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for signature, content in tags.items():
        table += signature + struct.pack(">II", offset + len(data), len(content))
        data += content
    header = struct.pack(">I4xI", offset + len(data), 0x02100000) + b"mntrRGB XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + data


@pytest.mark.parametrize("suffix", ("png", "jpg", "tiff"))
def test_colour_profiles_become_srgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    halves("RGB", RED, BLUE).save(path, icc_profile=icc_profile(red=2, blue=0))
    image = read_rgb(path)
    assert image.getpixel((12, 24)) == pytest.approx(BLUE, abs=6)
    assert image.getpixel((51, 24)) == pytest.approx(RED, abs=6)
    assert (read_picture(path).rgb[:, 24, 12] * 255).tolist() == pytest.approx(BLUE, abs=6)


def test_colour_profiles_become_srgb_beside_an_alpha_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = halves("RGBA", (*RED, 255), (*BLUE, 100))
    image.save(path, icc_profile=icc_profile(red=2, blue=0))
    back = read_picture(path)
    assert (back.rgb[:, 24, 12] * 255).tolist() == pytest.approx(BLUE, abs=6)
    assert (back.alpha[0, 24, [12, 51]] * 255).tolist() == pytest.approx([255, 100])


def test_photographs_with_the_same_colour_profile_share_its_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], ImageCms.buildTransform

    def counted(*arguments: object) -> object:
        built.append(arguments)
        return build(*arguments)

    monkeypatch.setattr(ImageCms, "buildTransform", counted)
    profile = icc_profile(red=1, blue=0)
    for name in ("a.png", "b.png"):
        halves("RGB", RED, BLUE).save(tmp_path / name, icc_profile=profile)
        assert read_rgb(tmp_path / name).getpixel((51, 24)) == pytest.approx(RED, abs=6)
    assert len(built) == 1


def test_a_broken_colour_profile_is_logged_and_taken_as_srgb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    halves("RGB", RED, BLUE).save(tmp_path / "a.tif", icc_profile=b"no profile")
    with caplog.at_level(logging.WARNING, "stylize"):
        assert read_rgb(tmp_path / "a.tif").getpixel((12, 24)) == RED
    assert caplog.messages[0].startswith(f"{tmp_path / 'a.tif'}: its colour profile cannot be used (")
    assert caplog.messages[0].endswith("); taken as sRGB")


@pytest.mark.parametrize(("size", "expected"), (((60, 40), (30, 20)), ((40, 90), (20, 45)), ((10, 15), (20, 30))))
def test_the_shorter_side_is_resized(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    for suffix in ("png", "jpg"):
        Image.new("RGB", size, RED).save(tmp_path / f"a.{suffix}")
        assert read_rgb(tmp_path / f"a.{suffix}", 20).size == expected


@pytest.mark.parametrize("size", ((400, 301), (301, 400), (399, 300)))
def test_decoding_a_jpeg_small_gives_nearly_the_same(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    smooth_photo(*size).save(path, quality=95)
    small = read_rgb(path, 70)
    expected = [side * 70 / min(size) for side in size]
    assert min(small.size) == 70
    assert small.size == pytest.approx(expected, abs=1.5)
    with Image.open(path) as image:
        whole = image.resize(small.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(small, float) - np.asarray(whole, float))
    assert difference.mean() < 2
    assert difference.max() < 12


@pytest.mark.parametrize("options", ({}, {"progressive": True}), ids=("baseline", "progressive"))
@pytest.mark.parametrize("mode", ("RGB", "L", "CMYK"))
@pytest.mark.parametrize("orientation", (1, 6))
@pytest.mark.parametrize("margin", (1, 2))
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices(
    tmp_path: Path, mode: str, orientation: int, options: dict[str, bool], margin: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth_photo(432, 256).convert(mode).save(tmp_path / "a.jpg", exif=exif, **options)
    sizes = {300: (432, 256), 129: (432, 256), 128: (216, 128), 65: (216, 128), 32: (54, 32), 1: (54, 32)}
    file = open_file(tmp_path / "a.jpg", unlimited=False)
    for shorter_side_px, decoded in sizes.items():
        loaded = file.load(scaled_size((432, 256), shorter_side_px / margin / 256), margin)
        assert (loaded.width, loaded.height) == decoded


def test_scaled_sizes_are_never_below_one_pixel_and_a_factor_of_one_changes_nothing() -> None:
    assert scaled_size((100, 3), 0.1) == (10, 1)
    assert scaled_size((100, 3), 1) == (100, 3)


def test_a_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    path, encoded = tmp_path / "a.jpg", io.BytesIO()
    smooth_photo(200, 150).save(encoded, "JPEG")
    path.write_bytes(encoded.getvalue()[: len(encoded.getvalue()) // 2])
    for read in (read_picture, read_rgb):
        message = refusal(lambda read=read: read(path))
        assert message == f"{path}: cannot be read as an image (VipsJpeg: premature end of JPEG image)"


@pytest.mark.parametrize("read", (read_picture, read_rgb, read_header))
def test_files_that_are_no_images_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    text, folder, missing = tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"
    text.write_text("no image")
    folder.mkdir()
    assert refusal(lambda: read(text)) == f"{text}: not an image of a known format"
    assert refusal(lambda: read(folder)) == f"{folder}: is a folder, must be an image file"
    assert refusal(lambda: read(missing)) == f"{missing}: no such file"


def test_every_level_of_a_byte_survives() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, -1)
    image = to_image(levels / 255)
    assert torch.equal(to_bytes(image), levels)
    assert torch.equal(to_tensor(image), levels / 255)


def test_values_beyond_the_range_are_clipped() -> None:
    image = to_image(torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 7.0]).expand(3, 1, -1))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 0, 1, 255]


def test_gray_images_have_one_channel() -> None:
    image = to_image(torch.tensor([[[0.0, 1.0]]]))
    assert image.mode == "L"
    assert to_bytes(image).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("suffix", ("png", "tif", "bmp", "ppm", "PNG"))
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    original = picture()
    write_picture(tmp_path / f"a.{suffix}", original)
    back = read_picture(tmp_path / f"a.{suffix}")
    assert torch.equal(back.rgb, original.rgb)
    assert back.size == (8, 6)


def test_quality_decides_the_size_of_a_jpeg(tmp_path: Path) -> None:
    original = Picture(to_tensor(smooth_photo(64, 48)))
    sizes = []
    for quality in (10, 95):
        write_picture(tmp_path / "a.jpg", original, quality=quality)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
def test_avif_keeps_alpha_and_nearly_the_colours(tmp_path: Path) -> None:
    original = Picture(to_tensor(smooth_photo(64, 48)), torch.rand(1, 48, 64).round())
    write_picture(tmp_path / "a.avif", original)
    back = read_picture(tmp_path / "a.avif")
    assert torch.equal(back.alpha.round(), original.alpha)
    assert (back.rgb - original.rgb).abs().mean() < 0.02


@pytest.mark.parametrize(("suffix", "width"), (("webp", 20_000), ("jpg", 70_000)))
def test_a_picture_too_large_for_the_format_is_refused(tmp_path: Path, suffix: str, width: int) -> None:
    path = tmp_path / f"a.{suffix}"
    message = refusal(lambda: write_picture(path, Picture(torch.zeros(3, 2, width))))
    assert message.startswith(f"{path}: cannot be written (")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("an older file")
    write_picture(path, picture())
    assert list(tmp_path.iterdir()) == [path]
    assert read_picture(path).size == (8, 6)


def test_a_file_that_cannot_be_written_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_text("an older file")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert refusal(lambda: write_picture(path, picture())) == (f"{path}: cannot be written (No space left on device)")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "an older file"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.png"
    assert refusal(lambda: write_picture(path, picture())) == (f"{path}: cannot be written (No such file or directory)")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.mkdir()
    assert refusal(lambda: write_picture(path, picture())) == (f"{path}: cannot be written (Is a directory)")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_every_format_is_found_written_and_recognized_by_its_row(tmp_path: Path, row: Format) -> None:
    if row.name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    if not row.is_installed:
        pytest.skip("its plug-in is not installed")
    for suffix in row.suffixes:
        path = tmp_path / f"a{suffix}"
        assert format_of(path) is row
        write_picture(path, Picture(to_tensor(smooth_photo(32, 24)), torch.zeros(1, 24, 32)))
        assert format_of_content(path.read_bytes()[:SIGNATURE_BYTES]) is row
        assert path in find_images(tmp_path)
        back = read_picture(path)
        assert back.size == (32, 24)
        assert (back.alpha is not None) == (row.alpha != "none")


def test_formats_and_folders_are_known_without_loading_a_decoder_or_torch() -> None:
    program = "import sys, stylize.pictures, stylize.pictures.find, stylize.pictures.formats; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"pyvips", "torch", "PIL", "numpy"} & set(done.stdout.split()) == set()


def test_an_unknown_suffix_is_refused() -> None:
    assert refusal(lambda: format_of(Path("a.xyz"))) == (
        "a.xyz: got the suffix '.xyz', must be one of .apng, .avif, .avifs, .bmp, .btf, .dib, .gif, .heic, .heif, "
        ".hif, .jfif, .jif, .jpe, .jpeg, .jpg, .jxl, .png, .pnm, .ppm, .ptif, .tf8, .tif, .tiff, .webp"
    )


def test_images_are_found_nested_with_any_case_and_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.webp", "a/b/d.Tiff", "notes.txt", ".hidden.jpg", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/b/d.Tiff", "a/c.webp", "b.JPG"]
    assert find_images(tmp_path, recursive=False) == [tmp_path / "b.JPG"]


def test_contact_sheet_lays_rows_on_white() -> None:
    def black(height: int, width: int) -> Tensor:
        return torch.zeros(3, height, width)

    sheet = contact_sheet([[black(10, 8), black(12, 6)], [black(5, 5)]])
    assert sheet.shape == (3, 12 + 4 + 5, 8 + 4 + 6)
    assert sheet[0].eq(0).sum() == 10 * 8 + 12 * 6 + 5 * 5
    assert sheet.unique().tolist() == [0, 1]
    assert sheet[:, 0, 8:12].min() == 1


def test_contact_sheet_of_one_image_is_that_image() -> None:
    image = torch.rand(3, 7, 9)
    assert torch.equal(contact_sheet([[image]]), image)
