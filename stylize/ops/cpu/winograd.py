"""Winograd's algorithm F(4×4, 3×3) for convolutions of float32 maps on CPUs, forward and backward.

An image is cut into tiles of 6×6 px that overlap by two. Each tile, for each channel, becomes 36 values (the input
transform); the sum over channels is then a product of matrices for each of the 36; and 36 values become 4×4 px of the
result (the output transform). That is 36 multiplications for 16 px in place of 144, and additions that grow with the
number of channels, not with its square.

Floor: the products of matrices, C·K·36/16 multiplications a pixel. The transforms read an image once and write it once,
but the transformed tiles are 2.25 times as large and must not leave the cache. So a thread takes a chunk of tiles
through all three steps before the next one. The threads are Python's: compiled functions release the GIL.

Source: Lavin & Gray 2015, arXiv:1509.09308, section 4.3.
"""

from __future__ import annotations

import math
import threading
from collections.abc import MutableMapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from stylize.ops.cpu.compile import LANES, PANEL, Indices, Values, compiled
from stylize.ops.cpu.matmul import in_panels, multiply_values
from stylize.ops.cpu.simd import larger, load, splat, store, where_positive
from stylize.ops.limits import TILE_PX, limits
from stylize.system.threads import in_threads

PARTS = 32  # pieces of work for each thread: one that is faster takes more of them
LINE_VALUES = 16  # float32 values of a cache line of 64 bytes


class PaddedImages(NamedTuple):
    """Images with padding that is not copied: indices say which pixel is where.

    Attributes:
        values: `(N, H, W, C)`, contiguous.
        rows: For every row of a padded image, the row of the image; −1 for zeros.
        columns: For every column likewise.
    """

    values: Tensor
    rows: Indices
    columns: Indices


class _Chunk(NamedTuple):
    # Rows `top` to `bottom` − 1 of tiles, columns `left` to `right` − 1.
    top: int
    bottom: int
    left: int
    right: int


