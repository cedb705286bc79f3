"""A spiral sun, a flower, a wave and fish scales in rows of small glass tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from drawing.canvas import (
    Array,
    Canvas,
    Generator,
    Labels,
    blurred,
    hex_colours,
    lerp,
    ramp,
    slope_light,
    smooth_noise,
    smoothstep,
)
from numpy.typing import NDArray

GROUT = "4a3f3a"
SUNRISE = ("fbe9c0", "f3c063", "e58f7b", "7cc3c4", "2f86b0", "1f4f94", "58b0bd", "e9d9b0")
SPIRAL = ("4a0d2e", "a3182f", "d93a26", "f07f22", "f9b934", "fdeab5")
WAVE = ("10286b", "fdf6e0", "a8e0d8", "3dbcc2", "1787b0", "1550a0", "f2b632")
SCALES = (
    ("17388c", "f4bf3a", "1a9aa8", "7fd6c2"),
    ("1a3488", "fbe6b0", "1f6fc0", "5fb7e6"),
    ("12466f", "e8652b", "0f8a6a", "9bd770"),
    ("2a2a80", "f7d774", "6a3fa8", "c79be8"),
)
PETALS = ("5a0f36", "d7263d", "f46036", "f9b93e")
HEART = ("f9c22e", "fff0c4", "1b998b", "0f4f6b", "f9e3b0")


@dataclass(frozen=True)
class Field:
    """A part of the mosaic's design.

    Attributes:
        inside: Where the part is.
        rows: Distance across the rows of tiles, in units.
        colour: The colour of the design.
        tile: Side of a tile, in units.
    """

    inside: NDArray[np.bool_]
    rows: Array
    colour: Array
    tile: float


def banded(values: Array, colours: Array) -> Array:
    """Returns flat bands of colour, one for each whole number in ``values``, over and over."""
    return colours[np.floor(values).astype(np.intp) % len(colours)]


def sunrise_field(x: Array, y: Array) -> Field:
    """Returns broad arcs around the upper right corner."""
    dx, dy = x - 540, y + 30
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    wavy = distance + np.minimum(0.03 * distance, 10) * np.sin(angle * 11)
    colour = banded(wavy / 22, hex_colours(*SUNRISE))
    return Field(np.ones(x.shape, dtype=np.bool_), wavy.astype(np.float32), colour, 10.0)


def spiral_field(x: Array, y: Array) -> Field:
    """Returns a round field filled by a spiral of warm bands with a dark rim."""
    dx, dy = x - 172, y - 176
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    arm = distance - 44 * angle / (2 * np.pi)
    colour = ramp(hex_colours(*SPIRAL), (arm / 44) % 1)
    rim = banded((distance - 132) / 9, hex_colours("10286b", "f9c23a", "1787b0"))
    on_rim = distance > 132
    colour = np.where(on_rim[..., None], rim, colour)
    rows = np.where(on_rim, distance - 132, arm)
    return Field(distance < 159, rows.astype(np.float32), colour, 8.8)


def flower_field(x: Array, y: Array) -> Field:
    """Returns a round flower of small tiles."""
    dx, dy = x - 416, y - 212
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    edge = 58 + 28 * np.abs(np.cos(angle * 3)) ** 0.8
    margin = (edge - distance) * 0.8
    ring = np.clip(margin / 7.0, 0, 3)
    colour = hex_colours(*PETALS)[ring.astype(np.intp)]
    heart = distance < 35
    colour = np.where(heart[..., None], banded(distance / 7, hex_colours(*HEART)), colour)
    rows = np.where(heart, distance, margin)
    return Field(distance < edge, rows.astype(np.float32), colour, 7.0)


def shore(x: Array) -> Array:
    """Returns the height of the mosaic's waterline."""
    return np.asarray(338 - 30 * np.sin(x / 66 + 0.7) - 10 * np.sin(x / 31 + 2), dtype=np.float32)


def wave_field(x: Array, y: Array, canvas: Canvas) -> Field:
    """Returns the bands of a wave, following its crest."""
    steepness = np.gradient(shore(x), axis=1) * canvas.unit
    depth = (y - shore(x)) / np.sqrt(1 + steepness**2)
    colour = hex_colours(*WAVE)[np.clip(depth / 9.5, 0, 6).astype(np.intp)]
    return Field(depth > 0, depth.astype(np.float32), colour, 9.5)


