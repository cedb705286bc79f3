"""A margin of itself around a picture: painted with it, and cut off."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_large import GIB, keep_maps, levels, photograph, room
from torch import Tensor
from torch.nn import functional

from stylize.errors import StylizeError
from stylize.generators import GENERATORS, Generator, GeneratorConfig, build_generator
from stylize.inference.large import paint_large
from stylize.inference.options import PaintOptions
from stylize.inference.plans import CPU
from stylize.inference.stylizer import Stylizer
from stylize.measures.frame import frame_score
from stylize.models.file import ModelCard, encode_model, load_model, read_card
from stylize.pictures.raster import Metadata, raster_of
from stylize.system.compute import Compute

NETWORKS = [name for name in GENERATORS if name != "fast_neural_style"]


def network(name: str = "johnson", norm: str = "instance", margin: int = 16) -> Generator:
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(name=name, norm=norm, width=4, margin=margin)).eval()


def image(height: int = 52, width: int = 68) -> Tensor:
    return photograph(width, height).rgb[None]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_is_painted_with_its_mirrored_surrounding(name: str) -> None:
    x = image(64, 96)
    surrounded = functional.pad(x, (16,) * 4, mode="reflect")
    with torch.no_grad():
        expected = network(name, margin=0)(surrounded)[:, :, 16:-16, 16:-16]
        torch.testing.assert_close(network(name)(x), expected)


@pytest.mark.parametrize("norm", ("instance", "batch", "batch_instance", "layer", "none"))
@pytest.mark.parametrize("size", ((52, 68), (16, 16), (17, 200)))
def test_the_stylizer_paints_what_the_network_paints(norm: str, size: tuple[int, int]) -> None:
    generator, x = network(norm=norm, margin=32), image(*size)  # of a picture smaller than the margin, too
    with torch.no_grad():
        expected = generator(x)
        painted = Stylizer(generator, Compute(CPU)).paint_batch(torch.cat([x, x.flip(3)]), PaintOptions())
    torch.testing.assert_close(painted[:1], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(painted[1:], generator(x.flip(3)).detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ("instance", "batch", "none"))
@pytest.mark.parametrize("margin", (4, 16, 64))
def test_strips_paint_what_the_whole_is(
    norm: str, margin: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stylizer, source = Stylizer(network(norm=norm, margin=margin), Compute(CPU)), raster_of([photograph()], Metadata())
    expected = levels(raster_of([stylizer(source.picture())], Metadata()))
    shares: list[float] = []
    keep_maps(tmp_path, monkeypatch)
    painted = paint_large(stylizer, source, None, PaintOptions(strength=0.9), room(GIB, tmp_path), shares.append)
    expected = levels(raster_of([stylizer(source.picture(), PaintOptions(strength=0.9))], Metadata()))
    assert (levels(painted) - expected).abs().max() <= 1
    assert (levels(painted) - expected).abs().double().mean() < 0.01
    assert sum(shares) == pytest.approx(1)


def test_a_network_of_a_trained_style_frames_less_with_a_margin() -> None:
    from stylize.models.find import find_model

    generator, _ = load_model(find_model("stained_glass").path)
    assert generator.margin == 0  # its file is older than margins
    x = image(160, 192)
    scores = []
    for margin in (0, 32):
        generator.margin = margin
        with torch.no_grad():
            score = frame_score(generator, x[0], generator(x)[0])
        assert score is not None
        scores.append(score)
    assert scores[1] < 0.8 * scores[0]


def test_the_estimate_of_memory_counts_the_margin() -> None:
    plain, with_margin = (Stylizer(network(margin=margin), Compute(CPU)) for margin in (0, 128))
    assert with_margin.bytes_for((768, 768)) == pytest.approx(plain.bytes_for((1024, 1024)), rel=0.1)
    assert with_margin.bytes_for((768, 768)) > plain.bytes_for((768, 768))


def test_a_model_file_holds_the_margin_and_is_of_a_version_that_older_ones_refuse_by_its_number(tmp_path: Path) -> None:
    for margin, version in ((0, "1"), (16, "3")):
        generator = network(margin=margin)
        card = ModelCard(generator=GeneratorConfig(width=4, margin=margin), style="dots")
        path = tmp_path / f"{margin}.safetensors"
        path.write_bytes(encode_model(generator, card))
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["format_version"] == version
        assert ("margin" in json.loads(metadata["generator"])) == (margin > 0)
        assert read_card(path).generator.margin == load_model(path)[0].margin == margin


@pytest.mark.parametrize("margin", (-4, 6, 260))
def test_a_margin_that_does_not_fit_is_refused(margin: int) -> None:
    with pytest.raises((ValueError, StylizeError), match="margin"):
        GeneratorConfig(margin=margin)
