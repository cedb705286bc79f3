"""The GPU's kernels, without a GPU: interpreted, compiled for several processors, and when they fail."""

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from stylize import ops
from stylize.ops import dispatch, normalization

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

INTERPRETED = """
import torch
from stylize import ops
from stylize.norms import NORMS, build_norm
from stylize.ops import dispatch, normalization

plain = {}
for on in (False, True):
    normalization.gpu_kernels = lambda x: on and not torch.is_grad_enabled()
    normalization.cpu_kernels = lambda *tensors, types=(): False
    torch.manual_seed(0)
    for shape in ((2, 32, 9, 7), (1, 8, 70, 131), (3, 200, 5, 6), (2, 4, 5, 3)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = (torch.randn(shape) + 50).to(dtype).contiguous(memory_format=torch.channels_last)
    
            for name in NORMS:
                for relu in (False, True):
                    for target in (None, torch.bfloat16):
                        norm = build_norm(name, shape[1]).eval()
                        for parameter in norm.parameters():
                            torch.nn.init.uniform_(parameter, 0.2, 0.8)
                        calls = ops.kernel_calls()
                        with torch.no_grad():
                            given = x.clone(memory_format=torch.preserve_format)
                            found = norm.normalize_(given, relu=relu, dtype=target)
                        assert (ops.kernel_calls() > calls) == (on and name != "none"), (shape, dtype, name, relu)
                        assert found.dtype == (target or dtype)
                        assert found.is_contiguous(memory_format=torch.channels_last)
                        key = shape, dtype, name, relu, target
                        if not on:
                            plain[key] = found.double()
                            continue
                        rounding = torch.finfo(found.dtype).eps if found.dtype != torch.float32 else 1e-5
                        most = 1 + float(plain[key].abs().max())
                        assert float((found.double() - plain[key]).abs().max()) <= 2 * rounding * most, key
x = torch.full((1, 16, 64, 80), 0.7).contiguous(memory_format=torch.channels_last)
with torch.no_grad():
    mean, variance = ops.instance_statistics(x)
assert float(variance.max()) == 0 and torch.allclose(mean, torch.full((1, 16), 0.7))
x[0, 3, 5, 6] = float("nan")
with torch.no_grad():
    rectified = ops.affine(x, torch.ones(1, 16), torch.zeros(1, 16), relu=True)
assert int(rectified.isnan().sum()) == 1
print("the same")
"""

COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stylize.ops.gpu import norm

def signature(kernel, **types):
    return {name: types.get(name, "i32" if name.islower() else "constexpr") for name in kernel.arg_names}

def constants(kernel, **values):
    return {(kernel.arg_names.index(name),): value for name, value in values.items()}

tile = {"TILE_PX": 32, "TILE_CHANNELS": 128}
for capability in (75, 80, 90, 100):
    for maps in ("*fp32", "*bf16", "*fp16"):
        sums = {"means": "*fp32", "squares": "*fp32"}
        for kernel, types, values in (
            (norm._measure, {"x": maps, **sums}, tile),
            (
                norm._merge,
                {"x": maps, **sums, "mean_of_all": "*fp32", "variance_of_all": "*fp32"},
                {"TILE_CHANNELS": 128},
            ),
            (
                norm._multiply_add,
                {"x": maps, "result": "*bf16", "factor": "*fp32", "offset": "*fp32"},
                {"RELU": True, **tile},
            ),
        ):
            source = ASTSource(kernel, signature(kernel, **types), constants(kernel, **values))
            assert compile(source, GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


def output_of(script: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_interpreted_kernels_normalize_as_plain_pytorch_does() -> None:
    assert output_of(INTERPRETED, TRITON_INTERPRET="1") == "the same"


def test_kernels_compile_for_every_generation_of_gpus(tmp_path: Any) -> None:
    assert output_of(COMPILED, TRITON_CACHE_DIR=str(tmp_path)) == "compiled"


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Maps that the GPU's kernels would take."""
    monkeypatch.setattr(dispatch._switch, "gpu_failed", False)
    monkeypatch.setattr(normalization, "cpu_kernels", lambda *tensors, types=(): False)
    monkeypatch.setattr(
        normalization, "gpu_kernels", lambda x: not torch.is_grad_enabled() and not dispatch._switch.gpu_failed
    )
    return torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_kernels_that_cannot_be_started_are_told_once_and_left_out(
    maps: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    expected = torch.var_mean(maps, (2, 3), correction=0)
    for _ in range(2):  # without a GPU Triton has no driver
        found = ops.instance_statistics(maps)
        torch.testing.assert_close((found.variance, found.mean), expected)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the kernels for GPUs failed (")
    assert caplog.messages[0].endswith("): computing by plain PyTorch, which takes longer")


@torch.no_grad()
def test_exhausted_memory_is_no_failure_of_the_kernels(maps: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from stylize.ops.gpu import norm

    def exhausted(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(norm, "measure", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        ops.instance_statistics(maps)
    assert not dispatch._switch.gpu_failed


def test_other_devices_types_and_modes_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has_triton", lambda device: True)

    class OnGPU:
        device, dtype = torch.device("cuda"), torch.bfloat16

    x: Any = OnGPU()
    with torch.no_grad():
        assert dispatch.gpu_kernels(x)
        with ops.reference():
            assert not dispatch.gpu_kernels(x)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not dispatch.gpu_kernels(x)
        monkeypatch.undo()
        assert not dispatch.gpu_kernels(torch.zeros(1))
        x.dtype = torch.float64
        assert not dispatch.gpu_kernels(x)
        x.dtype = torch.bfloat16
        monkeypatch.setattr(dispatch, "_has_triton", lambda device: False)
        assert not dispatch.gpu_kernels(x)
    assert not dispatch.gpu_kernels(x)