class Winograd:
    """A 3×3 convolution of stride 1.

    Args:
        weight: `(K, C, 3, 3)`, K and C at least `LANES`.

    Attributes:
        values_per_px: Values of a pixel of the result.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.values_per_px = len(weight)

    def convolve(self, source: PaddedImages, bias: Tensor | None, out: Tensor, relu: bool = False) -> None:
        """Convolve padded images `(N, H + 2, W + 2, C)` into `out`, `(N, H, W, K)`, contiguous, with ReLU if asked."""
        offset = out.new_zeros(len(self.weight)) if bias is None else bias.detach().contiguous()
        _convolve(source, None, self._forward, offset, 0.0 if relu else -math.inf, out)

    def convolve_back(self, gradient: Tensor, size: tuple[int, int, int], rectified: Tensor | None = None) -> Tensor:
        """Return the gradient of padded images, each of `size` `(H + 2, W + 2, C)`.

        Args:
            gradient: Gradient of the result, `(N, H, W, K)`.
            size: Shape of a padded image.
            rectified: The result after ReLU, whose gradient is then part of this one; None: without ReLU.
        """
        result = gradient.new_empty(len(gradient), *size)
        framed = PaddedImages(gradient.contiguous(), *(_framed(side, 2) for side in gradient.shape[1:3]))
        gate = None if rectified is None else rectified.contiguous().flatten(0, 1).numpy()
        _convolve(framed, gate, self._backward, gradient.new_zeros(size[2]), -math.inf, result)
        return result

    def tile_products(self, source: PaddedImages, gradient: Tensor, totals: Tensor | None = None) -> Tensor:
        """Return the sums over tiles from which `weight_gradient` computes the gradient of the weights.

        Args:
            source: Padded images.
            gradient: Gradient of their results, `(N, H, W, K)`.
            totals: Sums of other images of the same size, to which these are added; None: none.
        """
        outputs, inputs = self.weight.shape[:2]
        threads = torch.get_num_threads()
        tiles = _tiles(source, gradient.shape)
        images, towards = source.values.flatten(0, 1).numpy(), gradient.contiguous().flatten(0, 1).numpy()
        chunks = _chunks(*tiles.grid, _fitting(inputs, outputs), threads)
        if totals is None:
            totals = _apart((min(threads, len(chunks)), 36, inputs, in_panels(outputs))).zero_()
        of_threads = totals.numpy()

        def add(thread: int) -> None:
            room = _scratch("values", chunks, inputs), _scratch("products", chunks, in_panels(outputs))
            own = chunks[thread :: len(of_threads)]  # the same in every run, so that sums are rounded alike
            _add_tile_products(images, *tiles.sources, towards, tiles.targets, own, *room, of_threads[thread])

        in_threads(add, len(of_threads))
        return totals

    def weight_gradient(self, totals: Tensor) -> Tensor:
        """Return the gradient of the weights, `(K, C, 3, 3)`, from the sums over the tiles of all images."""
        result = torch.empty(3, 3, *totals.shape[2:])
        of_threads, kernels = totals.flatten(0, 1).numpy(), result.flatten(0, 1).numpy()
        threads = torch.get_num_threads()
        in_threads(lambda t: _transform_sums(of_threads, t, threads, kernels), threads)
        return result[..., : len(self.weight)].permute(3, 2, 0, 1)

    @cached_property
    def _forward(self) -> Tensor:
        """`(36, C, K)`, in panels."""
        return _transformed(self.weight.permute(2, 3, 1, 0))

    @cached_property
    def _backward(self) -> Tensor:
        """`(36, K, C)`, in panels: of the kernels rotated by 180°."""
        return _transformed(self.weight.flip(2, 3).permute(2, 3, 0, 1))


def winograd_of(weight: Tensor) -> Winograd:
    """Return the convolution with these weights; frozen ones are transformed once, and again after a change."""
    if weight.requires_grad or weight.is_inference():
        return Winograd(weight)
    state = (weight.data_ptr(), weight._version)
    known = _frozen.get(weight)
    if known is None or known[0] != state:
        known = _frozen[weight] = (state, Winograd(weight))
    return known[1]


_frozen: MutableMapping[Tensor, tuple[tuple[int, int], Winograd]] = WeakIdKeyDictionary()


def _transformed(kernels: Tensor) -> Tensor:
    """Transform kernels: `(3, 3, A, B)` → `(36, A, B)`, in panels."""
    depth, columns = kernels.shape[2:]
    filled = F.pad(kernels, (0, in_panels(columns) - columns)).flatten(0, 1).contiguous()
    result = _apart((filled.shape[2] // PANEL, 36, depth, PANEL))
    source, target = filled.numpy(), result.flatten(0, 1).numpy()
    threads = torch.get_num_threads()
    in_threads(lambda t: _transform_kernels(source, t, threads, target), threads)
    return result.transpose(0, 1)


def _apart(shape: tuple[int, int, int, int]) -> Tensor:
    """Allocate matrices of which 36 are written at once, at distances that do not evict each other from the cache.

    See `_scratch`: without the extra row they would often be multiples of 4 KiB apart.
    """
    parts, values, depth, columns = shape
    return torch.empty(parts, values, depth + 1, columns)[:, :, :depth]


def _convolve(
    source: PaddedImages, gate: Values | None, kernel: Tensor, offsets: Tensor, least: float, out: Tensor
) -> None:
    inputs, outputs, threads = source.values.shape[3], out.shape[3], torch.get_num_threads()
    tiles = _tiles(source, out.shape)
    images, result = (values.flatten(0, 1).numpy() for values in (source.values, out))
    offset, weights = offsets.view(1, 1, -1).numpy(), kernel.numpy()
    chunks = _chunks(*tiles.grid, _fitting(inputs, outputs), threads)
    step = -(-len(chunks) // (PARTS * threads))
    left = iter(range(0, len(chunks), step))

    def convolve(_: int) -> None:
        room = _scratch("values", chunks, inputs), _scratch("products", chunks, in_panels(outputs))
        for first in left:  # shared by the threads: one that is faster takes more
            some = chunks[first : first + step]
            _convolve_chunks(
                images, gate, *tiles.sources, weights, *room, offset, least, tiles.targets, some, result
            )  # fmt: skip

    in_threads(convolve, min(threads, len(chunks)))


class _Tiles(NamedTuple):
    # Tiles of all images, one image below the other, as their rows are in memory.
    # sources: for every row of tiles the rows of the images, `(tiles, 6)`; the columns, `(4 tiles + 2,)`.
    # targets: for every row of tiles the rows of the results, `(tiles, 4)`; −1 beyond the last.
    # grid: number of rows and of columns of tiles.
    sources: tuple[Indices, Indices]
    targets: Indices
    grid: tuple[int, int]


def _tiles(source: PaddedImages, shape: torch.Size) -> _Tiles:
    """Return the tiles for results `(N, H, W, …)`."""
    return _tiles_of(source.rows.tobytes(), source.columns.tobytes(), source.values.shape[1], *shape[:3])


@lru_cache(64)
def _tiles_of(rows: bytes, columns: bytes, source_height: int, count: int, height: int, width: int) -> _Tiles:
    down, across = -(-height // TILE_PX), -(-width // TILE_PX)
    # Padding tiles repeat the edge (discarded later); zeros would break the flat-stays-flat property.
    down_from, across_from = (
        np.pad(places, (0, TILE_PX * tiles + 2 - len(places)), mode="edge")
        for places, tiles in ((np.frombuffer(rows, np.int64), down), (np.frombuffer(columns, np.int64), across))
    )
    first = TILE_PX * np.arange(down)[:, None]
    of_result = first + np.arange(TILE_PX)
    of_result[of_result >= height] = -1
    return _Tiles(
        (_of_all(down_from[first + np.arange(TILE_PX + 2)], count, source_height), across_from),
        _of_all(of_result, count, height),
        (count * down, across),
    )


def _of_all(rows: Indices, count: int, height: int) -> Indices:
    """Return the rows of `count` images, one below the other, from those of one, `(tiles, …)`."""
    if count == 1:
        return rows
    moved = rows + height * np.arange(count)[:, None, None]
    return np.where(rows < 0, -1, moved).reshape(-1, rows.shape[1])


@lru_cache(64)
def _framed(length: int, width: int) -> Indices:
    """Return the indices of a side of this length with zeros of this width at both ends."""
    return np.pad(np.arange(length), width, constant_values=-1)


def _fitting(inputs: int, outputs: int) -> int:
    """Return how many tiles make a chunk."""
    return max(limits.chunk_tiles, limits.chunk_values // (36 * max(inputs, outputs)))


@lru_cache(256)
def _chunks(down: int, across: int, fitting: int, threads: int) -> Indices:
    """Divide the tiles into chunks: some rows of tiles or, of wide images, part of a row.

    Returns:
        `(chunks, 4)`: see `_Chunk`. None is larger than the first.
    """
    columns = -(-across // -(-across // fitting))
    rounds = -(-down // (fitting // columns * threads))
    rows = -(-down // (rounds * threads))  # equally many for every thread
    return np.array(
        [
            (top, min(down, top + rows), left, min(across, left + columns))
            for top in range(0, down, rows)
            for left in range(0, across, columns)
        ]
    )


def load_kernels() -> None:
    """Load the compiled functions of the forward pass, or compile them."""
    convolution, side_px = Winograd(torch.zeros(LANES, LANES, 3, 3)), TILE_PX + 2
    image = PaddedImages(torch.zeros(1, side_px, side_px, LANES), np.arange(side_px), np.arange(side_px))
    convolution.convolve(image, None, torch.empty(1, TILE_PX, TILE_PX, LANES))


_held = threading.local()


def _scratch(name: str, chunks: Indices, channels: int) -> Values:
    """Return uninitialized memory `(36, tiles, channels)`, valid until this thread asks for that name again.

    The 36 matrices begin an odd number of cache lines apart, in different sets of the cache: 4 KiB apart, as they often
    would be, they would evict each other.
    """
    top, bottom, left, right = chunks[0]
    tiles = int((bottom - top) * (right - left))
    lines = -(-tiles * channels // LINE_VALUES)
    step = LINE_VALUES * (lines + 1 + lines % 2)
    room: Values | None = getattr(_held, name, None)
    if room is None or len(room) < 36 * step:
        room = np.empty(36 * step, np.float32)
        setattr(_held, name, room)
    return room[: 36 * step].reshape(36, step)[:, : tiles * channels].reshape(36, tiles, channels)


# The transforms take as many channels at a time as a vector has lanes; the last vector may overlap the one before. A
# tile is held in registers, some of which the compiler spills.


@compiled
def _load(image: Values, gate: Values | None, y: int, x: int, c: int) -> Any:
    if y < 0 or x < 0:
        return splat(0.0)
    if gate is None:  # decided when it is compiled
        return load(image, y, x, c)
    return where_positive(load(image, y, x, c), load(gate, y, x, c))


@compiled
def _of_tile(p: Any, q: Any, r: Any, s: Any, t: Any, u: Any) -> tuple[Any, ...]:
    """Transform six pixels of a row; of equal pixels all but one of the results are exactly 0.

    So a flat image stays flat to the last bit. Instance norm would amplify rounding to noise, three hundred times with
    every layer.
    """
    even, odd, outer, inner = t - 4.0 * r, s - 4.0 * q, t - r, 2.0 * (s - q)
    first, last = 4.0 * (p - r) + outer, (u - s) - 2.0 * inner
    return first, even + odd, even - odd, outer + inner, outer - inner, last


@compiled
def _of_products(p: Any, q: Any, r: Any, s: Any, t: Any, u: Any) -> tuple[Any, ...]:
    """Transform six products back to four pixels of a row."""
    even, odd, outer, inner = q + r, q - r, s + t, s - t
    return p + even + outer, odd + 2.0 * inner, even + 4.0 * outer, odd + 8.0 * inner + u


@compiled
def _of_block(p: Any, q: Any, r: Any, s: Any) -> tuple[Any, ...]:
    """Apply the adjoint of `_of_products`."""
    even, odd, outer, inner = p + r, q + s, p + 4.0 * r, 2.0 * q + 8.0 * s
    return p, even + odd, even - odd, outer + inner, outer - inner, s


@compiled
def _of_kernel(p: Any, q: Any, r: Any) -> tuple[Any, ...]:
    """Transform three weights of a row to six values."""
    even, odd = (-1 / 6) * (p + r), (1 / 6) * q
    outer, inner = (1 / 24) * p + (1 / 6) * r, (1 / 12) * q
    return 0.25 * p, even - odd, even + odd, outer + inner, outer - inner, r


@compiled
def _of_sums(p: Any, q: Any, r: Any, s: Any, t: Any, u: Any) -> tuple[Any, ...]:
    """Apply the adjoint of `_of_kernel`."""
    near, far = (1 / 6) * (q + r), s + t
    return 0.25 * p - near + (1 / 24) * far, (1 / 6) * (r - q) + (1 / 12) * (s - t), (1 / 6) * far - near + u


@compiled
def _store_six(result: Values, first: int, tile: int, c: int, six: tuple[Any, ...]) -> None:
    store(result, first, tile, c, six[0])
    store(result, first + 1, tile, c, six[1])
    store(result, first + 2, tile, c, six[2])
    store(result, first + 3, tile, c, six[3])
    store(result, first + 4, tile, c, six[4])
    store(result, first + 5, tile, c, six[5])


@compiled
def _tile_column(image: Values, gate: Values | None, rows: Indices, down: int, x: int, c: int) -> tuple[Any, ...]:
    return _of_tile(
        _load(image, gate, rows[down, 0], x, c),
        _load(image, gate, rows[down, 1], x, c),
        _load(image, gate, rows[down, 2], x, c),
        _load(image, gate, rows[down, 3], x, c),
        _load(image, gate, rows[down, 4], x, c),
        _load(image, gate, rows[down, 5], x, c),
    )


@compiled
def _transform_tiles(
    image: Values, gate: Values | None, rows: Indices, columns: Indices, chunk: _Chunk, result: Values
) -> None:
    """Transform tiles of 6×6 px of the images' rows, `(N·H, W, C)`, to `(36, tiles, C)`; zero where the gate is."""
    channels = image.shape[2]
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        for beside in range(chunk.left, chunk.right):
            tile, x = (down - chunk.top) * wide + beside - chunk.left, 4 * beside
            for following in range(0, channels, LANES):
                c = min(following, channels - LANES)
                p = _tile_column(image, gate, rows, down, columns[x], c)
                q = _tile_column(image, gate, rows, down, columns[x + 1], c)
                r = _tile_column(image, gate, rows, down, columns[x + 2], c)
                s = _tile_column(image, gate, rows, down, columns[x + 3], c)
                t = _tile_column(image, gate, rows, down, columns[x + 4], c)
                u = _tile_column(image, gate, rows, down, columns[x + 5], c)
                _store_six(result, 0, tile, c, _of_tile(p[0], q[0], r[0], s[0], t[0], u[0]))
                _store_six(result, 6, tile, c, _of_tile(p[1], q[1], r[1], s[1], t[1], u[1]))
                _store_six(result, 12, tile, c, _of_tile(p[2], q[2], r[2], s[2], t[2], u[2]))
                _store_six(result, 18, tile, c, _of_tile(p[3], q[3], r[3], s[3], t[3], u[3]))
                _store_six(result, 24, tile, c, _of_tile(p[4], q[4], r[4], s[4], t[4], u[4]))
                _store_six(result, 30, tile, c, _of_tile(p[5], q[5], r[5], s[5], t[5], u[5]))


