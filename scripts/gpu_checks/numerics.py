"""Every operation of `stylize.ops` on the device, forward and backward, against float64 on the CPU.

The reference gets the inputs as they are after rounding to the type, so that only the operation's own errors count.
Errors are relative to the largest value of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpu_checks.results import Check, Found, Skipped, require
from gpu_checks.setting import Setting
from stylize import ops
from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.generators.base import PADDING_MODES, PaddedConv2d
from stylize.norms import standardizing
from stylize.ops import Border, Geometry, Statistics, Upsampling, Window
from stylize.system.compiler import has_compiler
from stylize.system.compute import MAP_TYPES, Compute

TABLE = "largest errors, relative to the largest value"
KERNELS = "kernels of norms in inference"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
# Units in the last place. In float32 fast convolutions (Winograd's) lose some digits; TensorFloat-32 would lose 5000.
ULPS = {torch.float32: 256.0, torch.bfloat16: 4.0, torch.float16: 6.0}
MEAN_OVER_DEVIATION = 1000.0
EPS = 1e-5
MOST_THREADS = 4
MOST_CANCELLING_PX = 10_000

Inputs = Sequence[Tensor]
Operation = Callable[..., Tensor | tuple[Tensor, ...]]


class Case(NamedTuple):
    """An operation on tensors.

    Attributes:
        name: Describes it.
        inputs: Its inputs in float32 on the CPU, maps first.
        run: The operation.
        typed: Number of inputs that have the type of the maps; the others stay in float32.
        gradients: Number of inputs whose gradients are compared, too.
        before_relu: The operation without its ReLU: where it is nearly 0, rounding decides about the gradient.
        result_type: Type that decides about the tolerance of the results; None: that of the maps.
        cancels: Quotient of the maps' mean and deviation, by which errors of float32 grow.
    """

    name: str
    inputs: Inputs
    run: Operation
    typed: int
    gradients: int = 0
    before_relu: Operation | None = None
    result_type: torch.dtype | None = None
    cancels: float = 0.0


Cases = Callable[[Setting, torch.dtype], Iterator[Case]]


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks. They are many and small: more threads would wait for each other."""
    torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
    for name, make in OPERATIONS.items():
        for precision in setting.precisions():
            yield Check(f"{name}, {precision}", partial(compare, setting, name, make, precision), TABLE)
    for precision in setting.precisions():
        yield Check(f"kernels of norms, {precision}", partial(kernels_of_norms, setting, precision), KERNELS)


@torch.no_grad()
def kernels_of_norms(setting: Setting, precision: str) -> Found:
    """Check that norms in inference are served by kernels where the device has them, not by plain PyTorch.

    Raises:
        Failed: They are not.
        Skipped: What the kernels need is not there.
    """
    x = _random(2, 32, 40, 48).to(setting.device, MAP_TYPES[precision], memory_format=torch.channels_last)
    if setting.on_cuda and not has_compiler(setting.device):
        raise Skipped("there is no Triton, no C compiler, or no Python.h")
    if not setting.on_cuda:
        setting.needs("numba")
        if precision == "fp16":
            raise Skipped("the kernels of CPUs have no float16")
    before = ops.kernel_calls()
    _normalize(True, None, x, *(p.to(setting.device) for p in _parameters(32)))
    calls = ops.kernel_calls() - before
    found = Found({"precision": precision, "operations served by kernels": str(calls)}, {"calls": calls})
    require(calls >= 2, f"{calls} operations of a norm were served by kernels, must be 2: see the warnings", found)
    return found


def compare(
    setting: Setting, name: str, make: Callable[[Setting, torch.dtype], Iterator[Case]], precision: str
) -> Found:
    """Compare an operation in all its cases.

    Raises:
        Failed: An error is above what the type explains.
    """
    worst, worst_case, count = (0.0, 1.0, -1.0), "", 0
    for case in make(setting, MAP_TYPES[precision]):
        for what, error, allowed in differences(setting, case, precision):
            count += 1
            if not error / allowed <= worst[2]:
                worst, worst_case = (error, allowed, error / allowed), f"{what} of {case.name}"
    error, allowed, share = worst
    row = {"operation": name, "precision": precision, "values compared": str(count), "error": f"{error:.1e}"}
    found = Found({**row, "allowed": f"{allowed:.1e}", "in": worst_case}, {"error": error, "allowed": allowed})
    require(share <= 1, f"{worst_case}: off by {error:.2e} of the largest value, must be at most {allowed:.2e}", found)
    return found


