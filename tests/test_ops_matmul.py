import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stylize.ops.cpu import matmul as matmul_module
from stylize.ops.cpu.compile import BLOCK, PANEL
from stylize.ops.cpu.matmul import (
    as_panels,
    in_panels,
    is_supported,
    matmul,
    matmul_transposed,
    multiply,
    panels,
)

TOLERANCE = 1e-6  # of float32, by the products' largest

# What another processor's blocks give, compiled for this one: the largest difference from float64.
OTHER_BLOCK = """
import sys
from unittest.mock import patch
import torch, numba
from llvmlite.binding import get_host_cpu_features
claimed = type(get_host_cpu_features())({sys.argv[1]: True})
claimed.flatten = get_host_cpu_features().flatten  # Numba compiles for the real one
with patch("llvmlite.binding.get_host_cpu_features", lambda: claimed):
    with patch("platform.machine", lambda: sys.argv[2]):
        from stylize.ops.cpu.compile import BLOCK
        from stylize.ops.cpu.matmul import in_panels, multiply, panels
left, right = torch.randn(2, 23, 9), torch.randn(2, 9, 40)
out = torch.full((2, 23, in_panels(40)), torch.nan)
multiply(left, panels(right), out)
print(*BLOCK, float((out[:, :, :40] - left.double() @ right.double()).abs().max()) < 1e-5)
"""


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_equal_to(found: Tensor, exact: Tensor) -> None:
    assert float((found - exact).abs().max()) < TOLERANCE * float(exact.abs().max())


@pytest.mark.parametrize("rows", [*range(1, 2 * BLOCK.rows + 2), 5 * BLOCK.rows + 1])
def test_products_of_any_number_of_rows_equal_those_of_float64(rows: int) -> None:
    left, right = draw(3, rows, 7), draw(3, 7, PANEL + 5)
    out = torch.full((3, rows, in_panels(PANEL + 5)), torch.nan)
    multiply(left, panels(right), out)
    assert_equal_to(out[:, :, : PANEL + 5], left.double() @ right.double())
    assert not out[:, :, PANEL + 5 :].any()


@pytest.mark.parametrize("depth", [1, 2, 300])
def test_products_may_be_added_to_what_is_there(depth: int) -> None:
    left, right, out = draw(2, 17, depth), draw(2, depth, 2 * PANEL), draw(2, 17, 2 * PANEL)
    exact = out.double() + left.double() @ right.double()
    multiply(left, panels(right), out, add=True)
    assert_equal_to(out, exact)


def test_factors_may_lie_in_memory_in_any_order() -> None:
    left, right = draw(20, 3, 15).permute(1, 2, 0), draw(20, 3, 2 * PANEL).transpose(0, 1)
    room = torch.full((3, 15, 4 * PANEL), 5.0)
    multiply(left, as_panels(right), room[:, :, PANEL : 3 * PANEL])
    assert_equal_to(room[:, :, PANEL : 3 * PANEL], left.double() @ right.double())
    assert (room[:, :, :PANEL] == 5).all() and (room[:, :, 3 * PANEL :] == 5).all()


def test_columns_that_are_not_beside_each_other_are_refused() -> None:
    left, right, out = draw(1, 3, 4), draw(1, 4, PANEL), draw(1, 3, PANEL)
    aside = draw(1, PANEL, 4).transpose(1, 2)
    for arguments in ((left, as_panels(aside), out), (left, panels(right), aside[:, :3])):
        with pytest.raises(ValueError, match="must end in 1"):
            multiply(*arguments)


def test_what_is_no_number_stays_none() -> None:
    left = draw(1, 3, 4)
    left[0, 1, 2] = torch.nan
    out = torch.zeros(1, 3, PANEL)
    multiply(left, panels(draw(1, 4, PANEL)), out)
    assert out.isnan().any(2).tolist() == [[False, True, False]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 64, 203])
def test_products_by_and_over_rows_equal_those_of_float64(
    rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul_module, "CACHED_VALUES", 20 * PANEL)
    monkeypatch.setattr(matmul_module, "LEAST_MULTIPLICATIONS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    left, right, factor = draw(rows, 3 * PANEL), draw(rows, PANEL), draw(3 * PANEL, PANEL)
    matmul(left, factor, result := torch.empty(rows, PANEL))
    assert_equal_to(result, left.double() @ factor.double())
    assert_equal_to(matmul_transposed(left, right), left.double().t() @ right.double())
    assert torch.equal(matmul_transposed(left, right), matmul_transposed(left, right))


def test_only_matrices_whose_columns_fill_panels_are_supported() -> None:
    assert is_supported(draw(2, PANEL))
    assert not is_supported(draw(2, PANEL + 1))
    assert not is_supported(draw(PANEL, 2).t())


@pytest.mark.parametrize(
    ("feature", "machine", "block"),
    [("avx2", "x86_64", "6 2 8"), ("sse2", "AMD64", "6 2 4"), ("neon", "aarch64", "6 4 4")],
)
def test_blocks_for_other_processors_give_the_same(feature: str, machine: str, block: str, tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", OTHER_BLOCK, feature, machine]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [*block.split(), "True"]