@compiled
def _products_column(products: Values, j: int, tile: int, c: int) -> tuple[Any, ...]:
    return _of_products(
        load(products, j, tile, c),
        load(products, 6 + j, tile, c),
        load(products, 12 + j, tile, c),
        load(products, 18 + j, tile, c),
        load(products, 24 + j, tile, c),
        load(products, 30 + j, tile, c),
    )


@compiled
def _store_pixels(result: Values, y: int, x: int, c: int, four: tuple[Any, ...], offset: Any, least: Any) -> None:
    """Store those of four pixels that are inside the image."""
    width = result.shape[1]
    if y >= 0:
        store(result, y, x, c, larger(four[0] + offset, least))
        if x + 1 < width:
            store(result, y, x + 1, c, larger(four[1] + offset, least))
        if x + 2 < width:
            store(result, y, x + 2, c, larger(four[2] + offset, least))
        if x + 3 < width:
            store(result, y, x + 3, c, larger(four[3] + offset, least))


@compiled
def _transform_products(
    products: Values, targets: Indices, chunk: _Chunk, offset: Values, least: float, result: Values
) -> None:
    """Transform products, `(36, tiles, K)`, to tiles of 4×4 px of the rows `(N·H, W, K)`, clipped at `least`."""
    channels = result.shape[2]
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        for beside in range(chunk.left, chunk.right):
            tile, x = (down - chunk.top) * wide + beside - chunk.left, 4 * beside
            for following in range(0, channels, LANES):
                c = min(following, channels - LANES)
                p = _products_column(products, 0, tile, c)
                q = _products_column(products, 1, tile, c)
                r = _products_column(products, 2, tile, c)
                s = _products_column(products, 3, tile, c)
                t = _products_column(products, 4, tile, c)
                u = _products_column(products, 5, tile, c)
                added, floor = load(offset, 0, 0, c), splat(least)
                first = _of_products(p[0], q[0], r[0], s[0], t[0], u[0])
                _store_pixels(result, targets[down, 0], x, c, first, added, floor)
                second = _of_products(p[1], q[1], r[1], s[1], t[1], u[1])
                _store_pixels(result, targets[down, 1], x, c, second, added, floor)
                third = _of_products(p[2], q[2], r[2], s[2], t[2], u[2])
                _store_pixels(result, targets[down, 2], x, c, third, added, floor)
                fourth = _of_products(p[3], q[3], r[3], s[3], t[3], u[3])
                _store_pixels(result, targets[down, 3], x, c, fourth, added, floor)


