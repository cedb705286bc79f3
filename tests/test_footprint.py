import pytest
import torch
from torch import Tensor, nn

from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.inference.footprint import SIDE_PX, peak_values_per_px


class Chain(nn.Module):
    """Maps of 8 channels beside the image, then of 16 beside 8, then in place."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.repeat(1, 8, 1, 1)
        wider = wide.repeat(1, 2, 1, 1)
        del wide
        return wider.relu_()[:, :1]


def test_maps_count_while_they_are_alive_and_views_not_at_all() -> None:
    image = 3 * SIDE_PX**2
    assert peak_values_per_px(Chain()) * SIDE_PX**2 == image + 8 * image + 16 * image


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
    peak_values_per_px(network)
    assert network.calls == 0
    assert network.conv.weight.device.type == "cpu"


@pytest.mark.parametrize("name", GENERATORS)
def test_twice_the_width_takes_about_twice_the_memory(name: str) -> None:
    narrow, wide = (
        peak_values_per_px(build_generator(GeneratorConfig(name=name, width=width)).eval()) for width in (32, 64)
    )
    assert 1.8 < wide / narrow < 2.05


def test_johnsons_network_holds_most_while_it_pads_upsampled_maps() -> None:
    image, source, upsampled = 3, 64 / 4, 64
    padded = 64 * (1 + 2 / SIDE_PX) ** 2
    found = peak_values_per_px(build_generator(GeneratorConfig(width=32)).eval())
    assert found == pytest.approx(image + source + upsampled + padded, rel=1e-3)
