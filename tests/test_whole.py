import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.generators.base import Generator
from stylize.inference.stylizer import Stylizer
from stylize.inference.whole import Layout, Maps, lay_out, layout_of, paint_whole
from stylize.models.file import load_model
from stylize.models.find import built_in_models
from stylize.norms import NORMS
from stylize.ops import Geometry
from stylize.ops.cpu.winograd import Winograd
from stylize.ops.limits import limits
from stylize.pictures.picture import Picture
from stylize.system.compute import Compute

SIZES = ((16, 16), (17, 33), (64, 50), (203, 150))
BY_STAGES = [name for name in GENERATORS if build_generator(GeneratorConfig(name=name, width=4)).stages(16, 16)]


def network(**config: object) -> Generator:
    generator = build_generator(GeneratorConfig.model_validate({"width": 8, "margin": 0, **config})).eval()
    for parameter in generator.parameters():  # norms as after training: neither 1 nor 0
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 20)
    return generator


def assert_painted_as_one(generator: Generator, height: int, width: int) -> None:
    photograph = torch.rand(1, 3, height, width)
    stages = generator.stages(height, width)
    assert stages is not None
    with torch.inference_mode():
        expected, painted = generator(photograph), paint_whole(stages, photograph)
    assert expected.std() > 0.001
    assert painted.shape == photograph.shape
    assert (painted - expected).abs().max() < 2e-5


def test_most_generators_have_stages() -> None:
    assert {"johnson", "johnson_lite", "fast_neural_style"} <= set(BY_STAGES)


@pytest.mark.parametrize("name", BY_STAGES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_stages_paint_what_the_network_does(name: str, norm: str) -> None:
    for height, width in SIZES:
        assert_painted_as_one(network(name=name, norm=norm), height, width)


@pytest.mark.parametrize("padding", ("replication", "zero"))
def test_with_every_border(padding: str) -> None:
    for height, width in SIZES:
        assert_painted_as_one(network(padding=padding), height, width)


@pytest.mark.parametrize("name", BY_STAGES)
def test_in_many_strips(name: str) -> None:
    with limits.set(strip_values=1):
        assert_painted_as_one(network(name=name), 61, 83)


def test_by_the_algorithm_of_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    convolve = Winograd.convolve
    monkeypatch.setattr(Winograd, "convolve", lambda self, *rest: (used.append(self), convolve(self, *rest))[1])
    assert_painted_as_one(network(width=16), 61, 83)
    assert used


def test_a_stylizer_paints_pictures_together_as_alone() -> None:
    stylizer = Stylizer(network(), Compute(torch.device("cpu")))
    pictures = [Picture(torch.rand(3, 40, 52)) for _ in range(3)]
    together = stylizer.paint_many(pictures)
    assert not torch.equal(together[0].rgb, together[1].rgb)
    for picture, painted in zip(pictures, together, strict=True):
        assert torch.equal(stylizer(picture).rgb, painted.rgb)


@pytest.mark.parametrize("style", built_in_models())
def test_a_picture_of_one_colour_is_painted_in_one_colour(style: str) -> None:
    generator, _ = load_model(*built_in_models()[style])
    stylizer = Stylizer(generator, Compute(torch.device("cpu")))
    for level in (0.0, 0.4, 1.0):
        painted = stylizer(Picture(torch.full((3, 61, 83), level))).rgb
        assert (painted.amax((1, 2)) - painted.amin((1, 2))).max() < 0.5 / 255


# Where the maps lie


def test_the_largest_maps_and_a_few_rows_are_all_that_is_taken() -> None:
    stages = network(width=32).stages(1024, 768)
    assert stages is not None
    layout = layout_of(stages)
    assert 32 * 1024 * 768 <= layout.values <= 32 * 1032 * 768


@pytest.mark.parametrize("values_late", (False, True))
def test_what_is_read_last_ends_later(values_late: bool) -> None:
    """Four maps of one size: two that follow each other need room for both; the first is kept for the last."""
    shape, same = (8, 8, 2), Geometry(3, 1, "reflect")
    chain = (Maps(shape, same, 3 if values_late else 1), Maps(shape, same, 2), Maps(shape, same, 3))
    layout = lay_out(chain)
    assert layout.values == (3 if values_late else 2) * chain[0].values


def written_over(chain: tuple[Maps, ...], layout: Layout) -> list[str]:
    """Go through all rows as the convolutions do; tell what was gone when it was read."""
    room: dict[int, tuple[int, int]] = {}  # cache line → whose row

    def lines(i: int, row: int) -> range:
        start = layout.starts[i] + row * chain[i].row_values
        return range(start // 16, -(-(start + chain[i].row_values) // 16))

    def read(i: int, row: int) -> bool:
        return all(room[line][0] == i for line in lines(i, row))

    lost = []
    for i, maps in enumerate(chain):
        whole = i > 0 and maps.geometry.stride == 1 and maps.geometry.size is None
        for row in range(maps.shape[0]):
            if whole:  # in threads, in any order: nothing that it reads may be written over at all
                needed = range(chain[i - 1].shape[0])
            else:
                needed = range(*maps.geometry.needed_rows(row, row + 1, chain[i - 1].shape[0])) if i else range(0)
            lost += [f"row {r} of maps {i - 1} for row {row} of the next" for r in needed if not read(i - 1, r)]
            for line in lines(i, row):
                room[line] = (i, row)
        for j in range(i):
            if chain[j].last == i > j + 1:
                lost += [f"row {r} of maps {j} for {i}" for r in range(chain[j].shape[0]) if not read(j, r)]
    return lost


@st.composite
def chains(draw: st.DrawFn) -> tuple[Maps, ...]:
    height, width = draw(st.integers(16, 40)), 16 * draw(st.integers(1, 3))
    count = draw(st.integers(2, 9))
    maps: list[Maps] = []
    for i in range(count):
        kind = draw(st.sampled_from(("same", "down", "up")))
        kernel_px, border = (
            draw(st.sampled_from((1, 3, 5))),
            draw(st.sampled_from(("reflect", "replicate", "constant"))),
        )
        geometry = Geometry(kernel_px, 1, border)
        if kind == "down" and height >= 16:
            height, width = -(-height // 2), -(-width // 2)
            geometry = geometry._replace(stride=2)
        elif kind == "up":
            height, width = 2 * height - draw(st.integers(0, 1)), 2 * width
            geometry = geometry._replace(size=(height, width))
        last = min(i + draw(st.sampled_from((1, 1, 2, 3))), count)
        maps.append(Maps((height, width, 16), geometry, last))
    return tuple(maps)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_nothing_is_written_over_before_it_is_read(chain: tuple[Maps, ...]) -> None:
    layout = lay_out(chain)
    assert not written_over(chain, layout)
    assert layout.values <= sum(maps.values for maps in chain)
    assert layout.values >= max(a.values for a, b in pairwise((*chain, chain[0])))


def test_the_check_notices_what_lies_wrong() -> None:
    generator = network()
    stages = generator.stages(64, 64)
    assert stages is not None
    layout = layout_of(stages)
    chain = tuple(Maps((*s.size, s.conv.out_channels), s.geometry, i + 1) for i, s in enumerate(stages[:-1]))
    wrong = list(layout.starts)
    random.Random(0).shuffle(wrong)
    assert written_over(chain, Layout(tuple(wrong), layout.values))