@compiled
def _block_column(gradient: Values, targets: Indices, down: int, x: int, c: int) -> tuple[Any, ...]:
    column = x if x < gradient.shape[1] else -1
    return _of_block(
        _load(gradient, None, targets[down, 0], column, c),
        _load(gradient, None, targets[down, 1], column, c),
        _load(gradient, None, targets[down, 2], column, c),
        _load(gradient, None, targets[down, 3], column, c),
    )


@compiled
def _transform_blocks(gradient: Values, targets: Indices, chunk: _Chunk, result: Values) -> None:
    """Apply the adjoint of `_transform_products`: blocks of 4×4 px → `(36, tiles, K)`."""
    channels = gradient.shape[2]
    wide = chunk.right - chunk.left
    for down in range(chunk.top, chunk.bottom):
        for beside in range(chunk.left, chunk.right):
            tile, x = (down - chunk.top) * wide + beside - chunk.left, 4 * beside
            for following in range(0, channels, LANES):
                c = min(following, channels - LANES)
                p = _block_column(gradient, targets, down, x, c)
                q = _block_column(gradient, targets, down, x + 1, c)
                r = _block_column(gradient, targets, down, x + 2, c)
                s = _block_column(gradient, targets, down, x + 3, c)
                _store_six(result, 0, tile, c, _of_block(p[0], q[0], r[0], s[0]))
                _store_six(result, 6, tile, c, _of_block(p[1], q[1], r[1], s[1]))
                _store_six(result, 12, tile, c, _of_block(p[2], q[2], r[2], s[2]))
                _store_six(result, 18, tile, c, _of_block(p[3], q[3], r[3], s[3]))
                _store_six(result, 24, tile, c, _of_block(p[4], q[4], r[4], s[4]))
                _store_six(result, 30, tile, c, _of_block(p[5], q[5], r[5], s[5]))


