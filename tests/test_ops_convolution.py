from collections.abc import Callable
from typing import Any

import numba
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize import ops
from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.losses.vgg import VGG19
from stylize.losses.vgg_weights import randomize_
from stylize.norms import NORMS
from stylize.ops import Border, Geometry, conv2d, instance_statistics, upsample_to
from stylize.ops.cpu import winograd
from stylize.ops.cpu.compile import compiled
from stylize.ops.cpu.simd import LANES
from stylize.ops.limits import limits
from stylize.ops.padding import pad
from stylize.system.threads import in_threads

BORDERS: tuple[Border, ...] = ("reflect", "replicate", "constant")
# Channels, results, kernel, stride, height and width, enlarged to: odd sizes end in the middle of a tile and a strip.
KINDS: tuple[tuple[int, int, int, int, tuple[int, int], tuple[int, int] | None], ...] = (
    (3, 8, 9, 1, (19, 23), None),
    (8, 3, 9, 1, (19, 23), None),
    (8, 6, 3, 2, (19, 22), None),
    (8, 4, 3, 1, (8, 9), (16, 17)),
    (128, 64, 3, 1, (16, 16), None),
    (128, 64, 3, 1, (17, 22), None),
    (128, 96, 3, 1, (9, 10), (17, 20)),
    (64, 128, 3, 1, (5, 7), None),
    (72, 36, 3, 1, (9, 13), None),
    (12, 256, 3, 1, (9, 13), None),
    (64, 32, 3, 1, (6, 1203), None),
    (5, 4, 5, 1, (9, 12), None),
    (4, 3, 5, 1, (8, 9), (16, 17)),
)
TOLERANCE = 2e-5


def plainly(x: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry) -> Tensor:
    enlarged = x if geometry.size is None else upsample_to(x, geometry.size)
    padded = F.pad(enlarged, (geometry.border_px,) * 4, geometry.border)
    return F.conv2d(padded, weight, bias, geometry.stride)


def with_gradients(function: Callable[..., Tensor], *arguments: Any) -> list[Tensor]:
    leaves = [a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
    result = function(*leaves)
    towards = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [result.detach(), *torch.autograd.grad(result, tensors, towards.to(result.dtype))]


def largest_difference(values: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, exact, strict=True))


def arguments_of(kind: Any, border: Border) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    channels, results, kernel_px, stride, side, size = kind
    torch.manual_seed(0)
    weight = torch.randn(results, channels, kernel_px, kernel_px) / (kernel_px * channels**0.5)
    return torch.randn(2, channels, *side), weight, torch.randn(results), Geometry(kernel_px, stride, border, size)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("strip", ["whole", "strips", "one image"])
