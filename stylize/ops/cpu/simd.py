"""SIMD vectors of float32 for numba: as many values as a register of the processor holds.

Compilers vectorize loops only where they can prove that nothing overlaps, which they often cannot. `load` and `store`
address arrays of three dimensions, the last of them contiguous; vectors are added, subtracted and multiplied lane by
lane, or multiplied by a number.

Arrays are of float32, or of uint16 that hold the bits of bfloat16: its values are the upper halves of float32's, so
they are widened in a register when they are loaded, and rounded to the nearest, ties to even, when they are stored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from stylize.ops.cpu.compile import LANES

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORDS, _HALVES = (ir.VectorType(ir.IntType(bits), LANES) for bits in (32, 16))
_QUIET_NAN = 0x7FC0  # of bfloat16
_FUSED = ("contract",)  # product and sum may be fused, with one rounding


class VectorType(types.Type):
    """The type of a vector, for numba."""

    def __init__(self) -> None:
        super().__init__(name=f"vector of {LANES} float32")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)  # type: ignore[no-untyped-call]


VECTOR = VectorType()


def _typed_load(typing: Any, array: Any, i: Any, j: Any, k: Any) -> Any:
    """Return the vector that begins at `array[i, j, k]`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        if signature.args[0].dtype == types.float32:
            loaded = builder.load(place)
            loaded.align = 4
            return loaded
        halves = builder.load(builder.bitcast(place, _HALVES.as_pointer()))
        halves.align = 2
        return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), _each(16)), _VECTOR)

    return VECTOR(array, types.intp, types.intp, types.intp), generate


def _typed_store(typing: Any, array: Any, i: Any, j: Any, k: Any, vector: Any) -> Any:
    """Store a vector from `array[i, j, k]` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        if signature.args[0].dtype == types.float32:
            builder.store(arguments[4], place).align = 4
        else:
            builder.store(_rounded(builder, arguments[4]), builder.bitcast(place, _HALVES.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, VECTOR), generate


def _typed_splat(typing: Any, number: Any) -> Any:
    """Return a vector with the number in every lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        value = context.cast(builder, arguments[0], signature.args[0], types.float32)
        undefined, integer = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
        first = builder.insert_element(undefined, value, ir.Constant(integer, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(integer, LANES), [0] * LANES))

    return VECTOR(number), generate


def _typed_larger(typing: Any, vector: Any, least: Any) -> Any:
    """Return the larger value of each lane; NaN in the first vector stays."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        smaller = builder.fcmp_ordered("<", *arguments)
        return builder.select(smaller, arguments[1], arguments[0])

    return VECTOR(VECTOR, VECTOR), generate


def _typed_where_positive(typing: Any, vector: Any, gate: Any) -> Any:
    """Return the first vector, with 0 in lanes where the second is not above 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<=", arguments[1], zero), zero, arguments[0])

    return VECTOR(VECTOR, VECTOR), generate


def _typed_largest(typing: Any, a: Any, b: Any) -> Any:
    """Return the larger value of each lane; NaN in either vector stays."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        a, b = arguments
        without_b = builder.select(builder.fcmp_unordered("<", a, b), b, a)
        return builder.select(builder.fcmp_unordered("uno", a, a), a, without_b)

    return VECTOR(VECTOR, VECTOR), generate


def _typed_where_equal(typing: Any, a: Any, b: Any, equal: Any, other: Any) -> Any:
    """Return the third vector in lanes where the first two are equal, else the fourth."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        a, b, equal, other = arguments
        return builder.select(builder.fcmp_ordered("==", a, b), equal, other)

    return VECTOR(VECTOR, VECTOR, VECTOR, VECTOR), generate


load: Any = intrinsic(_typed_load)
store: Any = intrinsic(_typed_store)
splat: Any = intrinsic(_typed_splat)
larger: Any = intrinsic(_typed_larger)
largest: Any = intrinsic(_typed_largest)
where_equal: Any = intrinsic(_typed_where_equal)
where_positive: Any = intrinsic(_typed_where_positive)


def _each(number: int, kind: Any = _WORDS) -> ir.Constant:
    return ir.Constant(kind, [number] * LANES)


def _rounded(builder: ir.IRBuilder, vector: Any) -> Any:
    """Return the bits of the vector's values in bfloat16; NaN stays NaN."""
    word = builder.bitcast(vector, _WORDS)
    odd = builder.and_(builder.lshr(word, _each(16)), _each(1))
    nearest = builder.lshr(builder.add(word, builder.add(odd, _each(0x7FFF))), _each(16))
    is_nan = builder.fcmp_unordered("uno", vector, vector)
    return builder.trunc(builder.select(is_nan, _each(_QUIET_NAN), nearest), _HALVES)


def _place(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    kind = signature.args[0]
    array = context.make_array(kind)(context, builder, arguments[0])
    place = cgutils.get_item_pointer(context, builder, kind, array, arguments[1:4], wraparound=False)  # type: ignore[no-untyped-call]
    return builder.bitcast(place, _VECTOR.as_pointer())


def _elementwise(name: str) -> Any:
    """Return the LLVM instruction of that name for two vectors."""

    def typed(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments, flags=_FUSED)

        return VECTOR(VECTOR, VECTOR), generate

    return intrinsic(typed)


_add, _subtract, _multiply = (_elementwise(name) for name in ("fadd", "fsub", "fmul"))


@overload(operator.add, strict=False)
def _overloaded_add(a: Any, b: Any) -> Callable[[Any, Any], Any] | None:
    return (lambda a, b: _add(a, b)) if a is VECTOR and b is VECTOR else None


@overload(operator.sub, strict=False)
def _overloaded_subtract(a: Any, b: Any) -> Callable[[Any, Any], Any] | None:
    return (lambda a, b: _subtract(a, b)) if a is VECTOR and b is VECTOR else None


@overload(operator.mul, strict=False)
def _overloaded_multiply(a: Any, b: Any) -> Callable[[Any, Any], Any] | None:
    if a is VECTOR and b is VECTOR:
        return lambda a, b: _multiply(a, b)
    return (lambda a, b: _multiply(splat(a), b)) if isinstance(a, types.Number) and b is VECTOR else None
