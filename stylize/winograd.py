"""Winograd's algorithm F(4×4, 3×3) for convolutions of float32 maps on CPUs, forward and backward.

An image is cut into tiles of 6×6 px that overlap by two. Each tile, for each channel, becomes 36 values (the input
transform); the sum over channels is then a product of matrices for each of the 36; and 36 values become 4×4 px of the
result (the output transform). That is 36 multiplications for 16 px in place of 144, and additions that grow with the
number of channels, not with its square.

Floor: the products of matrices, C·K·36/16 multiplications a pixel. The transforms read an image once and write it once,
but what they make is 2.25 times as large: it must not leave the cache. So a thread takes some rows of tiles through all
three steps, then the next ones. The threads are Python's; what they do is compiled, and leaves the interpreter's lock
alone.

The transforms and the products are compiled for the processor at hand when they are first needed, and kept on disk.

Source: Lavin & Gray 2015, arXiv:1509.09308, section 4.3.
"""

from __future__ import annotations

import math
import threading
from collections.abc import MutableMapping
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stylize.products import Values, as_panels, compiled, in_panels, multiply, panels
from stylize.threads import in_threads

Indices = npt.NDArray[np.int64]

TILE_PX = 4
CHUNK_VALUES = 5 << 16  # of transformed tiles: 1.25 MiB, a share of the cache

_KERNEL = torch.tensor(
    [
        [1 / 4, 0.0, 0.0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0.0, 0.0, 1.0],
    ]
)
KERNEL_TRANSFORM = torch.kron(_KERNEL, _KERNEL)  # a kernel of 3×3, flat → 36


class Bordered(NamedTuple):
    """An image with a border around it that nobody writes down.

    Attributes:
        values: `(H, W, C)`, contiguous.
        rows: Which row of the values stands in which row of the bordered image; −1 for zeros.
        columns: The same for its columns.
    """

    values: Tensor
    rows: Indices
    columns: Indices