def scale_field(x: Array, y: Array) -> Field:
    """Returns rows of fish scales, each made of concentric arcs."""
    pitch, reach = 72.0, 44.0
    rows = np.full(x.shape, -1.0, dtype=np.float32)
    colour = np.zeros((*x.shape, 3), dtype=np.float32)
    palettes = np.stack([hex_colours(*codes) for codes in SCALES])
    # Upper rows hide the roots of lower ones, so they are drawn last.
    for line in range(6, -1, -1):
        middle_y = 396 + line * 28
        shifted = x + (line % 2) * pitch / 2
        column = np.floor(shifted / pitch)
        distance = np.hypot(shifted - (column + 0.5) * pitch, y - middle_y + 14)
        here = distance < reach
        band = np.clip((reach - distance) / 9.0, 0, 3).astype(np.intp)
        kind = (column * 3 + line * 2 + (column * line) % 3).astype(np.intp) % len(palettes)
        rows = np.where(here, reach - distance, rows)
        colour = np.where(here[..., None], palettes[kind, band], colour)
    low = y > shore(x) * 0.35 + 268
    return Field((rows >= 0) & low, rows.astype(np.float32), colour, 8.6)


class Setting:
    """Tiles being set into grout, row by row."""

    def __init__(self, rng: Generator, canvas: Canvas, fields: Sequence[Field]) -> None:
        self.rng = rng
        self.canvas = canvas
        self.taken = np.zeros((canvas.side, canvas.side), dtype=np.bool_)
        self.owner = np.zeros((canvas.side, canvas.side), dtype=np.intp)
        for number, field in enumerate(fields):
            self.owner[field.inside] = number
        self.tiles: list[tuple[float, float, float, float, float]] = []

    def fill(self, field: Field, number: int) -> None:
        """Sets rows of tiles along a field's contours, then small ones into the holes."""
        slopes = np.gradient(field.rows * self.canvas.unit)
        for fit in (0.86, 0.56):
            step = int(self.canvas.unit * 2)
            spots = np.argwhere(self.owner[::step, ::step] == number) * step
            for row, column in self.rng.permutation(spots):
                for way in (1.0, -1.0):
                    self._set_row(field, number, slopes, (float(column), float(row)), way, fit)

    def _set_row(
        self,
        field: Field,
        number: int,
        slopes: Sequence[Array],
        start: tuple[float, float],
        way: float,
        fit: float,
    ) -> None:
        """Sets tiles one after the other from ``start`` until there is no room.

        Args:
            field: The part of the design that the row belongs to.
            number: Its number.
            slopes: The gradient of its ``rows``, down and to the right.
            start: The x and y where the row may begin, in drawing pixels.
            way: 1 or -1, for the two directions along the row.
            fit: Least distance between tiles, in sides of a tile.
        """
        x, y = start
        side = field.tile * self.canvas.unit
        for _ in range(200):
            x, y, angle = self._snapped(field, slopes, x, y)
            if not self._free(x, y, number):
                return
            long = side * float(self.rng.uniform(0.86, 1.22))
            scale = 1.0 if fit > 0.7 else 0.8
            self.tiles.append((x, y, angle, long * scale / 2, side * scale / 2))
            self._take(x, y, side * fit)
            x += way * long * np.cos(angle) * 1.02
            y += way * long * np.sin(angle) * 1.02

    def _snapped(self, field: Field, slopes: Sequence[Array], x: float, y: float) -> tuple[float, float, float]:
        """Returns a point moved to the middle of its row, and the row's angle there."""
        last = self.canvas.side - 1
        row, column = min(max(int(y), 0), last), min(max(int(x), 0), last)
        down, right = float(slopes[0][row, column]), float(slopes[1][row, column])
        steepness = float(np.hypot(down, right)) + 1e-6
        place = float(field.rows[row, column]) / field.tile
        off = (np.floor(place) + 0.5 - place) * field.tile * self.canvas.unit / max(steepness, 0.5)
        off = float(np.clip(off, -0.5 * field.tile, 0.5 * field.tile) * self.canvas.unit)
        angle = float(np.arctan2(right, -down))
        return x + off * right / steepness, y + off * down / steepness, angle

    def _free(self, x: float, y: float, number: int) -> bool:
        """Tells whether a point is on the canvas, in the field with this number, and bare."""
        if not (0 <= x < self.canvas.side and 0 <= y < self.canvas.side):
            return False
        return bool(self.owner[int(y), int(x)] == number and not self.taken[int(y), int(x)])

    def _take(self, x: float, y: float, reach: float) -> None:
        """Keeps other tiles' middles at a distance from a tile."""
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        rows = np.arange(top, min(self.canvas.side, int(y + reach) + 1))[:, None]
        columns = np.arange(left, min(self.canvas.side, int(x + reach) + 1))[None, :]
        disc = np.hypot(rows - y, columns - x) < reach
        self.taken[top : top + len(rows), left : left + columns.size] |= disc

    def shapes(self) -> tuple[Labels, Array]:
        """Returns the tile at each pixel and the distance to its edge, in units."""
        shape = (self.canvas.side, self.canvas.side)
        nearest = np.full(shape, 9.0, dtype=np.float32)
        second = nearest.copy()
        tile: Labels = np.zeros(shape, dtype=np.intp)
        size = np.ones(shape, dtype=np.float32)
        for number, (x, y, angle, half_long, half_wide) in enumerate(self.tiles):
            reach = 1.9 * max(half_long, half_wide)
            top, left = max(0, int(y - reach)), max(0, int(x - reach))
            rows = np.arange(top, min(shape[0], int(y + reach) + 1))[:, None] - y
            columns = np.arange(left, min(shape[1], int(x + reach) + 1))[None, :] - x
            along = np.abs(columns * np.cos(angle) + rows * np.sin(angle)) / half_long
            across = np.abs(rows * np.cos(angle) - columns * np.sin(angle)) / half_wide
            distance = ((along**7 + across**7) ** (1 / 7)).astype(np.float32)
            area = (slice(top, top + len(rows)), slice(left, left + columns.size))
            closer = distance < nearest[area]
            second[area] = np.where(closer, nearest[area], np.minimum(second[area], distance))
            nearest[area] = np.where(closer, distance, nearest[area])
            tile[area] = np.where(closer, number, tile[area])
            size[area] = np.where(closer, half_wide, size[area])
        gap = np.minimum((second - nearest) / 2, 1.16 - nearest) * size / self.canvas.unit
        return tile, gap.astype(np.float32)