def test_padded_convolution_and_its_gradients_equal_those_of_float64(kind: Any, border: Border, strip: str) -> None:
    names = ("strip_values", "windowed_values", "chunk_values", "chunk_tiles")
    smallest = dict.fromkeys(names, 1) if strip == "strips" else {}
    x, weight, bias, geometry = arguments_of(kind, border)
    x = x[: 1 if strip == "one image" else 2]
    with limits.set(**smallest):
        found = with_gradients(conv2d, x, weight, bias, geometry)
    exact = with_gradients(plainly, x.double(), weight.double(), bias.double(), geometry)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert largest_difference([t.double() for t in found], exact) < TOLERANCE


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_with_relu_result_and_gradients_equal_those_of_float64(kind: Any, count: int, frozen: bool) -> None:
    x, weight, bias, geometry = arguments_of(kind, "reflect")
    x = x[:count]

    def rectified(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
        constants = tuple(t.to(leaves[0].dtype) for t in (weight, bias)) if frozen else ()
        return with_gradients(lambda *given: function(*given, *constants), *leaves)

    leaves = [x] if frozen else [x, weight, bias]
    found = rectified(lambda *given: conv2d(*given, geometry, relu=True), *leaves)
    exact = rectified(lambda *given: plainly(*given, geometry).relu(), *(leaf.double() for leaf in leaves))
    assert float(found[0].min()) == 0
    assert largest_difference([t.double() for t in found], exact) < TOLERANCE


@pytest.mark.parametrize("border", ("reflect", "replicate"))
@pytest.mark.parametrize("side", [(16, 16), (17, 22), (5, 1203)], ids=str)
def test_a_flat_image_stays_flat_to_the_last_bit(border: Border, side: tuple[int, int]) -> None:
    _, weight, bias, geometry = arguments_of((64, 72, 3, 1, side, None), border)
    levels = torch.rand(2, 64, 1, 1)
    result = conv2d(levels.expand(-1, -1, *side).contiguous(), weight, bias, geometry)
    assert torch.equal(result, result[..., :1, :1].expand_as(result))


def test_relu_keeps_what_is_no_number() -> None:
    x, weight, bias, geometry = arguments_of((64, 32, 3, 1, (8, 9), None), "constant")
    x[0, 0, 4, 4] = float("nan")
    assert conv2d(x, weight, bias, geometry, relu=True).isnan().any()


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight, bias, geometry = arguments_of((64, 40, 3, 1, (37, 18), None), "reflect")
    with limits.set(chunk_values=1, chunk_tiles=1):
        found = with_gradients(conv2d, x, weight, bias, geometry)
    exact = with_gradients(plainly, x.double(), weight.double(), bias.double(), geometry)
    assert largest_difference([t.double() for t in found], exact) < TOLERANCE


def test_after_an_inference_a_convolution_may_train() -> None:
    x, weight, bias, geometry = arguments_of((64, 48, 3, 1, (4, 4 * 300), None), "reflect")
    with torch.inference_mode():
        expected = conv2d(x[:1, :, :4, :4], weight, bias, geometry)  # small enough for the calling thread
        conv2d(x, weight, bias, geometry)
    found = conv2d(x[:1, :, :4, :4].clone().requires_grad_(), weight, bias, geometry)
    found.sum().backward()
    assert torch.equal(found.detach(), expected)


def test_a_fault_in_a_thread_is_told() -> None:
    def work(number: int) -> None:
        if number == 1:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        in_threads(work, 2)


def test_frozen_weights_are_transformed_once_and_again_when_they_change() -> None:
    x, weight, bias, geometry = arguments_of((64, 32, 3, 1, (8, 9), None), "constant")
    kept = winograd.winograd_of(weight)
    assert winograd.winograd_of(weight) is kept
    for change in (lambda: weight.mul_(2), lambda: setattr(weight, "data", weight.flip(0))):
        conv2d(x, weight, bias, geometry)
        change()
        found = conv2d(x, weight, bias, geometry)
        assert largest_difference([found], [plainly(x, weight, bias, geometry)]) < TOLERANCE


def test_weights_that_train_are_not_kept() -> None:
    weight = torch.rand(64, 32, 3, 3, requires_grad=True)
    assert winograd.winograd_of(weight) is not winograd.winograd_of(weight)


def test_without_a_folder_for_compiled_functions_they_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def njit(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)

    @compiled
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_and_its_gradients_equal_those_of_float64(border: Border, stride: int) -> None:
    x, weight, bias, geometry = arguments_of((6, 6, 3, stride, (9, 12), None), border)
    weight = weight[:, :1].contiguous()

    def plainly_by_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1,) * 4, border), weight, bias, stride, groups=6)

    found = with_gradients(conv2d, x, weight, bias, geometry)
    exact = with_gradients(plainly_by_channel, x.double(), weight.double(), bias.double())
    assert largest_difference([t.double() for t in found], exact) < TOLERANCE


def test_frozen_weights_get_no_gradient_and_keep_no_input() -> None:
    x, weight, bias, geometry = arguments_of(KINDS[0], "replicate")
    result = conv2d(x.requires_grad_(), weight, bias, geometry)
    assert [saved for saved in result.grad_fn.saved_tensors if saved is not None and saved.shape == x.shape] == []
    result.sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def kernels_used(call: Callable[[], object]) -> int:
    before = ops.kernel_calls()
    call()
    return ops.kernel_calls() - before


