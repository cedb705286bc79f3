import pytest
import torch
from torch import Tensor, nn

from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.inference.footprint import SIDE_PX, footprint


class Chain(nn.Module):
    """Maps of 8 channels beside the image, then of 16 beside 8, then in place."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.repeat(1, 8, 1, 1)
        wider = wide.repeat(1, 2, 1, 1)
        del wide
        return wider.relu_()[:, :1]


def test_maps_count_while_they_are_alive_and_views_not_at_all() -> None:
    image = 3 * SIDE_PX**2
    taken = footprint(Chain())
    assert taken.bytes_per_px * SIDE_PX**2 == 4 * (image + 8 * image + 16 * image)
    assert taken.values_per_px * SIDE_PX**2 == 16 * image


def test_maps_count_in_the_types_that_they_have() -> None:
    class Narrowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16().relu_()

    assert footprint(Narrowing()) == (3 * 4 + 3 * 2, 3)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_a_network_in_16_bits_is_measured_as_it_is_held(dtype: torch.dtype) -> None:
    network = build_generator(GeneratorConfig(width=32, margin=0)).eval()
    full = footprint(network)
    network.hold_in(dtype)
    half = footprint(network)
    # The first and the last convolution compute in float32.
    assert 0.5 * full.bytes_per_px <= half.bytes_per_px < full.bytes_per_px
    assert half.values_per_px == full.values_per_px == pytest.approx(64 * (1 + 2 / SIDE_PX) ** 2)


def test_the_network_is_neither_run_nor_changed() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.conv(x)

    network = Counting()
    footprint(network)
    assert network.calls == 0
    assert network.conv.weight.device.type == "cpu"


@pytest.mark.parametrize("name", GENERATORS)
def test_twice_the_width_takes_about_twice_the_memory(name: str) -> None:
    narrow, wide = (
        footprint(build_generator(GeneratorConfig(name=name, width=width, margin=0)).eval()).bytes_per_px
        for width in (32, 64)
    )
    assert 1.8 < wide / narrow < 2.05


def test_johnsons_network_holds_most_while_it_pads_upsampled_maps() -> None:
    image, source, upsampled = 3, 64 / 4, 64
    padded = 64 * (1 + 2 / SIDE_PX) ** 2
    found = footprint(build_generator(GeneratorConfig(width=32, margin=0)).eval()).bytes_per_px
    assert found == pytest.approx(4 * (image + source + upsampled + padded), rel=1e-3)