def differences(setting: Setting, case: Case, precision: str) -> Iterator[tuple[str, float, float]]:
    """Yield the errors of an operation's results and gradients in both layouts: what, the error, and what is allowed.

    Raises:
        Skipped: The device does not have the operation in this type.
    """
    dtype = MAP_TYPES[precision]
    rounded = [x.to(dtype) if i < case.typed else x for i, x in enumerate(case.inputs)]
    exact = [x.double().requires_grad_(i < case.gradients) for i, x in enumerate(rounded)]
    expected = _results(case.run, exact)
    cotangents: list[Tensor] = []
    true: Inputs = ()
    of_results = ulp(case.result_type or dtype) + 8 * case.cancels * torch.finfo(torch.float32).eps
    of_gradients = ulp(dtype) + 16 * case.cancels * torch.finfo(torch.float32).eps
    for layout_name, layout in LAYOUTS.items():
        given = [_placed(x, setting.device, layout).requires_grad_(i < case.gradients) for i, x in enumerate(rounded)]
        with Compute(setting.device, precision).context():
            try:
                got = _results(case.run, given)
            except NotImplementedError as error:  # what torch raises for a type that an operation lacks on a device
                raise Skipped(f"torch does not have it in {precision} here ({str(error)[:60]})") from error
            with torch.no_grad():  # has kernels of its own
                inferred = _results(case.run, given)
            for i, (mine, other, theirs) in enumerate(zip(got, inferred, expected, strict=True)):
                name = f"{layout_name} result{f' {i + 1}' if len(got) > 1 else ''}"
                yield name, _error(mine, theirs), of_results
                yield f"{name} without gradients", _error(other, theirs), of_results
            if not case.gradients:
                continue
            if not true:
                cotangents = _cotangents(case, exact, expected, [mine.dtype for mine in got])
                true = torch.autograd.grad(expected, exact[: case.gradients], cotangents)
            backward = [c.to(g) for c, g in zip(cotangents, got, strict=True)]
            gradients = torch.autograd.grad(got, given[: case.gradients], backward)
        for i, (gradient, theirs) in enumerate(zip(gradients, true, strict=True)):
            yield f"{layout_name} gradient {i + 1}", _error(gradient, theirs), of_gradients


def ulp(dtype: torch.dtype) -> float:
    """Return the error that is allowed in a type, relative to the largest value."""
    return ULPS[dtype] * torch.finfo(dtype).eps


def _placed(x: Tensor, device: torch.device, layout: torch.memory_format) -> Tensor:
    """Return `x` on the device, detached: cases share their inputs."""
    return (x.to(device, memory_format=layout) if x.dim() == 4 else x.to(device)).detach()


def _results(run: Operation, inputs: Inputs) -> tuple[Tensor, ...]:
    found = run(*inputs)
    return found if isinstance(found, tuple) else (found,)


def _cotangents(case: Case, exact: Inputs, expected: Inputs, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(x.shape, generator=generator).to(t).double() for x, t in zip(expected, dtypes, strict=True)]
    if case.before_relu is not None:
        (before,) = _results(case.before_relu, exact)
        drawn[0] = drawn[0] * (before.abs() > 0.1 * before.std())
    return drawn


def _error(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return math.inf
    largest = expected.detach().abs().max().item()
    error = (got.detach().cpu().double() - expected.detach()).abs().max().item() / (largest or 1.0)
    return math.inf if math.isnan(error) else error


def _random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Kind(NamedTuple):
    """A convolution as a generator has it."""

    kernel_px: int
    stride: int
    upsampling: Upsampling | None
    depthwise: bool

    def __str__(self) -> str:
        words = [f"{self.kernel_px}×{self.kernel_px}", *(["stride 2"] if self.stride == 2 else [])]
        words += [f"{self.upsampling} ×2"] if self.upsampling else []
        return ", ".join([*words, *(["depthwise"] if self.depthwise else [])])


def convolution_kinds() -> list[Kind]:
    """Return all kinds of convolutions that generators have."""
    kinds: dict[Kind, None] = {}
    with torch.device("meta"):
        for name in GENERATORS:
            generator = build_generator(GeneratorConfig(name=name, width=8))
            for stage in generator.stages(32, 32) or ():
                depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in _modules(stage.conv))
                geometry = stage.geometry
                kinds[Kind(geometry.kernel_px, geometry.stride, stage.upsampling, depthwise)] = None
            for module in generator.modules():
                if isinstance(module, PaddedConv2d):
                    geometry = module.geometry
                    kinds[Kind(geometry.kernel_px, geometry.stride, None, module.groups > 1)] = None
    return list(kinds)