def tile_colours(rng: Generator, setting: Setting, fields: Sequence[Field]) -> Array:
    """Returns each tile's colour: the design's, as far as hand-cut glass can match it."""
    places = np.array([(tile[1], tile[0]) for tile in setting.tiles]).astype(np.intp)
    rows, columns = places[:, 0], places[:, 1]
    owner = setting.owner[rows, columns]
    design = np.stack([field.colour for field in fields])[owner, rows, columns]
    count = len(places)
    tint = rng.normal(0, 0.045, (count, 3))
    shade = np.exp(rng.normal(0, 0.17, (count, 1)))
    odd = rng.random((count, 1)) < 0.04
    swapped = design[rng.permutation(count)]
    design = np.where(odd, 0.25 * design + 0.75 * swapped, design)
    return np.clip(design * shade + tint, 0.02, 1).astype(np.float32)


def draw_mosaic_tiles(canvas: Canvas) -> Array:
    """Lays a mosaic of a spiral sun, a flower, a wave and fish scales in rows of small tiles."""
    rng = np.random.default_rng(526)
    x, y = canvas.coordinates()
    fields = [
        sunrise_field(x, y),
        wave_field(x, y, canvas),
        scale_field(x, y),
        flower_field(x, y),
        spiral_field(x, y),
    ]
    setting = Setting(rng, canvas, fields)
    for number, field in enumerate(fields):
        setting.fill(field, number)
    tile, gap = setting.shapes()
    gap = gap + 0.28 * smooth_noise(rng, canvas, 5, 2) - 0.55
    colour = tile_colours(rng, setting, fields)[tile]

    tilt = rng.normal(0, 1, (2, len(setting.tiles)))[:, tile]
    middle = np.array([place[:2] for place in setting.tiles])[tile]
    lean_x = (x * canvas.unit - middle[..., 0]) * tilt[0]
    lean_y = (y * canvas.unit - middle[..., 1]) * tilt[1]
    sheen = (lean_x + lean_y) / (10 * canvas.unit)
    vein = smooth_noise(rng, canvas, 9, 3)
    bevel = blurred(smoothstep(-0.6, 1.4, gap) * 1.3 * canvas.unit, 0.5 * canvas.unit)
    light = slope_light(bevel + 0.12 * vein, 1.1)
    shading = 1 + 0.36 * light + 0.17 * sheen + 0.06 * vein
    glass = colour * shading[..., None] + 0.30 * np.clip(light - 0.35, 0, 1)[..., None]
    shadow = 0.6 + 0.4 * smoothstep(-1.6, 0.2, gap)
    grain = 1 + 0.25 * smooth_noise(rng, canvas, 3, 2)
    grout = hex_colours(GROUT)[0] * (shadow * grain)[..., None]
    return lerp(grout.astype(np.float32), glass.astype(np.float32), smoothstep(-0.4, 0.4, gap))
