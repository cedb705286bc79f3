"""Larger strokes: the enlargement of a small painted picture, and what the command makes of it."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_runs import picture, write_model
from torch import Tensor
from torch.nn import functional as F

from stylize.cli import cli
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.inference.compilation import choose_shapes
from stylize.inference.options import PaintOptions
from stylize.inference.painter import Shape
from stylize.inference.strokes import Band, Enlargement, largest_scale, shrunk_size, small_rows
from stylize.inference.stylizer import Stylizer, shrink, with_colors_of
from stylize.pictures.picture import Picture
from stylize.pictures.reading import read_header, read_picture
from stylize.system.compute import Compute

CPU = torch.device("cpu")


def step_edge(width: int = 96, height: int = 64) -> Tensor:
    """A gray picture, dark at the left of a vertical edge that small pictures' pixels do not meet."""
    image = torch.full((3, height, width), 0.2)
    image[:, :, width // 2 + 1 :] = 0.8
    return image


def small(image: Tensor, scale: int) -> Tensor:
    return shrink(image[None], shrunk_size((image.shape[2], image.shape[1]), scale))[0]


def enlarged(photograph: Tensor, painted: Tensor, scale: int) -> Tensor:
    _, height, width = photograph.shape
    return Enlargement(small(photograph, scale), painted, (width, height)).whole(photograph)


def bicubic(painted: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(painted[None], like.shape[1:], mode="bicubic", align_corners=False)[0]


def edge_width_px(row: Tensor) -> float:
    """The height of the edge over its greatest slope."""
    return float((row.max() - row.min()) / row.diff().abs().max())


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_an_edge_of_the_photograph_is_as_sharp_in_the_painting_and_lies_where_it_lay(scale: int) -> None:
    photograph = step_edge(192, 128)
    thumbnail = small(photograph, scale)
    painted = torch.stack([1 - thumbnail[0], 0.3 * thumbnail[0] + 0.1, thumbnail[0]])
    result = enlarged(photograph, painted, scale)
    for channel in range(3):
        row = result[channel, 64]
        assert edge_width_px(row) < 1.2
        assert edge_width_px(bicubic(painted, photograph)[channel, 64]) > 1.1 * scale
        assert row.diff().abs().argmax() == photograph[0, 64].diff().abs().argmax()


def test_an_edge_of_the_painting_alone_is_sharper_than_bicubic() -> None:
    photograph = torch.full((3, 96, 96), 0.5)
    painted = step_edge(24, 24)
    result = enlarged(photograph, painted, 4)
    assert edge_width_px(result[0, 48]) < 0.6 * edge_width_px(bicubic(painted, photograph)[0, 48])


def test_nothing_goes_beyond_what_was_painted_close_by() -> None:
    photograph, painted = torch.rand(3, 60, 90), torch.rand(3, 20, 30)
    result = enlarged(photograph, painted, 3)
    least, greatest = (float(f(painted)) for f in (torch.min, torch.max))
    assert least <= float(result.min()) + 1e-6
    assert float(result.max()) <= greatest + 1e-6
    left_dark = painted.clone()
    left_dark[:, :, :15] *= 0.1
    assert enlarged(photograph, left_dark, 3)[:, :, :39].max() <= 0.1


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_what_is_painted_in_one_colour_stays_so_over_any_texture(level: float) -> None:
    result = enlarged(torch.rand(3, 50, 70), torch.full((3, 25, 35), level), 2)
    assert torch.allclose(result, torch.full_like(result, level), atol=1e-6)


def test_a_constant_photograph_adds_nothing() -> None:
    painted = torch.rand(3, 20, 30)
    results = [enlarged(torch.full((3, 40, 60), level), painted, 2) for level in (0.0, 0.7)]
    assert torch.allclose(*results, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("size", [(83, 61), (160, 61), (17, 120)])
def test_strips_are_the_whole_bit_for_bit(rows: int, size: tuple[int, int]) -> None:
    width, height = size
    photograph = torch.rand(height, width, 3).permute(2, 0, 1)
    enlargement = Enlargement(torch.rand(3, 25, 30), torch.rand(3, 25, 30), size)
    whole = enlargement.whole(photograph, 1000)
    strips = [
        enlargement.rows(photograph[:, first : first + rows], first, min(first + rows, height))
        for first in range(0, height, rows)
    ]
    assert torch.equal(torch.cat(strips, 1), whole)
    assert torch.equal(enlargement.rows(photograph, 0, height), whole)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("size", [(83, 261), (160, 61), (17, 120)])
def test_bands_of_the_small_pictures_suffice(rows: int, size: tuple[int, int]) -> None:
    width, height = size
    photograph, small, painted = (torch.rand(3, h, w) for h, w in ((height, width), (47, 30), (47, 30)))
    whole = Enlargement(small, painted, size).whole(photograph)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        low, high = small_rows(first, last, height, 47)
        band = Enlargement(small[:, low:high], painted[:, low:high], size, Band(low, 47))
        assert torch.allclose(band.rows(photograph[:, first:last], first, last), whole[:, first:last], atol=1e-6)


# The stylizer


@pytest.fixture
def stylizer() -> Stylizer:
    return Stylizer(build_generator(GeneratorConfig(width=4)), Compute(CPU))


def test_a_scale_of_one_is_painting_as_ever(stylizer: Stylizer) -> None:
    photograph = Picture(torch.rand(3, 40, 50))
    with torch.inference_mode():
        painted = stylizer.generator(photograph.rgb[None]).clamp(0, 1)[0]
    assert torch.equal(stylizer(photograph, PaintOptions(stroke_scale=1.0)).rgb, painted)
    assert torch.equal(stylizer(photograph).rgb, painted)


def test_strength_and_colours_apply_at_full_size_behind_max_size(stylizer: Stylizer) -> None:
    photograph = Picture(torch.rand(3, 80, 100), torch.rand(1, 80, 100))
    limited = shrink(photograph.rgb[None], (60, 48))
    thumbnail = shrink(limited, (30, 24))[0]
    painted = Enlargement(thumbnail, stylizer(Picture(thumbnail)).rgb, (60, 48)).whole(limited[0])
    expected = torch.lerp(limited, with_colors_of(limited, painted[None]), 0.7)[0]
    result = stylizer(photograph, PaintOptions(strength=0.7, keep_colors=True, max_size_px=60, stroke_scale=2))
    assert torch.allclose(result.rgb, expected, atol=1e-6)
    assert result.alpha is not None
    assert result.alpha.shape == (1, 48, 60)


def test_several_together_have_each_its_own_detail(stylizer: Stylizer) -> None:
    photographs = [Picture(torch.rand(3, 40, 50)) for _ in range(3)]
    paint = PaintOptions(stroke_scale=2)
    for photograph, painted in zip(photographs, stylizer.paint_many(photographs, paint), strict=True):
        assert (stylizer(photograph, paint).rgb - painted.rgb).abs().max() < 1e-5


def test_a_scale_that_leaves_too_little_names_the_largest(stylizer: Stylizer) -> None:
    with pytest.raises(StylizeError) as caught:
        stylizer(Picture(torch.rand(3, 70, 100)), PaintOptions(stroke_scale=6))
    assert str(caught.value) == (
        "got a stroke scale of 6 for an image of 100×70 px, must be at most 4.37: at 1/6 it must have at least 16 px "
        "in each direction"
    )
    assert stylizer(Picture(torch.rand(3, 70, 100)), PaintOptions(stroke_scale=4.37)).size == (100, 70)
    with pytest.raises(StylizeError) as caught:
        stylizer(Picture(torch.rand(3, 8, 100)), PaintOptions(stroke_scale=2))
    assert str(caught.value) == "got an image of 100×8 px, must be at least 16 px in each direction"


def test_the_largest_scale_that_is_named_is_possible() -> None:
    for side in range(16, 400):
        scales = [scale / 100 for scale in range(100, 801)]
        possible = [scale for scale in scales if round(side / scale) >= 16]
        assert largest_scale((side, 500)) in possible


def test_compilation_is_for_the_size_that_the_network_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize.inference.compilation.check_compiler", lambda device, place: None)
    sizes = [(100, 80), (101, 80), (200, 40), (20, 20)]
    assert choose_shapes("always", Compute(CPU), sizes, 2) == {Shape(1, 50, 40), Shape(1, 100, 20)}


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "dots.safetensors", config={"content": {"crop": 16}})
    for name, width in (("a", 40), ("b", 120), ("c", 130)):
        picture(tmp_path / "photos" / f"{name}.png", width, 48)
    return tmp_path


@pytest.fixture
def told(folder: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """What `apply` advises."""

    def paint(*arguments: str) -> list[str]:
        caplog.clear()
        line = ["apply", *arguments, "--precision", "fp32", "-o", "out", "--overwrite", "--device", "cpu"]
        logging.getLogger("stylize").propagate = True
        with caplog.at_level(logging.INFO, "stylize"):
            cli.main(line, standalone_mode=False)
        return [message for message in caplog.messages if "trained on" in message]

    return paint


def test_larger_strokes_are_advised_once_where_a_picture_is_far_larger_than_the_crops(
    told: Callable[..., list[str]],
) -> None:
    line = ["photos", "--model", "dots.safetensors"]
    assert told(*line) == [
        "photos/b.png: 120 px are 8 times the 16 px that the model was trained on; "
        "--stroke-scale 3 paints larger strokes"
    ]
    assert told(*line, "--stroke-scale", "2") == [
        "photos/b.png: 60 px are 4 times the 16 px that the model was trained on; "
        "--stroke-scale 3 paints larger strokes"
    ]
    assert told(*line, "--stroke-scale", "2.5") == [
        "photos/c.png: 52 px are 3 times the 16 px that the model was trained on; "
        "--stroke-scale 3 paints larger strokes"
    ]
    assert told(*line, "--stroke-scale", "2", "--max-size", "96") == []
    assert told(*line, "--max-size", "48") == []


def test_nothing_is_advised_where_the_model_does_not_tell_its_crops(
    folder: Path, told: Callable[..., list[str]]
) -> None:
    for config in ({}, {"content": None}, {"content": {"crop": "large"}}, {"content": {"crop": 0}}):
        write_model(folder / "other.safetensors", config=config)
        assert told("photos", "--model", "other.safetensors") == []


def test_the_command_paints_larger_strokes_at_the_size_of_the_photograph(folder: Path) -> None:
    line = ["apply", "photos/b.png", "--model", "dots.safetensors", "--precision", "fp32", "--device", "cpu"]
    for scale in ("1", "2.5"):
        cli.main([*line, "--stroke-scale", scale, "-o", f"{scale}.png"], standalone_mode=False)
    cli.main([*line, "-o", "plain.png"], standalone_mode=False)
    assert read_header(folder / "2.5.png").size == (120, 48)
    assert Path("1.png").read_bytes() == Path("plain.png").read_bytes()
    assert not torch.equal(read_picture(folder / "2.5.png").rgb, read_picture(folder / "1.png").rgb)


def test_the_command_names_the_picture_whose_strokes_would_be_too_large(folder: Path) -> None:
    with pytest.raises(StylizeError) as caught:
        cli.main(
            ["apply", "photos", "--model", "dots.safetensors", "-o", "out", "--stroke-scale", "3"],
            standalone_mode=False,
        )
    assert str(caught.value) == (
        "1 of 3 pictures failed: photos/a.png: got a stroke scale of 3 for an image of 40×48 px, must be at most 2.5: "
        "at 1/3 it must have at least 16 px in each direction"
    )