def _modules(conv: object) -> list[nn.Module]:
    return list(conv.modules()) if isinstance(conv, nn.Module) else []


class Convolution(NamedTuple):
    """A kind of convolution with its tensors."""

    name: str
    inputs: list[Tensor]
    geometry: Geometry


def convolutions(setting: Setting) -> Iterator[Convolution]:
    """Yield every kind of convolution with every border, on maps of odd size."""
    height, width = setting.sized((37, 45), (11, 13))
    borders: list[Border] = list(PADDING_MODES.values())
    for kind in convolution_kinds():
        channels, results = (16, 16) if kind.depthwise else (3 if kind.kernel_px == 9 else 16, 24)
        for border in borders:
            size = (2 * height - 1, 2 * width - 1) if kind.upsampling else None
            geometry = Geometry(kind.kernel_px, kind.stride, border, size, kind.upsampling or "bilinear")
            shape = (results, 1 if kind.depthwise else channels, kind.kernel_px, kind.kernel_px)
            weight = _random(*shape, seed=1, scale=(shape[1] * kind.kernel_px**2) ** -0.5)
            inputs = [_random(2, channels, height, width), weight, _random(results, seed=2)]
            yield Convolution(f"{kind}, {border}", inputs, geometry)


def conv2d_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `conv2d`; the first layers' pictures have no gradient in training, here they do."""
    for name, inputs, geometry in convolutions(setting):
        run = partial(_conv2d, geometry, False)
        yield Case(name, inputs, run, 3, 3)
        yield Case(f"{name}, ReLU", inputs, partial(_conv2d, geometry, True), 3, 3, run)