@pytest.mark.parametrize("unlike", ["bfloat16", "autocast", "grouped", "compiling", "reference"])
def test_other_kinds_are_left_to_torch(unlike: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, geometry = torch.rand(1, 4, 8, 8), torch.rand(4, 4, 3, 3), Geometry(3, 1, "reflect")
    assert kernels_used(lambda: conv2d(x, weight, None, geometry)) == 1
    if unlike == "bfloat16":
        assert not kernels_used(lambda: conv2d(x.bfloat16(), weight.bfloat16(), None, geometry))
    elif unlike == "grouped":
        assert not kernels_used(lambda: conv2d(x, torch.rand(4, 2, 3, 3), None, geometry))
    elif unlike == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not kernels_used(lambda: conv2d(x, weight, None, geometry))
    else:
        off = ops.reference() if unlike == "reference" else torch.autocast("cpu", dtype=torch.bfloat16)
        with off:
            assert not kernels_used(lambda: conv2d(x, weight, None, geometry))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_shapes_that_do_not_fit_are_refused_before_a_kernel_sees_them() -> None:
    geometry = Geometry(3, 1, "reflect")
    shapes = "must be (N, C, H, W) and (K, C, 3, 3), or (C, 1, 3, 3) for a depthwise convolution"
    x, weight = torch.rand(1, 32, 8, 8), torch.rand(16, 32, 3, 3)
    for maps, kernel in ((x[0], weight), (x, weight[:, :31]), (x, torch.rand(16, 32, 5, 5)), (x, weight[0])):
        got = f"conv2d: got maps {tuple(maps.shape)} and weights {tuple(kernel.shape)}, "
        assert refused(lambda m=maps, k=kernel: conv2d(m, k, None, geometry)) == got + shapes
    assert refused(lambda: conv2d(x, weight, torch.rand(15), geometry)) == "conv2d: got a bias (15,), must be (16,)"


@torch.no_grad()
def test_memory_for_the_result_is_refused_where_a_kernel_would_write_beyond_it() -> None:
    geometry, window = Geometry(3, 1, "reflect"), ops.Window(torch.rand(8, 9, 32), 0, 8)
    weight = torch.rand(16, 32, 3, 3)

    def rows(out: Tensor) -> Tensor:
        return ops.conv2d_rows(window, weight, None, geometry, (2, 6), out)

    expected = conv2d(window.values.permute(2, 0, 1)[None], weight, None, geometry)[:, :, 2:6]
    torch.testing.assert_close(rows(torch.empty(4, 9, 16)), expected, rtol=1e-5, atol=1e-5)
    shape = "must be contiguous (4, 9, 16)"
    assert (
        refused(lambda: rows(torch.empty(3, 9, 16))) == f"out: got shape (3, 9, 16) with strides (144, 16, 1), {shape}"
    )
    gaps = torch.empty(4, 9, 32)[..., :16]
    assert refused(lambda: rows(gaps)) == f"out: got shape (4, 9, 16) with strides (288, 32, 1), {shape}"
    assert refused(lambda: rows(torch.empty(4, 9, 16, dtype=torch.float64))) == (
        "out: got torch.float64 on cpu, must be torch.float32 on cpu"
    )


@torch.no_grad()
def test_memory_for_normalized_maps_is_refused_where_it_does_not_fit() -> None:
    x = torch.rand(1, 2 * LANES, 4, 5).contiguous(memory_format=torch.channels_last)
    norm = NORMS["instance"](2 * LANES).eval()
    for out in (x[:, :, :3], x.double()):
        assert refused(lambda out=out: norm.normalize_(x, out=out)) == (
            f"out: got {out.dtype} {tuple(out.shape)} on cpu, must be torch.float32 {tuple(x.shape)} on cpu"
        )


@pytest.mark.parametrize("upsampling", ("bilinear", "nearest"))
def test_upsampling_and_its_gradients_equal_those_of_float64(upsampling: ops.Upsampling) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 32, 5, 7), torch.randn(16, 32, 3, 3) / 17, torch.randn(16)
    geometry = Geometry(3, 1, "reflect", (9, 14), upsampling)
    found = with_gradients(conv2d, x, weight, bias, geometry)
    exact = with_gradients(conv2d, x.double(), weight.double(), bias.double(), geometry)
    assert largest_difference([t.double() for t in found], exact) < TOLERANCE
    with torch.no_grad():
        assert largest_difference([conv2d(x, weight, bias, geometry).double()], exact[:1]) < TOLERANCE


@pytest.mark.parametrize("norm", ["instance", "batch", "batch_instance"])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_gives_the_same_picture_and_gradients_by_torch_alone(name: str, norm: str) -> None:
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig(name=name, norm=norm, width=8)).train()
    x = torch.rand(2, 3, 33, 38)

    def gradients() -> list[Tensor]:
        torch.manual_seed(1)
        painted = generator(x)
        return [painted.detach(), *torch.autograd.grad(painted.square().sum(), list(generator.parameters()))]

    fast = gradients()
    calls = ops.kernel_calls()
    with ops.reference():
        slow = gradients()
    assert ops.kernel_calls() == calls > 0
    torch.testing.assert_close(fast[0], slow[0], rtol=0, atol=1e-4)
    scale = max(float(g.abs().max()) for g in slow[1:])
    for a, b in zip(fast[1:], slow[1:], strict=True):
        # The texture network normalizes maps of a few px, which magnifies rounding.
        torch.testing.assert_close(a, b, rtol=0, atol=scale * (2e-2 if name == "texture_network" else 1e-3))


