"""The loss in tiles: the numbers and gradients of the whole picture."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stylize import ops
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.optimization.gatys import OptimizationConfig, optimize_from
from stylize.optimization.tiles import sight_px, tiled_towards, tiles_of

LAYERS: dict[str, Any] = {
    "style_layers": {"relu1_1": 1.0, "relu2_1": 0.5, "relu3_1": 2.0},
    "content_layers": {"relu2_2": 1.0, "relu3_1": 0.5},
}


def image(height: int, width: int, seed: int) -> Tensor:
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def make_loss(**options: Any) -> PerceptualLoss:
    config = LossConfig(**{**LAYERS, **options})
    return PerceptualLoss(load_vgg("random", config.taps(), seed=0).vgg, config, [image(64, 80, 9)[0]])


@pytest.mark.parametrize("size", ((96, 136), (101, 67), (64, 203)))
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"tv_weight": 0.3, "style_energy": "style", "channel_balance": 0.0},
        {"scale": "raw", "tv_weight": 0.3},
        {"style_layers": {"relu1_1": 1.0}, "content_layers": {"relu1_2": 1.0}},
        {"style_layers": {"relu4_1": 1.0}, "content_layers": {"relu3_3": 1.0}, "padding": "zero"},
    ),
)
def test_tiles_have_the_terms_and_gradients_of_the_whole(size: tuple[int, int], options: dict[str, Any]) -> None:
    loss, content = make_loss(**options), image(*size, 1)
    picture = (content + 0.2 * (image(*size, 2) - 0.5)).clamp(0, 1)
    found = []
    with ops.reference():  # rounding of the kernels depends on the place; it may pass a ReLU's corner
        for measure in (loss.towards(content), tiled_towards(loss, content, tile_px=40)):
            pixels = picture.clone().requires_grad_()
            terms = measure(pixels)
            (gradient,) = torch.autograd.grad(terms["total"], pixels)
            found.append(({name: float(value.detach()) for name, value in terms.items()}, gradient))
    (whole, whole_gradient), (tiled, tiled_gradient) = found
    assert tiled == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(tiled_gradient, whole_gradient, rtol=1e-3, atol=2e-5 * float(whole_gradient.abs().max()))


def test_tiles_cover_every_place_once() -> None:
    for height, width in ((40, 40), (41, 100), (200, 16)):
        count = torch.zeros(height, width)
        for tile in tiles_of(height, width, 64, 16):
            (top, bottom), (left, right) = tile.rows, tile.columns
            count[top:bottom, left:right] += 1
            assert top % 16 == left % 16 == 0
        assert (count == 1).all()


def test_what_is_farther_than_a_layer_sees_does_not_change_it() -> None:
    torch.manual_seed(0)
    for tap in ("relu1_2", "relu2_2", "relu3_1", "relu4_1"):
        vgg = load_vgg("random", (tap,), seed=0).vgg
        sight, picture = sight_px(tap), torch.rand(1, 3, 160, 160)
        changed = picture.clone()
        changed[..., : 80 - sight, :] = 0
        stride = 1 << (int(tap[4]) - 1)
        difference = (vgg(picture, (tap,))[tap] - vgg(changed, (tap,))[tap]).abs().amax((1, 3))[0]
        same = difference < 1e-5 * difference.max()
        assert same[80 // stride :].all() and not same[: (80 - sight) // stride].all()


def test_an_optimization_in_tiles_goes_the_same_way() -> None:
    loss, content = make_loss(), image(72, 96, 1)
    config = OptimizationConfig(history=5)
    ways = [
        [iterate.terms["total"] for iterate in optimize_from(measure, content, 4, config)]
        for measure in (loss.towards(content), tiled_towards(loss, content, tile_px=32))
    ]
    assert ways[1] == pytest.approx(ways[0], rel=1e-3)
    assert ways[0][-1] < 0.9 * ways[0][0]


def test_a_small_picture_is_one_tile() -> None:
    loss, content = make_loss(), image(64, 64, 1)
    assert float(tiled_towards(loss, content, 64)(content)["total"]) == float(loss.towards(content)(content)["total"])