@compiled
def _kernel_column(kernels: Values, j: int, a: int, b: int) -> tuple[Any, ...]:
    return _of_kernel(load(kernels, j, a, b), load(kernels, 3 + j, a, b), load(kernels, 6 + j, a, b))


@compiled
def _transform_kernels(kernels: Values, thread: int, threads: int, result: Values) -> None:
    """Transform kernels `(9, A, B)`, B in whole panels, to `(panels · 36, A, columns)`; every `threads`-th row of A."""
    for a in range(thread, kernels.shape[1], threads):
        for b in range(0, kernels.shape[2], LANES):
            first, c = 36 * (b // PANEL), b % PANEL
            p, q = _kernel_column(kernels, 0, a, b), _kernel_column(kernels, 1, a, b)
            r = _kernel_column(kernels, 2, a, b)
            _store_six(result, first, a, c, _of_kernel(p[0], q[0], r[0]))
            _store_six(result, first + 6, a, c, _of_kernel(p[1], q[1], r[1]))
            _store_six(result, first + 12, a, c, _of_kernel(p[2], q[2], r[2]))
            _store_six(result, first + 18, a, c, _of_kernel(p[3], q[3], r[3]))
            _store_six(result, first + 24, a, c, _of_kernel(p[4], q[4], r[4]))
            _store_six(result, first + 30, a, c, _of_kernel(p[5], q[5], r[5]))


@compiled
def _sum_of(sums: Values, i: int, a: int, b: int) -> Any:
    """Return the sum over the threads' parts."""
    total = load(sums, i, a, b)
    for further in range(36 + i, len(sums), 36):
        total = total + load(sums, further, a, b)
    return total


@compiled
def _sums_column(sums: Values, j: int, a: int, b: int) -> tuple[Any, ...]:
    return _of_sums(
        _sum_of(sums, j, a, b),
        _sum_of(sums, 6 + j, a, b),
        _sum_of(sums, 12 + j, a, b),
        _sum_of(sums, 18 + j, a, b),
        _sum_of(sums, 24 + j, a, b),
        _sum_of(sums, 30 + j, a, b),
    )


@compiled
def _transform_sums(sums: Values, thread: int, threads: int, result: Values) -> None:
    """Sum the threads' parts and apply the adjoint of `_transform_kernels`: `(parts · 36, A, B)` → `(9, A, B)`."""
    for a in range(thread, sums.shape[1], threads):
        for b in range(0, sums.shape[2], LANES):
            p, q, r = _sums_column(sums, 0, a, b), _sums_column(sums, 1, a, b), _sums_column(sums, 2, a, b)
            s, t, u = _sums_column(sums, 3, a, b), _sums_column(sums, 4, a, b), _sums_column(sums, 5, a, b)
            for i in range(3):
                row = _of_sums(p[i], q[i], r[i], s[i], t[i], u[i])
                store(result, 3 * i, a, b, row[0])
                store(result, 3 * i + 1, a, b, row[1])
                store(result, 3 * i + 2, a, b, row[2])


@compiled
def _chunk(chunks: Indices, i: int) -> tuple[_Chunk, int]:
    """Return chunk `i` and its number of tiles."""
    top, bottom, left, right = chunks[i, 0], chunks[i, 1], chunks[i, 2], chunks[i, 3]
    return _Chunk(top, bottom, left, right), (bottom - top) * (right - left)


@compiled
def _convolve_chunks(
    images: Values,
    gate: Values | None,
    rows: Indices,
    columns: Indices,
    weights: Values,
    values: Values,
    products: Values,
    offset: Values,
    least: float,
    targets: Indices,
    chunks: Indices,
    result: Values,
) -> None:
    """Take chunks of tiles through all three steps, one after the other."""
    of_values = values.strides[0] // 4, values.shape[2], 1
    of_weights = weights.strides[0] // 4, weights.strides[1] // 4, PANEL
    of_products = products.strides[0] // 4, products.shape[2], 1
    for i in range(len(chunks)):
        chunk, tiles = _chunk(chunks, i)
        _transform_tiles(images, gate, rows, columns, chunk, values)
        sizes = 36, tiles, values.shape[2], weights.shape[1]
        multiply_values(values, weights, products, (of_values, of_weights, of_products), sizes, False)
        _transform_products(products, targets, chunk, offset, least, result)


@compiled
def _add_tile_products(
    images: Values,
    rows: Indices,
    columns: Indices,
    gradient: Values,
    targets: Indices,
    chunks: Indices,
    of_inputs: Values,
    of_outputs: Values,
    sums: Values,
) -> None:
    """Add the products of the tiles of some chunks to `sums`, `(36, C, K)`."""
    left = of_inputs.strides[0] // 4, 1, of_inputs.shape[2]
    right = of_outputs.strides[0] // 4, PANEL, of_outputs.shape[2]
    out = sums.strides[0] // 4, sums.shape[2], 1
    for i in range(len(chunks)):
        chunk, tiles = _chunk(chunks, i)
        _transform_tiles(images, None, rows, columns, chunk, of_inputs)
        _transform_blocks(gradient, targets, chunk, of_outputs)
        sizes = 36, of_inputs.shape[2], tiles, of_outputs.shape[2] // PANEL
        multiply_values(of_inputs, of_outputs, sums, (left, right, out), sizes, True)
