from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from stylize.ops.cpu.compile import LANES
from stylize.ops.cpu.simd import larger, largest, load, splat, store, where_equal, where_positive

Values = npt.NDArray[np.float32]


@numba.njit
def compute(a: Values, b: Values, out: Values, factor: Any) -> None:
    first, second = load(a, 1, 2, 3), load(b, 0, 1, 1)
    store(out, 0, 0, 1, first + second)
    store(out, 1, 0, 1, first - second)
    store(out, 2, 0, 1, factor * first)
    store(out, 3, 0, 1, larger(first, splat(0.25)))
    store(out, 4, 0, 1, where_positive(first, second))
    store(out, 5, 0, 1, largest(first, second))
    store(out, 6, 0, 1, where_equal(first, second, splat(0.25), second))


@pytest.mark.parametrize("factor", [-2.5, np.float32(3.0), 2])
@pytest.mark.parametrize("layout", ["contiguous", "with gaps"])
def test_vectors_compute_value_by_value(factor: Any, layout: str) -> None:
    draw = np.random.default_rng(0)
    gap = 5 if layout == "with gaps" else 0
    a, b, out = (
        draw.normal(size=(rows, 4, LANES + 4 + gap)).astype(np.float32)[..., : LANES + 4] for rows in (3, 3, 7)
    )
    b[0, 1, 4], a[1, 2, 5] = 0, np.nan
    b[0, 1, 2], b[0, 1, 1] = np.nan, a[1, 2, 3]
    before = out.copy()
    compute(a, b, out, factor)
    first, second = a[1, 2, 3 : LANES + 3], b[0, 1, 1 : LANES + 1]
    expected = (
        first + second,
        first - second,
        np.float32(factor) * first,
        np.where(first < 0.25, np.float32(0.25), first),
        np.where(second <= 0, 0, first),
        np.maximum(first, second),  # which keeps what is no number, too
        np.where(first == second, np.float32(0.25), second),
    )
    np.testing.assert_array_equal(out[:, 0, 1 : LANES + 1], np.stack(expected))
    out[:, 0, 1 : LANES + 1] = before[:, 0, 1 : LANES + 1]
    np.testing.assert_array_equal(out, before)  # nothing else was written


@numba.njit
def copy(source: Any, target: Any) -> None:
    store(target, 0, 0, 0, load(source, 0, 0, 0))


def test_bfloat16_is_loaded_exactly_and_rounded_as_torch_rounds() -> None:
    special = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 3 * 2**-9, 3.4e38, 1e-40, np.inf]
    drawn = np.random.default_rng(0).normal(size=(50, LANES)).astype(np.float32)
    values = np.concatenate([np.resize(np.float32([*special, -np.inf, np.nan, -np.nan]), (7, LANES)), drawn])
    for row in values:
        expected = torch.from_numpy(row.copy()).bfloat16()
        bits, back = np.zeros((1, 1, LANES), np.uint16), np.zeros((1, 1, LANES), np.float32)
        copy(row[None, None], bits)
        copy(bits, back)
        np.testing.assert_array_equal(back[0, 0], expected.float().numpy())


def test_other_sums_stay_what_they_are() -> None:
    @numba.njit
    def mixed(a: Any, b: Any) -> Any:
        return a + b, a - b, a * b

    assert mixed(2, 0.5) == (2.5, 1.5, 1.0)