def _conv2d(geometry: Geometry, relu: bool, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.conv2d(x, weight, bias, geometry, relu=relu)


def conv2d_rows_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `conv2d_rows`: rows at the top, in the middle and at the bottom."""
    for name, inputs, geometry in convolutions(setting):
        x, weight, bias = inputs
        height = geometry.result_size(x.shape[2:])[0]
        middle = height // 2
        for first, last in ((0, min(4, height)), (middle, min(middle + 5, height)), (height - 3, height)):
            run = partial(_rows, geometry, (first, last))
            yield Case(f"{name}, rows {first} to {last - 1}", [x[:1], weight, bias], run, 3)


@torch.no_grad()
def _rows(geometry: Geometry, rows: tuple[int, int], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        return ops.conv2d(x, weight, bias, geometry)[:, :, rows[0] : rows[1]]
    image = x[0].permute(1, 2, 0).contiguous()
    first, last = geometry.needed_rows(*rows, len(image))
    return ops.conv2d_rows(Window(image[first:last], first, len(image)), weight, bias, geometry, rows)


def normalize_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `normalize`, with large means, and of maps in float32 whose result has the type."""
    for name, x, cancels in _maps_to_normalize(setting):
        inputs = [x, *_parameters(x.shape[1])]
        # Gradients of parameters are sums over all pixels of what cancels: no float32 has them of large maps.
        gradients = 0 if cancels and x.shape[2:].numel() > MOST_CANCELLING_PX else 3
        for relu in (False, True):
            run = partial(_normalize, relu, None)
            before = partial(_normalize, False, None) if relu else None
            told = f"{name}, ReLU" if relu else name
            yield Case(told, inputs, run, 1, gradients, before, cancels=cancels)
        if dtype != torch.float32:
            run = partial(_normalize, False, dtype)
            yield Case(f"{name}, from float32", inputs, run, 0, gradients, cancels=cancels)


def _normalize(relu: bool, to: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    def coefficients(instance: Statistics) -> tuple[Tensor, Tensor]:
        factor, offset = standardizing(instance, EPS)
        return factor * weight, offset * weight + bias

    return ops.normalize(x, coefficients, [weight, bias], relu=relu, dtype=_unless_exact(to, x))


def _unless_exact(to: torch.dtype | None, x: Tensor) -> torch.dtype | None:
    return None if x.dtype == torch.float64 else to


def affine_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `affine`: coefficients of every picture, or of all."""
    for name, x, cancels in _maps_to_normalize(setting):
        for pictures in () if cancels else sorted({len(x), 1}):
            factor, offset = _random(pictures, x.shape[1], seed=4), _random(pictures, x.shape[1], seed=5)
            inputs = [x, factor, offset]
            told, before = f"{name}, coefficients of {pictures}", partial(_affine, False, None)
            yield Case(told, inputs, before, 1, 3)
            yield Case(f"{told}, ReLU", inputs, partial(_affine, True, None), 1, 3, before)
            if dtype != torch.float32:
                yield Case(f"{told}, from float32", inputs, partial(_affine, False, dtype), 0, 3)


def _affine(relu: bool, to: torch.dtype | None, x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    return ops.affine(x, factor, offset, relu=relu, dtype=_unless_exact(to, x))


def statistics_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `instance_statistics`."""
    for name, x, cancels in _maps_to_normalize(setting):
        yield Case(name, [x], _statistics, 1, 1, result_type=torch.float32, cancels=cancels)


def _statistics(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(ops.instance_statistics(x))


def _maps_to_normalize(setting: Setting) -> Iterator[tuple[str, Tensor, float]]:
    large = ((3, 16, 37, 45), (2, 3, 64, 64), (3, 16, 1, 7), (1, 24, 515, 769), (2, 160, 33, 31))
    for shape in setting.sized(large, ((3, 16, 9, 11), (2, 3, 1, 3))):
        x, name = _random(*shape, seed=3), "×".join(map(str, shape))
        yield name, x, 0.0
        if shape[2] > 1:
            yield f"{name}, mean {MEAN_OVER_DEVIATION:g} σ", x + MEAN_OVER_DEVIATION, MEAN_OVER_DEVIATION


def _parameters(channels: int) -> tuple[Tensor, Tensor]:
    return _random(channels, seed=8).abs() + 0.5, _random(channels, seed=9)


def max_pool_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `max_pool2x2`; the values of a window differ in every type, so that one gets the gradient."""
    for height, width in setting.sized(((36, 44), (37, 45)), ((8, 6), (9, 7))):
        drawn = torch.randint(0, 30, (2, 16, height, width), generator=torch.Generator().manual_seed(6))
        place = 2 * (torch.arange(height)[:, None] % 2) + torch.arange(width) % 2
        yield Case(f"{height}×{width}", [(4 * drawn + place).float()], ops.max_pool2x2, 1, 1)


def gram_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `gram_matrix`."""
    for channels, height, width in setting.sized(((64, 37, 45), (512, 8, 8), (16, 128, 129)), ((16, 7, 9),)):
        x = _random(2, channels, height, width).clamp_min(0)
        yield Case(f"{channels} channels, {height}×{width}", [x], ops.gram_matrix, 1, 1)


def upsample_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `upsample_to`: to even and odd sizes."""
    filters: tuple[Upsampling, ...] = ("bilinear", "nearest")
    height, width = setting.sized((37, 45), (7, 9))
    for kind in filters:
        for size in ((2 * height, 2 * width), (2 * height - 1, 2 * width - 1), (2 * height, width)):
            yield Case(
                f"{kind} to {size[0]}×{size[1]}", [_random(2, 16, height, width)], partial(_up, size, kind), 1, 1
            )


def _up(size: tuple[int, int], kind: Upsampling, x: Tensor) -> Tensor:
    return ops.upsample_to(x, size, kind)


def pad_cases(setting: Setting, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the cases of `pad`."""
    height, width = setting.sized((37, 45), (7, 9))
    for border in PADDING_MODES.values():
        for border_px in (1, 4):
            name = f"{border}, {border_px} px"
            yield Case(name, [_random(2, 16, height, width)], partial(_pad, border_px, border), 1, 1)


def _pad(border_px: int, border: Border, x: Tensor) -> Tensor:
    return ops.pad(x, border_px, border)


OPERATIONS: dict[str, Cases] = {
    "conv2d": conv2d_cases,
    "conv2d_rows": conv2d_rows_cases,
    "normalize": normalize_cases,
    "affine": affine_cases,
    "instance_statistics": statistics_cases,
    "max_pool2x2": max_pool_cases,
    "gram_matrix": gram_cases,
    "upsample_to": upsample_cases,
    "pad": pad_cases,
}