class _Chunk(NamedTuple):
    # Which rows and columns of tiles, each from and to before.
    top: int
    bottom: int
    left: int
    right: int

    @property
    def tiles(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


class Winograd:
    """A 3×3 convolution of stride 1.

    Args:
        weight: `(K, C, 3, 3)`.

    Attributes:
        values_per_px: Of the result.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.values_per_px = len(weight)

    def convolve(self, source: Bordered, bias: Tensor | None, out: Tensor, relu: bool = False) -> None:
        """An image of which `(H + 2, W + 2, C)` stand between its borders → `out`, `(H, W, K)`, with ReLU or not."""
        offset = np.zeros(len(self.weight), np.float32) if bias is None else bias.detach().contiguous().numpy()
        _convolve(source, None, self._forward, offset, 0.0 if relu else -math.inf, out)

    def convolve_back(self, gradient: Tensor, size: tuple[int, int, int], rectified: Tensor | None = None) -> Tensor:
        """The gradient of the result `(H, W, K)` → that of the bordered image, of `size` `(H + 2, W + 2, C)`.

        `rectified` is the result, where it went through ReLU.
        """
        result = gradient.new_empty(size)
        framed = Bordered(gradient.contiguous(), *(_framed(side, 2) for side in gradient.shape[:2]))
        gate = None if rectified is None else rectified.contiguous().numpy()
        _convolve(framed, gate, self._backward, np.zeros(size[2], np.float32), -math.inf, result)
        return result

    def tile_products(self, source: Bordered, gradient: Tensor, totals: Tensor | None = None) -> Tensor:
        """Of a bordered image and the gradient `(H, W, K)` of its result: what `weight_gradient` is made of.

        It is added to `totals`, which come from another image of the same size.
        """
        outputs, inputs = self.weight.shape[:2]
        (down, across), threads = _tiles(gradient.shape), torch.get_num_threads()
        image, rows, columns = _as_arrays(source, down, across)
        towards = gradient.contiguous().numpy()
        chunks = _chunks(down, across, max(inputs, outputs), threads)
        sums = torch.zeros(min(threads, len(chunks)), 36, inputs, in_panels(outputs)) if totals is None else totals

        def add(thread: int) -> None:
            for chunk in chunks[thread :: len(sums)]:
                of_inputs = _scratch("values", 36, chunk.tiles, inputs)
                of_outputs = _scratch("products", 36, chunk.tiles, in_panels(outputs))
                _transform_tiles(image, None, rows, columns, chunk, of_inputs.numpy(), _patch(6, 6, inputs))
                _transform_blocks(towards, chunk, of_outputs.numpy(), _patch(6, 4, outputs))
                multiply(of_inputs.transpose(1, 2), as_panels(of_outputs), sums[thread], add=True)

        in_threads(add, len(sums))
        return sums

    def weight_gradient(self, totals: Tensor) -> Tensor:
        """The products of all images → the gradient of the weights, `(K, C, 3, 3)`."""
        outputs, inputs = self.weight.shape[:2]
        total = totals.sum(0)[..., :outputs].reshape(36, -1)
        return (KERNEL_TRANSFORM.t() @ total).view(3, 3, inputs, outputs).permute(3, 2, 0, 1)

    @cached_property
    def _forward(self) -> Tensor:
        """`(36, C, K)`, in panels."""
        return panels(_transformed(self.weight.permute(2, 3, 1, 0)))

    @cached_property
    def _backward(self) -> Tensor:
        """`(36, K, C)`, in panels: that of the kernels turned by half a turn."""
        return panels(_transformed(self.weight.flip(2, 3).permute(2, 3, 0, 1)))


def winograd_of(weight: Tensor) -> Winograd:
    """The convolution with these weights; frozen ones are transformed once, and again when they have changed."""
    if weight.requires_grad or weight.is_inference():
        return Winograd(weight)
    state = (weight.data_ptr(), weight._version)
    known = _frozen.get(weight)
    if known is None or known[0] != state:
        known = _frozen[weight] = (state, Winograd(weight))
    return known[1]


_frozen: MutableMapping[Tensor, tuple[tuple[int, int], Winograd]] = WeakIdKeyDictionary()


def _transformed(kernels: Tensor) -> Tensor:
    """`(3, 3, A, B)` → `(36, A, B)`."""
    return (KERNEL_TRANSFORM @ kernels.reshape(9, -1)).view(36, *kernels.shape[2:])


def _convolve(source: Bordered, gate: Values | None, kernel: Tensor, offset: Values, least: float, out: Tensor) -> None:
    inputs, outputs = source.values.shape[2], out.shape[2]
    (down, across), result = _tiles(out.shape), out.numpy()
    image, rows, columns = _as_arrays(source, down, across)
    threads = torch.get_num_threads()
    chunks = _chunks(down, across, max(inputs, outputs), threads)
    left = iter(chunks)

    def convolve(_: int) -> None:
        for chunk in left:
            tiles = _scratch("values", 36, chunk.tiles, inputs)
            products = _scratch("products", 36, chunk.tiles, in_panels(outputs))
            _transform_tiles(image, gate, rows, columns, chunk, tiles.numpy(), _patch(6, 6, inputs))
            multiply(tiles, kernel, products)
            _transform_products(products.numpy(), chunk, offset, np.float32(least), result, _patch(4, 6, outputs))

    in_threads(convolve, min(threads, len(chunks)))


def _tiles(shape: torch.Size) -> tuple[int, int]:
    """How many tiles stand above and beside each other in a result `(H, W, …)`."""
    return -(-shape[0] // TILE_PX), -(-shape[1] // TILE_PX)


def _framed(length: int, width: int) -> Indices:
    """Which position of a row of this length stands where, in a frame of zeros of this width."""
    return np.pad(np.arange(length), width, constant_values=-1)


def _as_arrays(source: Bordered, down: int, across: int) -> tuple[Values, Indices, Indices]:
    """The source for the compiled functions; rows and columns end where the last tile does."""
    sides = ((source.rows, down), (source.columns, across))
    rows, columns = (np.pad(i, (0, TILE_PX * n + 2 - len(i)), constant_values=-1) for i, n in sides)
    return source.values.numpy(), rows, columns


def _chunks(down: int, across: int, channels: int, threads: int) -> list[_Chunk]:
    """Tiles whose transformed values fit into the cache: some rows of them or, of wide images, a part of one row."""
    fitting = max(1, CHUNK_VALUES // (36 * channels))
    columns = -(-across // -(-across // fitting))
    rounds = -(-down // (fitting // columns * threads))
    rows = -(-down // (rounds * threads))  # as many for each of the threads
    return [
        _Chunk(top, min(down, top + rows), left, min(across, left + columns))
        for top in range(0, down, rows)
        for left in range(0, across, columns)
    ]


# --- Scratch -------------------------------------------------------------------------------------------------------


def load_compiled_functions() -> None:
    """Load what is compiled, or compile it: its time and memory are then not part of the first convolution's."""
    convolution, side_px = Winograd(torch.zeros(1, 1, 3, 3)), TILE_PX + 2
    image = Bordered(torch.zeros(side_px, side_px, 1), np.arange(side_px), np.arange(side_px))
    convolution.convolve(image, None, torch.empty(TILE_PX, TILE_PX, 1))


_held = threading.local()


def _scratch(name: str, *shape: int) -> Tensor:
    """Room of this shape, with anything in it, that belongs to this thread until it asks for that name again."""
    values = math.prod(shape)
    room: Tensor | None = getattr(_held, name, None)
    if room is None or len(room) < values:
        with torch.inference_mode(False):  # it is written to outside of that mode, too
            room = torch.empty(values)
        setattr(_held, name, room)
    return room[:values].view(shape)


def _patch(*shape: int) -> Values:
    return cast(Values, _scratch("patch", *shape).numpy())


# --- The transforms, compiled --------------------------------------------------------------------------------------


@compiled
def _value(image: Values, gate: Values | None, y: int, x: int, c: int) -> Any:  # pragma: no cover (compiled)
    if gate is None:  # settled when it is compiled
        return image[y, x, c]
    return np.float32(0) if gate[y, x, c] <= 0 else image[y, x, c]


@compiled
def _at_least(value: np.float32, least: np.float32) -> np.float32:  # pragma: no cover (compiled)
    return least if value < least else value  # what is no number stays


@compiled
def _transform_tiles(
    image: Values, gate: Values | None, rows: Indices, columns: Indices, chunk: _Chunk, result: Values, patch: Values
) -> None:  # pragma: no cover (compiled)
    """Tiles of 6×6 px, zero where the gate is, → `(36, tiles, C)`; `patch` is `(6, 6, C)`."""
    two, four, five = np.float32(2), np.float32(4), np.float32(5)
    channels = image.shape[2]
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        r0, r1, r2 = rows[4 * down], rows[4 * down + 1], rows[4 * down + 2]
        r3, r4, r5 = rows[4 * down + 3], rows[4 * down + 4], rows[4 * down + 5]
        inside = min(r0, r1, r2, r3, r4, r5) >= 0
        for beside in range(chunk.left, chunk.right):
            tile = (down - chunk.top) * wide + beside - chunk.left
            for j in range(6):
                column = columns[4 * beside + j]
                if column < 0:
                    for i in range(6):
                        for c in range(channels):
                            patch[i, j, c] = 0
                elif inside:
                    for c in range(channels):
                        p, q = _value(image, gate, r0, column, c), _value(image, gate, r1, column, c)
                        r, s = _value(image, gate, r2, column, c), _value(image, gate, r3, column, c)
                        t, u = _value(image, gate, r4, column, c), _value(image, gate, r5, column, c)
                        even, odd, outer, inner = t - four * r, s - four * q, t - r, two * (s - q)
                        patch[0, j, c] = four * p - five * r + t
                        patch[1, j, c] = even + odd
                        patch[2, j, c] = even - odd
                        patch[3, j, c] = outer + inner
                        patch[4, j, c] = outer - inner
                        patch[5, j, c] = four * q - five * s + u
                else:
                    for c in range(channels):
                        p = _value(image, gate, r0, column, c) if r0 >= 0 else np.float32(0)
                        q = _value(image, gate, r1, column, c) if r1 >= 0 else np.float32(0)
                        r = _value(image, gate, r2, column, c) if r2 >= 0 else np.float32(0)
                        s = _value(image, gate, r3, column, c) if r3 >= 0 else np.float32(0)
                        t = _value(image, gate, r4, column, c) if r4 >= 0 else np.float32(0)
                        u = _value(image, gate, r5, column, c) if r5 >= 0 else np.float32(0)
                        even, odd, outer, inner = t - four * r, s - four * q, t - r, two * (s - q)
                        patch[0, j, c] = four * p - five * r + t
                        patch[1, j, c] = even + odd
                        patch[2, j, c] = even - odd
                        patch[3, j, c] = outer + inner
                        patch[4, j, c] = outer - inner
                        patch[5, j, c] = four * q - five * s + u
            for i in range(6):
                for c in range(channels):
                    p, q, r = patch[i, 0, c], patch[i, 1, c], patch[i, 2, c]
                    s, t, u = patch[i, 3, c], patch[i, 4, c], patch[i, 5, c]
                    even, odd, outer, inner = t - four * r, s - four * q, t - r, two * (s - q)
                    result[6 * i, tile, c] = four * p - five * r + t
                    result[6 * i + 1, tile, c] = even + odd
                    result[6 * i + 2, tile, c] = even - odd
                    result[6 * i + 3, tile, c] = outer + inner
                    result[6 * i + 4, tile, c] = outer - inner
                    result[6 * i + 5, tile, c] = four * q - five * s + u


@compiled
def _transform_products(
    products: Values, chunk: _Chunk, offset: Values, least: np.float32, result: Values, patch: Values
) -> None:  # pragma: no cover (compiled)
    """`(36, tiles, K)` → their 4×4 px of the result, `(H, W, K)`, none below `least`; `patch` is `(4, 6, K)`."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    height, width, channels = result.shape
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        for beside in range(chunk.left, chunk.right):
            tile = (down - chunk.top) * wide + beside - chunk.left
            for j in range(6):
                for c in range(channels):
                    p, q, r = products[j, tile, c], products[6 + j, tile, c], products[12 + j, tile, c]
                    s, t, u = products[18 + j, tile, c], products[24 + j, tile, c], products[30 + j, tile, c]
                    even, odd, outer, inner = q + r, q - r, s + t, s - t
                    patch[0, j, c] = p + even + outer
                    patch[1, j, c] = odd + two * inner
                    patch[2, j, c] = even + four * outer
                    patch[3, j, c] = odd + eight * inner + u
            whole = 4 * beside + 4 <= width
            for i in range(min(4, height - 4 * down)):
                y, x = 4 * down + i, 4 * beside
                for c in range(channels):
                    p, q, r = patch[i, 0, c] + offset[c], patch[i, 1, c], patch[i, 2, c]
                    s, t, u = patch[i, 3, c], patch[i, 4, c], patch[i, 5, c] + offset[c]
                    even, odd, outer, inner = q + r, q - r, s + t, s - t
                    if whole:
                        result[y, x, c] = _at_least(p + even + outer, least)
                        result[y, x + 1, c] = _at_least(odd + two * inner + offset[c], least)
                        result[y, x + 2, c] = _at_least(even + four * outer + offset[c], least)
                        result[y, x + 3, c] = _at_least(odd + eight * inner + u, least)
                    else:
                        result[y, x, c] = _at_least(p + even + outer, least)
                        if x + 1 < width:
                            result[y, x + 1, c] = _at_least(odd + two * inner + offset[c], least)
                        if x + 2 < width:
                            result[y, x + 2, c] = _at_least(even + four * outer + offset[c], least)


@compiled
def _transform_blocks(
    gradient: Values, chunk: _Chunk, result: Values, patch: Values
) -> None:  # pragma: no cover (compiled)
    """The adjoint of `_transform_products`: blocks of 4×4 px → `(36, tiles, K)`; `patch` is `(6, 4, K)`."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    height, width, channels = gradient.shape
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        y = 4 * down
        for beside in range(chunk.left, chunk.right):
            tile = (down - chunk.top) * wide + beside - chunk.left
            for j in range(4):
                x = 4 * beside + j
                if x >= width:
                    for i in range(6):
                        for c in range(channels):
                            patch[i, j, c] = 0
                elif y + 4 <= height:
                    for c in range(channels):
                        p, q, r, s = (
                            gradient[y, x, c],
                            gradient[y + 1, x, c],
                            gradient[y + 2, x, c],
                            gradient[y + 3, x, c],
                        )
                        even, odd, outer, inner = p + r, q + s, p + four * r, two * q + eight * s
                        patch[0, j, c] = p
                        patch[1, j, c] = even + odd
                        patch[2, j, c] = even - odd
                        patch[3, j, c] = outer + inner
                        patch[4, j, c] = outer - inner
                        patch[5, j, c] = s
                else:
                    for c in range(channels):
                        p = gradient[y, x, c]
                        q = gradient[y + 1, x, c] if y + 1 < height else np.float32(0)
                        r = gradient[y + 2, x, c] if y + 2 < height else np.float32(0)
                        even, outer, inner = p + r, p + four * r, two * q
                        patch[0, j, c] = p
                        patch[1, j, c] = even + q
                        patch[2, j, c] = even - q
                        patch[3, j, c] = outer + inner
                        patch[4, j, c] = outer - inner
                        patch[5, j, c] = 0
            for i in range(6):
                for c in range(channels):
                    p, q, r, s = patch[i, 0, c], patch[i, 1, c], patch[i, 2, c], patch[i, 3, c]
                    even, odd, outer, inner = p + r, q + s, p + four * r, two * q + eight * s
                    result[6 * i, tile, c] = p
                    result[6 * i + 1, tile, c] = even + odd
                    result[6 * i + 2, tile, c] = even - odd
                    result[6 * i + 3, tile, c] = outer + inner
                    result[6 * i + 4, tile, c] = outer - inner
                    result[6 * i + 5, tile, c] = s
