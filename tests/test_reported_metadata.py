"""What files carry beside their pixels: marks, texts, EXIF, XMP, orientation and transparency."""

from pathlib import Path

import numpy as np
import pytest
from fixtures_runs import write_model
from PIL import Image

import stylize
from stylize.pictures.mark import is_painted, mark_of
from stylize.pictures.reading import read_raster

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
