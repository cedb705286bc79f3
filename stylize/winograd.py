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
from functools import cached_property, lru_cache
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
    """Images with a border around each that nobody writes down.

    Attributes:
        values: `(N, H, W, C)`, contiguous.
        rows: Which row of an image stands in which row of the bordered one; −1 for zeros.
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
        """Images, with their borders `(N, H + 2, W + 2, C)`, → `out`, `(N, H, W, K)`, contiguous; with ReLU or not."""
        offset = np.zeros(len(self.weight), np.float32) if bias is None else bias.detach().contiguous().numpy()
        _convolve(source, None, self._forward, offset, 0.0 if relu else -math.inf, out)

    def convolve_back(self, gradient: Tensor, size: tuple[int, int, int], rectified: Tensor | None = None) -> Tensor:
        """The gradient of the result `(N, H, W, K)` → that of the bordered images, each of `size` `(H + 2, W + 2, C)`.

        `rectified` is the result, where it went through ReLU.
        """
        result = gradient.new_empty(len(gradient), *size)
        framed = Bordered(gradient.contiguous(), *(_framed(side, 2) for side in gradient.shape[1:3]))
        gate = None if rectified is None else rectified.contiguous().flatten(0, 1).numpy()
        _convolve(framed, gate, self._backward, np.zeros(size[2], np.float32), -math.inf, result)
        return result

    def tile_products(self, source: Bordered, gradient: Tensor, totals: Tensor | None = None) -> Tensor:
        """Of bordered images and the gradient `(N, H, W, K)` of their results: what `weight_gradient` is made of.

        It is added to `totals`, which come from other images of the same size.
        """
        outputs, inputs = self.weight.shape[:2]
        threads = torch.get_num_threads()
        tiles = _tiles(source, gradient.shape)
        images, towards = source.values.flatten(0, 1).numpy(), gradient.contiguous().flatten(0, 1).numpy()
        chunks = _chunks(*tiles.grid, max(inputs, outputs), threads)
        sums = torch.zeros(min(threads, len(chunks)), 36, inputs, in_panels(outputs)) if totals is None else totals

        def add(thread: int) -> None:
            for chunk in chunks[thread :: len(sums)]:
                of_inputs = _scratch("values", 36, chunk.tiles, inputs)
                of_outputs = _scratch("products", 36, chunk.tiles, in_panels(outputs))
                _transform_tiles(images, None, *tiles.sources, chunk, of_inputs.numpy(), _patch(6, 6, inputs))
                _transform_blocks(towards, tiles.targets, chunk, of_outputs.numpy(), _patch(6, 4, outputs))
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
    inputs, outputs, threads = source.values.shape[3], out.shape[3], torch.get_num_threads()
    tiles = _tiles(source, out.shape)
    images, result = (values.flatten(0, 1).numpy() for values in (source.values, out))
    chunks = _chunks(*tiles.grid, max(inputs, outputs), threads)
    left = iter(chunks)

    def convolve(_: int) -> None:
        for chunk in left:
            values = _scratch("values", 36, chunk.tiles, inputs)
            products = _scratch("products", 36, chunk.tiles, in_panels(outputs))
            _transform_tiles(images, gate, *tiles.sources, chunk, values.numpy(), _patch(6, 6, inputs))
            multiply(values, kernel, products)
            _transform_products(
                products.numpy(), tiles.targets, chunk, offset, np.float32(least), result, _patch(4, 6, outputs)
            )

    in_threads(convolve, min(threads, len(chunks)))


class _Tiles(NamedTuple):
    # Those of several images stand above each other, as the images' rows do in memory.
    # sources: the rows of all images that each row of tiles is made of, `(tiles, 6)`, and columns, `(4 tiles + 2,)`.
    # targets: the rows of all results that each row of tiles gives, `(tiles, 4)`. −1 where there is none.
    # grid: how many stand above and beside each other.
    sources: tuple[Indices, Indices]
    targets: Indices
    grid: tuple[int, int]


def _tiles(source: Bordered, shape: torch.Size) -> _Tiles:
    """The tiles for results `(N, H, W, …)`."""
    count, height, width = shape[:3]
    down, across = -(-height // TILE_PX), -(-width // TILE_PX)
    rows = np.full(TILE_PX * down + 2, -1)
    rows[: len(source.rows)] = source.rows
    columns = np.full(TILE_PX * across + 2, -1)
    columns[: len(source.columns)] = source.columns
    first = TILE_PX * np.arange(down)[:, None]
    of_result = first + np.arange(TILE_PX)
    of_result[of_result >= height] = -1
    return _Tiles(
        (_of_all(rows[first + np.arange(TILE_PX + 2)], count, source.values.shape[1]), columns),
        _of_all(of_result, count, height),
        (count * down, across),
    )


def _of_all(rows: Indices, count: int, height: int) -> Indices:
    """Rows of one image, `(tiles, …)` → of so many that stand above each other."""
    if count == 1:
        return rows
    moved = rows + height * np.arange(count)[:, None, None]
    return np.where(rows < 0, -1, moved).reshape(-1, rows.shape[1])


@lru_cache(64)
def _framed(length: int, width: int) -> Indices:
    """Which position of a row of this length stands where, in a frame of zeros of this width."""
    return np.pad(np.arange(length), width, constant_values=-1)


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
    image = Bordered(torch.zeros(1, side_px, side_px, 1), np.arange(side_px), np.arange(side_px))
    convolution.convolve(image, None, torch.empty(1, TILE_PX, TILE_PX, 1))


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
    """Tiles of 6×6 px of rows `(N·H, W, C)`, zero where the gate is, → `(36, tiles, C)`; `patch` is `(6, 6, C)`."""
    two, four, five = np.float32(2), np.float32(4), np.float32(5)
    channels = image.shape[2]
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        r0, r1, r2 = rows[down, 0], rows[down, 1], rows[down, 2]
        r3, r4, r5 = rows[down, 3], rows[down, 4], rows[down, 5]
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
    products: Values,
    targets: Indices,
    chunk: _Chunk,
    offset: Values,
    least: np.float32,
    result: Values,
    patch: Values,
) -> None:  # pragma: no cover (compiled)
    """`(36, tiles, K)` → their 4×4 px of the rows `(N·H, W, K)`, none below `least`; `patch` is `(4, 6, K)`."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    _, width, channels = result.shape
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
            for i in range(4):
                y, x = targets[down, i], 4 * beside
                if y < 0:
                    break
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
    gradient: Values, targets: Indices, chunk: _Chunk, result: Values, patch: Values
) -> None:  # pragma: no cover (compiled)
    """The adjoint of `_transform_products`: blocks of 4×4 px → `(36, tiles, K)`; `patch` is `(6, 4, K)`."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    _, width, channels = gradient.shape
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        y, y1, y2, y3 = targets[down, 0], targets[down, 1], targets[down, 2], targets[down, 3]
        for beside in range(chunk.left, chunk.right):
            tile = (down - chunk.top) * wide + beside - chunk.left
            for j in range(4):
                x = 4 * beside + j
                if x >= width:
                    for i in range(6):
                        for c in range(channels):
                            patch[i, j, c] = 0
                elif y3 >= 0:
                    for c in range(channels):
                        p, q, r, s = gradient[y, x, c], gradient[y1, x, c], gradient[y2, x, c], gradient[y3, x, c]
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
                        q = gradient[y1, x, c] if y1 >= 0 else np.float32(0)
                        r = gradient[y2, x, c] if y2 >= 0 else np.float32(0)
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