@pytest.mark.parametrize("taps", [("relu1_1", "relu2_1", "relu3_1"), ("relu1_2", "relu3_1")], ids=str)
def test_vgg_gives_the_same_features_and_gradient_by_torch_alone(taps: tuple[str, ...]) -> None:
    vgg = VGG19(5)
    randomize_(vgg, 0)
    image = torch.rand(2, 3, 33, 38, requires_grad=True)

    def gradients() -> list[Tensor]:
        features = vgg(image, taps)
        (gradient,) = torch.autograd.grad(sum(f.square().mean() for f in features.values()), image)
        return [*(f.detach() for f in features.values()), gradient]

    fast = gradients()
    with ops.reference():
        assert largest_difference(fast, gradients()) < 1e-4


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("channels", [4, 2 * LANES])
def test_norms_and_their_gradients_equal_those_of_float64(
    name: str, layout: torch.memory_format, count: int, channels: int
) -> None:
    torch.manual_seed(0)
    norm = NORMS[name](channels)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.3, 0.9)
    x = (torch.randn(count, channels, 12, 15) * 3 + 5).contiguous(memory_format=layout)
    found = with_gradients(norm, x)
    exact = with_gradients(norm.double(), x.double())
    assert largest_difference([t.double() for t in found], exact) < TOLERANCE


@torch.no_grad()
def test_statistics_of_a_large_picture_are_exact() -> None:
    x = (torch.rand(1, 2, 700, 300) + 100).contiguous(memory_format=torch.channels_last)
    x[..., :350, :] += 1
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    found = instance_statistics(x)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("channels", [4, 2 * LANES])
@pytest.mark.parametrize("relu", [True, False], ids=("relu", "plain"))
def test_normalizing_in_place_gives_what_a_call_gives(name: str, channels: int, relu: bool) -> None:
    torch.manual_seed(0)
    norm = NORMS[name](channels).eval()
    x = torch.randn(2, channels, 6, 7).contiguous(memory_format=torch.channels_last)
    called = F.relu(norm(x)) if relu else norm(x)
    torch.testing.assert_close(norm.normalize_(x, relu=relu), called, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 2 * LANES])
def test_normalizing_in_place_needs_no_second_map(channels: int) -> None:
    x = torch.randn(1, channels, 6, 7).contiguous(memory_format=torch.channels_last)
    assert NORMS["instance"](channels).eval().normalize_(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("border", "border_px", "size"),
    [
        ("replicate", 1, (5, 7)),
        ("replicate", 2, (1, 4)),
        ("replicate", 1, (1, 1)),
        ("reflect", 1, (5, 7)),
        ("reflect", 4, (5, 9)),
        ("constant", 1, (3, 4)),
    ],
)
def test_maps_are_padded_in_their_layout_forward_and_backward(
    border: Border, border_px: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    expected = F.pad(x, (border_px,) * 4, mode=border)
    padded = pad(x, border_px, border)
    assert torch.equal(padded, expected)
    assert size == (1, 1) or padded.is_contiguous(memory_format=layout)  # maps of one pixel are both
    with torch.no_grad():
        assert torch.equal(pad(x, border_px, border), expected)
    weights = torch.randn_like(expected)
    theirs, ours = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (expected, padded))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradgradcheck(lambda y: pad(y, border_px, border).square(), (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("shape", "size"), [((5, 7), (10, 14)), ((5, 7), (9, 13)), ((1, 4), (2, 8)), ((4, 4), (4, 8)), ((3, 1), (6, 2))]
)
def test_upsampling_has_the_gradient_of_torch(
    shape: tuple[int, int], size: tuple[int, int], layout: torch.memory_format
) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    factors = tuple(2.0 if a < b else 1.0 for a, b in zip(shape, size, strict=True))
    plain = F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
    expected, found = plain[..., : size[0], : size[1]], upsample_to(x, size)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradgradcheck(lambda y: upsample_to(y, size).square(), (x,))


@torch.no_grad()
@pytest.mark.parametrize("strip_values", [1 << 8, 1 << 20])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(3, 1, "reflect"),
        Geometry(3, 2, "reflect"),
        Geometry(3, 1, "reflect", size=(26, 29)),
        Geometry(3, 1, "replicate"),
        Geometry(1, 1, "reflect"),
    ],
)
def test_without_a_gradient_maps_of_bfloat16_are_convolved_in_strips(geometry: Geometry, strip_values: int) -> None:
    x = torch.randn(2, 16, 13, 15).bfloat16().contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(32, 16, geometry.kernel_px, geometry.kernel_px).bfloat16(), torch.randn(32).bfloat16()
    with ops.reference():
        expected = conv2d(x, weight, bias, geometry, relu=True)
    with limits.set(strip_values=strip_values):
        calls = ops.kernel_calls()
        found = conv2d(x, weight, bias, geometry, relu=True)
    assert ops.kernel_calls() == calls + 1
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)
