"""What norms do with maps on a CPU: statistics, multiply-add with ReLU, their gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.norms import NORMS
from stylize.ops.cpu.compile import LANES
from stylize.ops.cpu.norm import Affine, is_vectorized, measure

BY_PIXEL, BY_CHANNEL = torch.channels_last, torch.contiguous_format
MAPS = (  # the last of each layout in more than one band
    ((1, LANES, 1, 2), BY_PIXEL),
    ((2, 2 * LANES, 5, 7), BY_PIXEL),
    ((3, LANES, 70, 131), BY_PIXEL),
    ((1, 1, 1, LANES), BY_CHANNEL),
    ((2, 5, 7, 2 * LANES), BY_CHANNEL),
    ((2, 2, 45, 160 * LANES), BY_CHANNEL),
)


def draw_maps(shape: tuple[int, ...], layout: torch.memory_format = BY_PIXEL, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return (3 * torch.randn(shape) + 5).contiguous(memory_format=layout)


def draw_towards(x: Tensor) -> Tensor:
    by_channel = x.is_contiguous()
    return draw_maps(tuple(x.shape), BY_CHANNEL if by_channel else BY_PIXEL, seed=1)


def over_maps(values: Tensor) -> Tensor:
    return values[:, :, None, None]


@pytest.fixture(params=MAPS, ids=lambda given: f"{given[0]}, {given[1]}")
def x(request: pytest.FixtureRequest) -> Tensor:
    return draw_maps(*request.param)


@pytest.fixture
def affine(x: Tensor) -> Affine:
    torch.manual_seed(2)
    return Affine(torch.randn(x.shape[:2]), torch.randn(x.shape[:2]), relu=True)


def test_statistics_equal_those_of_float64(x: Tensor) -> None:
    mean, variance = measure(x)
    exact_variance, exact_mean = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact_variance, rtol=1e-5, atol=0)


def test_statistics_of_large_means_do_not_cancel() -> None:
    x = draw_maps((1, LANES, 90, 120)) + 3000
    x[:, :, 45:] += 1
    exact = x.double().var((2, 3), correction=0)
    torch.testing.assert_close(measure(x)[1].double(), exact, rtol=1e-4, atol=0)


def test_statistics_of_one_colour_have_no_variance() -> None:
    x = torch.full((1, LANES, 64, 64), 0.7).contiguous(memory_format=torch.channels_last)
    assert float(measure(x)[1].max()) == 0


def test_results_do_not_depend_on_the_number_of_threads(x: Tensor, affine: Affine) -> None:
    def everything() -> list[Tensor]:
        towards = draw_towards(x)
        return [*measure(x), affine(x), *affine.sums(x, towards)]

    threads = torch.get_num_threads()
    several = everything()
    try:
        torch.set_num_threads(1 if threads > 1 else 3)
        assert all(map(torch.equal, several, everything()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("relu", [True, False], ids=("relu", "plain"))
def test_multiply_add_and_its_gradients_equal_those_of_float64(x: Tensor, affine: Affine, relu: bool) -> None:
    affine = affine._replace(relu=relu)
    towards = draw_towards(x)
    exact, factor, offset = (t.double().requires_grad_() for t in (x, affine.factor, affine.offset))
    y = over_maps(factor) * exact + over_maps(offset)
    y = F.relu(y) if relu else y
    of_x, of_factor, of_offset = torch.autograd.grad(y, (exact, factor, offset), towards.double())
    slope, constant = torch.randn_like(affine.factor), torch.randn_like(affine.factor)
    found = [affine(x), *affine.sums(x, towards), affine.gradient(x, towards, slope, constant)]
    expected = [y.detach(), of_factor, of_offset, of_x + over_maps(slope) * exact.detach() + over_maps(constant)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_maps_of_bfloat16_give_the_numbers_of_float32_rounded_once(x: Tensor, affine: Affine) -> None:
    half, towards = x.bfloat16(), draw_towards(x).bfloat16()
    full = half.float()
    slope, constant = torch.randn_like(affine.factor), torch.randn_like(affine.factor)
    for a, b in zip(measure(half), measure(full), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    for a, b in zip(affine.sums(half, towards), affine.sums(full, towards.float()), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    assert torch.equal(affine(half), affine(full).bfloat16())
    gradient = affine.gradient(full, towards.float(), slope, constant)
    assert torch.equal(affine.gradient(half, towards, slope, constant), gradient.bfloat16())


def test_multiply_add_in_place_gives_the_same(x: Tensor, affine: Affine) -> None:
    expected = affine(x)
    assert affine(x, out=x) is x
    assert torch.equal(x, expected)


def test_what_is_no_number_stays_so(x: Tensor, affine: Affine) -> None:
    x[0, -1, 0, 1] = torch.nan
    painted = affine(x)
    assert bool(painted[0, -1, 0, 1].isnan()) and int(painted.isnan().sum()) == 1


@pytest.mark.parametrize(
    ("x", "vectorized"),
    [
        (draw_maps((2, LANES, 3, 4)), True),
        (draw_maps((2, LANES + 1, 3, 4)), False),
        (draw_maps((2, LANES, 3, LANES + 1), BY_CHANNEL), False),
        (draw_maps((2, 3, 3, LANES), BY_CHANNEL), True),
        (draw_maps((2, LANES, 3, 4))[:, :, :, :2], False),
        (draw_maps((2, LANES, 3, 4))[0], False),
        (draw_maps((0, LANES, 3, 4)), False),
    ],
    ids=(
        "whole vectors",
        "a channel more",
        "channels of no whole vectors",
        "contiguous",
        "a part",
        "three dimensions",
        "empty",
    ),
)
def test_maps_are_taken_whose_pixels_or_channels_fill_vectors(x: Tensor, vectorized: bool) -> None:
    assert is_vectorized(x) == vectorized


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("layout", (BY_PIXEL, BY_CHANNEL), ids=str)
def test_a_norm_with_relu_has_the_gradients_of_both(name: str, training: bool, layout: torch.memory_format) -> None:
    x = draw_maps((2, 2 * LANES, 9, LANES), layout)
    norm, exact = (NORMS[name](2 * LANES).train(training) for _ in range(2))
    torch.manual_seed(3)
    for ours, theirs in zip(norm.parameters(), exact.double().parameters(), strict=True):
        ours.data.uniform_(0.3, 0.9)
        theirs.data.copy_(ours.data)
    towards = draw_towards(x)

    def with_gradients(layer: torch.nn.Module, x: Tensor, towards: Tensor, ours: bool) -> list[Tensor]:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer.normalize_(leaf * 1, relu=True) if ours else F.relu(layer(leaf))
        return [y.detach(), *torch.autograd.grad(y, (leaf, *layer.parameters()), towards)]

    found = with_gradients(norm, x, towards, ours=True)
    expected = with_gradients(exact, x.double(), towards.double(), ours=False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=5e-5 * float(b.abs().max()))
    for a, b in zip(norm.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)
    assert bool((found[0] >= 0).all()) and float(found[0].max()) > 0


@pytest.mark.parametrize("layout", (BY_PIXEL, BY_CHANNEL), ids=str)
@pytest.mark.parametrize("other", (BY_PIXEL, BY_CHANNEL), ids=str)
@torch.inference_mode()
def test_a_norm_writes_into_maps_of_any_layout(layout: torch.memory_format, other: torch.memory_format) -> None:
    norm = NORMS["instance"](LANES).eval()
    x = draw_maps((1, LANES, 4, LANES), layout)
    expected = F.relu(F.instance_norm(x.double())).float()
    out = torch.zeros_like(x, memory_format=other)
    assert norm.normalize_(x, relu=True, out=out) is out
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_norm_has_no_gradient_of_its_own() -> None:
    norm = NORMS["instance"](LANES)
    norm.weight.requires_grad_(False)  # type: ignore[union-attr]
    x = draw_maps((1, LANES, 4, 5)).requires_grad_()
    norm(x).square().sum().backward()
    assert x.grad is not None and norm.weight.grad is None  # type: ignore[union-attr]
    assert norm.bias is not None and norm.bias.grad is not None


def test_a_gradient_may_be_taken_twice() -> None:
    x = draw_maps((1, LANES, 4, 5)).requires_grad_()
    loss = NORMS["instance"](LANES)(x).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])
