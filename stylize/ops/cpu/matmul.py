"""Products of many small float32 matrices, compiled for the vector registers of the processor at hand.

A block of the result is held in registers over the whole depth: each step loads one row of a panel of the right factor,
and as many values of the left one as the block has rows. So arithmetic is the limit, not loads, and small matrices come
near to the peak of the processor, too.

Source: Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication.
Differs: nothing is packed. The right factor is given in panels (`panels`), and the left one fits into the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor
from torch.nn import functional as F

from stylize.ops.cpu.compile import BLOCK, PANEL, Values, compiled
from stylize.system.threads import in_threads

CACHED_VALUES = 1 << 16  # of both factors: 256 KiB, part of the cache
LEAST_MULTIPLICATIONS = 1 << 21  # for which another thread pays


def in_panels(columns: int) -> int:
    """Return the number of columns, rounded up to whole panels."""
    return -(-columns // PANEL) * PANEL


def panels(matrices: Tensor) -> Tensor:
    """Copy right factors `(P, D, N)` to panels for `multiply`, `(P, panels, D, columns)`, with zeros beyond N."""
    columns = matrices.shape[2]
    return as_panels(F.pad(matrices, (0, in_panels(columns) - columns))).contiguous()


def as_panels(matrices: Tensor) -> Tensor:
    """View right factors `(P, D, N)` whose columns fill whole panels as `(P, panels, D, columns)`."""
    count, depth, columns = matrices.shape
    return matrices.view(count, depth, columns // PANEL, PANEL).transpose(1, 2)


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Multiply matrices on one core: `out = left @ right`, or `out += left @ right`.

    Args:
        left: `(P, M, D)`, float32, in any layout.
        right: `(P, panels, D, columns)`, see `panels`; columns contiguous.
        out: `(P, M, N)`, with all columns of the panels; columns contiguous.
        add: Whether to add to `out`.

    Raises:
        ValueError: Shapes do not fit, or columns of `right` or `out` are not contiguous.
    """
    (count, rows, depth), columns = left.shape, right.shape[1] * right.shape[3]
    if right.shape[::2] != (count, depth) or tuple(out.shape) != (count, rows, columns):
        raise ValueError(
            f"multiply: got {tuple(left.shape)}, {tuple(right.shape)} and {tuple(out.shape)}, must be (P, M, D), "
            f"(P, panels, D, {PANEL}) and (P, M, panels · {PANEL})"
        )
    if not right.stride(-1) == out.stride(-1) == 1:
        raise ValueError(f"multiply: got the strides {right.stride()} and {out.stride()}, must end in 1")
    strides: tuple[Any, ...] = left.stride(), right.stride(), out.stride()
    multiply_values(_flat(left), _flat(right), _flat(out), strides, (*left.shape, right.shape[1]), add)


def is_supported(values: Tensor) -> bool:
    """Return whether `matmul` and `matmul_transposed` take these: CPU float32, unit stride, full panels."""
    return values.stride(-1) == 1 and values.shape[-1] % PANEL == 0


def matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Compute `out = left @ right` on all cores for many rows: `(P, M)`, `(M, N)` → `(P, N)`."""
    left, factor = left.detach(), panels(right.detach()[None])
    parts, height = _parts(len(left), right.numel()), _cached_rows(left, out)

    def multiply_part(number: int) -> None:
        for some, result in zip(*(_pieces(values[parts[number]], height) for values in (left, out)), strict=True):
            multiply(some, factor.expand(len(some), -1, -1, -1), result)

    in_threads(multiply_part, len(parts))


def matmul_transposed(left: Tensor, right: Tensor) -> Tensor:
    """Return `leftᵀ @ right`, on all cores for many rows: `(P, M)`, `(P, N)` → `(M, N)`."""
    left, right = left.detach(), right.detach()
    sides = left.shape[1], right.shape[1]
    parts, height = _parts(len(left), math.prod(sides)), _cached_rows(left, right)
    sums = left.new_zeros(len(parts), *sides)

    def add_part(number: int) -> None:
        for some, others in zip(*(_pieces(values[parts[number]], height) for values in (left, right)), strict=True):
            multiply(some.transpose(1, 2), as_panels(others), sums[number].expand(len(some), -1, -1), add=True)

    in_threads(add_part, len(parts))
    return sums.sum(0)


def _parts(rows: int, multiplications_a_row: int) -> list[slice]:
    """Divide rows among threads, the same in every run, so that sums are rounded alike; few rows go to one thread."""
    threads = min(torch.get_num_threads(), max(1, rows * multiplications_a_row // LEAST_MULTIPLICATIONS))
    return [slice(rows * i // threads, rows * (i + 1) // threads) for i in range(threads)]


def _cached_rows(*matrices: Tensor) -> int:
    return max(1, CACHED_VALUES // sum(values.shape[1] for values in matrices))


def _pieces(values: Tensor, rows: int) -> Iterator[Tensor]:
    """Yield `(P, N)` as `(pieces, rows, N)`, then the remaining rows."""
    whole = len(values) // rows * rows
    if whole:
        yield values[:whole].view(-1, rows, values.shape[1])
    if whole < len(values):
        yield values[None, whole:]


def _flat(values: Tensor) -> Values:
    last = sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    return cast(Values, values.as_strided((last + 1,), (1,)).numpy())


@compiled
def multiply_values(
    left: Values, right: Values, out: Values, strides: tuple[Any, ...], sizes: tuple[int, ...], add: bool
) -> None:
    """Do what `multiply` does, for compiled functions; arrays may be larger than the matrices at their beginning.

    Args:
        left: Holds `(P, M, D)`.
        right: Holds `(P, panels, D, columns)`.
        out: Holds `(P, M, N)`.
        strides: Strides of each in values, but for contiguous columns.
        sizes: P, M, D and panels.
        add: Whether to add to `out`.
    """
    of_left, of_right, of_out = strides
    count, rows, depth, wide = sizes
    blocks = -(-rows // BLOCK.rows)  # of nearly equal heights, so that no rows are computed in vain
    for p in range(count):
        for panel in range(wide):
            right_at = p * of_right[0] + panel * of_right[1]
            for block in range(blocks):
                row, end = rows * block // blocks, rows * (block + 1) // blocks
                left_at = p * of_left[0] + row * of_left[1]
                out_at = p * of_out[0] + row * of_out[1] + panel * PANEL
                _multiply_block(
                    left, left_at, of_left[1], of_left[2], right, right_at, of_right[2], out, out_at, of_out[1],
                    depth, end - row, add,
                )  # fmt: skip


def _typed_block(
    typing: Any, left: Any, left_at: Any, left_row: Any, left_step: Any, right: Any, right_at: Any, right_step: Any,
    out: Any, out_at: Any, out_row: Any, depth: Any, rows: Any, add: Any,
) -> Any:  # fmt: skip
    """Multiply a block of 1 to `BLOCK.rows` rows; positions and strides in values, `depth` at least 1."""
    integer = types.int64
    signature = types.void(
        left, integer, integer, integer, right, integer, integer, out, integer, integer, integer, integer, types.boolean
    )

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        left, left_at, left_row, left_step, right, right_at, right_step, out, out_at, out_row, depth, rows, add = (
            arguments
        )
        array = {name: context.make_array(signature.args[i]) for name, i in (("left", 0), ("right", 4), ("out", 7))}
        emitter = _BlockEmitter(
            builder,
            builder.gep(array["left"](context, builder, left).data, [left_at]),
            (left_row, left_step),
            builder.gep(array["right"](context, builder, right).data, [right_at]),
            right_step,
            builder.gep(array["out"](context, builder, out).data, [out_at]),
            out_row,
            depth,
            add,
        )
        emitter.emit(rows)
        return context.get_dummy_value()

    return signature, generate


_multiply_block: Any = intrinsic(_typed_block)

_INTEGER = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), BLOCK.lanes)


class _BlockEmitter:
    # Emits LLVM code for `_multiply_block`: a loop for each number of rows.

    def __init__(
        self,
        builder: ir.IRBuilder,
        left: Any,
        left_strides: tuple[Any, Any],
        right: Any,
        right_step: Any,
        out: Any,
        out_row: Any,
        depth: Any,
        add: Any,
    ) -> None:
        self.builder = builder
        self.left, (self.left_row, self.left_step) = left, left_strides
        self.right, self.right_step = right, right_step
        self.out, self.out_row = out, out_row
        self.depth, self.add = depth, add

    def emit(self, rows: Any) -> None:
        builder = self.builder
        end = builder.append_basic_block("end")
        choice = builder.switch(rows, end)
        for count in range(1, BLOCK.rows + 1):
            with builder.goto_block(builder.append_basic_block(f"rows{count}")):
                choice.add_case(ir.Constant(_INTEGER, count), builder.block)
                self._store(self._accumulate(count))
                builder.branch(end)
        builder.position_at_end(end)

    def _accumulate(self, rows: int) -> list[list[Any]]:
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_INTEGER)
        step.add_incoming(ir.Constant(_INTEGER, 0), before)
        sums = [[builder.phi(_VECTOR) for _ in range(BLOCK.vectors)] for _ in range(rows)]
        right = builder.gep(self.right, [builder.mul(step, self.right_step)])
        factors = [self._load(self._moved(right, vector * BLOCK.lanes)) for vector in range(BLOCK.vectors)]
        left, results = builder.gep(self.left, [builder.mul(step, self.left_step)]), []
        for row, own in enumerate(sums):
            value = self._splat(builder.load(self._row(left, row, self.left_row)))
            results.append([self._multiply_add(value, f, s) for f, s in zip(factors, own, strict=True)])
        following = builder.add(step, ir.Constant(_INTEGER, 1))
        step.add_incoming(following, loop)
        for phis, own in zip(sums, results, strict=True):
            for phi, result in zip(phis, own, strict=True):
                phi.add_incoming(ir.Constant(_VECTOR, [0.0] * BLOCK.lanes), before)
                phi.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", following, self.depth), loop, after)
        builder.position_at_end(after)
        return results

    def _store(self, results: list[list[Any]]) -> None:
        for row, vectors in enumerate(results):
            for number, vector in enumerate(vectors):
                place = self._moved(self._row(self.out, row, self.out_row), number * BLOCK.lanes)
                self._store_vector(vector, place)

    def _store_vector(self, vector: Any, place: Any) -> None:
        builder = self.builder
        before = builder.block
        with builder.if_then(self.add):
            total = builder.fadd(vector, self._load(place))
            adding = builder.block
        stored = builder.phi(_VECTOR)
        stored.add_incoming(vector, before)
        stored.add_incoming(total, adding)
        builder.store(stored, self._as_vector(place)).align = 4

    def _multiply_add(self, value: Any, factor: Any, total: Any) -> Any:
        fused = ("contract",)
        return self.builder.fadd(self.builder.fmul(value, factor, flags=fused), total, flags=fused)

    def _splat(self, value: Any) -> Any:
        undefined, integer = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
        first = self.builder.insert_element(undefined, value, ir.Constant(integer, 0))
        lanes = ir.Constant(ir.VectorType(integer, BLOCK.lanes), [0] * BLOCK.lanes)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def _row(self, start: Any, row: int, stride: Any) -> Any:
        return self.builder.gep(start, [self.builder.mul(stride, ir.Constant(_INTEGER, row))])

    def _moved(self, start: Any, values: int) -> Any:
        return self.builder.gep(start, [ir.Constant(_INTEGER, values)])

    def _as_vector(self, place: Any) -> Any:
        return self.builder.bitcast(place, _VECTOR.as_pointer())

    def _load(self, place: Any) -> Any:
        loaded = self.builder.load(self._as_vector(place))
        loaded.align = 4
        return loaded
