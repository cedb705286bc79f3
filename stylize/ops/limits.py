"""Sizes by which the CPU kernels divide their work; tests set them low to see every edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TILE_PX = 4  # side of a tile of the result in Winograd's algorithm


@dataclass
class Limits:
    """Sizes in float32 values or tiles.

    Attributes:
        strip_values: Values of a strip of padded maps, or of its result: 4 MiB, which stay in the cache.
        windowed_values: Values of a part of the maps from which the gradient of the weights is computed.
        chunk_values: Values of the transformed tiles of a chunk in Winograd's algorithm: 1.25 MiB, part of the cache.
        chunk_tiles: Tiles of a chunk, at least: each chunk reads all weights, and those of many channels do not fit
            into the cache.
    """

    strip_values: int = 1 << 20
    windowed_values: int = 1 << 18
    chunk_values: int = 5 << 16
    chunk_tiles: int = 48

    @contextmanager
    def set(self, **values: int) -> Iterator[None]:
        """Use other values within the block.

        >>> with limits.set(chunk_tiles=1):
        ...     limits.chunk_tiles
        1
        """
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)


limits = Limits()
