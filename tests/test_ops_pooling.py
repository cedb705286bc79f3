"""The largest of 2×2 px, and its gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylize import ops
from stylize.losses.vgg import VGG19
from stylize.ops.cpu.compile import LANES

SHAPES = ((1, LANES, 2, 2), (2, 2 * LANES, 6, 8), (3, LANES, 7, 8), (2, LANES, 8, 9), (1, 3 * LANES, 33, 17))


def draw_maps(shape: tuple[int, ...]) -> Tensor:
    """As they come from ReLU: of many four pixels all are 0."""
    torch.manual_seed(0)
    return torch.randn(shape).relu().contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", ("channels-last", "contiguous", "part of a larger one"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_result_and_gradient_are_those_of_torch(shape: tuple[int, ...], layout: str) -> None:
    x = draw_maps(shape)
    own, plain = (x.clone(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    found, expected = ops.max_pool2x2(own), F.max_pool2d(plain, 2)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    towards = torch.randn(expected.shape)
    if layout == "part of a larger one":
        towards = F.pad(towards, (1, 1, 1, 1))
    if layout != "contiguous":
        towards = towards.contiguous(memory_format=torch.channels_last)
    if layout == "part of a larger one":
        towards = towards[..., 1:-1, 1:-1]
    found.backward(towards)  # type: ignore[no-untyped-call]
    expected.backward(towards)  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert plain.grad is not None
    assert torch.equal(own.grad, plain.grad)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 5, 4)], ids=str)
def test_without_the_kernel_result_and_gradient_are_those_of_torch(shape: tuple[int, ...]) -> None:
    x = draw_maps(shape)
    own, plain = (x.clone(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    with ops.reference():
        found = ops.max_pool2x2(own)
    expected = F.max_pool2d(plain, 2)
    towards = torch.randn(expected.shape)
    torch.autograd.backward([found, expected], [towards, towards])
    assert own.grad is not None and plain.grad is not None
    assert torch.equal(found, expected) and torch.equal(own.grad, plain.grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_maps_of_bfloat16_are_pooled_by_the_kernel_with_the_same_numbers(shape: tuple[int, ...]) -> None:
    x = draw_maps(shape).bfloat16()
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    calls = ops.kernel_calls()
    found, expected = ops.max_pool2x2(half), ops.max_pool2x2(full)
    assert ops.kernel_calls() == calls + 2
    assert torch.equal(found, expected.bfloat16())
    towards = torch.randn(expected.shape).bfloat16()
    torch.autograd.backward([found, expected], [towards, towards.float()])
    assert half.grad is not None and full.grad is not None
    assert torch.equal(half.grad, full.grad.bfloat16())


@pytest.mark.parametrize("place", range(4))
def test_what_is_no_number_stays(place: int) -> None:
    x = draw_maps((1, LANES, 4, 4))
    x[0, 3, place // 2, place % 2] = float("nan")
    found = ops.max_pool2x2(x)
    assert found[0, 3, 0, 0].isnan()
    assert found.isnan().sum() == 1


@pytest.mark.parametrize("threads", (1, 3))
def test_any_number_of_threads_gives_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = draw_maps((2, LANES, 11, 6))
    assert torch.equal(ops.max_pool2x2(x), F.max_pool2d(x, 2))


def test_others_are_left_to_torch() -> None:
    def has_kernel(x: Tensor) -> bool:
        calls = ops.kernel_calls()
        assert torch.equal(ops.max_pool2x2(x), F.max_pool2d(x, 2)) or x.shape[2] == 1
        return ops.kernel_calls() > calls

    x = draw_maps((1, LANES, 4, 4))
    assert has_kernel(x)
    assert not has_kernel(x.contiguous())
    assert not has_kernel(x.double())
    assert not has_kernel(x[:, : LANES // 2].contiguous(memory_format=torch.channels_last))
    with ops.reference():
        assert not has_kernel(x)
    with pytest.raises(RuntimeError, match="too small"):
        has_kernel(x[:, :, :1])


def test_by_plain_pytorch_vgg_can_be_differentiated_twice() -> None:
    vgg = VGG19(4)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)

    def curvature() -> Tensor:
        (gradient,) = torch.autograd.grad(vgg(image, ["relu2_2"])["relu2_2"].sum(), image, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), vgg.features["0"].weight)[0]

    vgg.requires_grad_(True)
    with ops.reference():
        assert curvature().abs().max() > 0
