"""An evening at the sea in dots of pure colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drawing.canvas import (
    Array,
    Canvas,
    Generator,
    blurred,
    hex_colours,
    lerp,
    ramp,
    slope_light,
    smooth_noise,
    smoothstep,
)

SUN = (344.0, 196.0)
HORIZON = 250.0
SKY = ("24408f", "5b6fc0", "b78fc4", "f2a38c", "fbc56a", "fde9a8")
SEA = ("f7d98a", "f0a772", "8f93c4", "3f7fb5", "1d5f97", "153f7a")
SHORE = ("f3dda0", "e3b567", "c98a4a", "8a5a58")
MEADOW = ("c9d35a", "7fae3f", "3f8a4a", "1f5f55", "25406a")
TREE = ("b7c84a", "4f9a3f", "1f6f4a", "1a3f66", "3a2a6a")
SAIL = ("fff3d6", "f2b89a", "b79ad0")
PURE = ("e8442e", "f58a1f", "f9c22e", "fff1c0", "5fae3a", "15857a", "1f6fc8", "2a3aa0", "7a3fa8", "d8588f")


@dataclass(frozen=True)
class Layer:
    """Dots of one size.

    Attributes:
        spacing: Mean distance, in units.
        radius: Mean radius, in units.
        pure: Share of the dots in a colour of the palette.
        stray: Standard deviation of the others' colour from the scene's.
    """

    spacing: float
    radius: float
    pure: float
    stray: float


LAYERS = (
    Layer(5.2, 4.6, 0.05, 0.07),
    Layer(4.6, 3.0, 0.16, 0.10),
    Layer(4.4, 2.4, 0.22, 0.12),
    Layer(6.0, 1.9, 0.34, 0.10),
)
BOATS = ((176.0, 300.0, 1.0), (250.0, 272.0, 0.55), (440.0, 318.0, 1.25))  # left, base, size
TREES = (
    (70.0, 120.0, 66.0, 440.0),
    (18.0, 190.0, 46.0, 455.0),
    (478.0, 268.0, 34.0, 400.0),
)  # middle, top, width, foot


def hill(x: Array) -> Array:
    """Returns the height of the far shore."""
    return np.asarray(HORIZON - 26 - 30 * np.exp(-(((x - 90) / 80) ** 2)) - 14 * np.sin(x / 41 + 1), dtype=np.float32)


def beach(x: Array) -> Array:
    """Returns the height of the near shore."""
    return np.asarray(398 - 60 * (x / 512) + 12 * np.sin(x / 52), dtype=np.float32)


def scene(rng: Generator, canvas: Canvas) -> Array:
    """Returns the colours that the dots are chosen from."""
    x, y = canvas.coordinates()
    soft = smooth_noise(rng, canvas, 70, 3, stretch=3)
    distance = np.hypot(x - SUN[0], y - SUN[1])
    glow = np.exp(-distance / 120)
    height = np.clip(y / HORIZON + 0.06 * soft, 0, 1)
    picture = ramp(hex_colours(*SKY), np.clip(0.78 * height**1.3 + 0.45 * glow, 0, 1))
    cloud = smoothstep(0.5, 1.3, smooth_noise(rng, canvas, 60, 3, stretch=4) + 0.4 * np.sin(y / 26))
    picture = lerp(picture, hex_colours("fbd0b0")[0], 0.65 * cloud * smoothstep(HORIZON, 60, y))
    picture = lerp(picture, hex_colours("fff6c8")[0], smoothstep(33, 29, distance))
    depth = (y - HORIZON) / (512 - HORIZON)
    ripple = smooth_noise(rng, canvas, 16, 3, stretch=7)
    sea = ramp(hex_colours(*SEA), np.clip(0.15 + 1.25 * depth + 0.10 * ripple, 0, 1))
    path = np.exp(-(((x - SUN[0]) / (22 + 120 * depth)) ** 2)) * smoothstep(-0.3, 0.5, ripple)
    sea = lerp(sea, hex_colours("ffe9a0")[0], 0.85 * path)
    picture = lerp(picture, sea, smoothstep(-1, 1, y - HORIZON))
    land = smoothstep(-1, 1, y - hill(x)) * smoothstep(1, -1, y - HORIZON) * smoothstep(250, 150, x)
    picture = lerp(picture, ramp(hex_colours(*MEADOW), np.clip(0.45 + 0.2 * soft + (y - hill(x)) / 90, 0, 1)), land)
    picture = sailed(picture, x, y)
    below = y - beach(x)
    sand = ramp(hex_colours(*SHORE), np.clip(below / 90 + 0.12 * soft, 0, 1))
    grass = ramp(hex_colours(*MEADOW), np.clip((below - 52) / 70 + 0.22 * smooth_noise(rng, canvas, 30, 3), 0, 1))
    picture = lerp(picture, lerp(sand, grass, smoothstep(38, 60, below + 6 * soft)), smoothstep(-1, 1, below))
    return planted(rng, canvas, picture)


def sailed(picture: Array, x: Array, y: Array) -> Array:
    """Returns the scene with three boats."""
    for left, base, size in BOATS:
        u, v = (x - left) / (30 * size), (base - y) / (62 * size)
        sail = smoothstep(-0.02, 0.02, np.minimum(np.minimum(u, v - 0.08), 1 - v - u * 0.9))
        jib = smoothstep(-0.02, 0.02, np.minimum(np.minimum(-u - 0.06, v - 0.12), 0.8 - v + u * 1.4))
        hull = smoothstep(0.02, -0.02, np.maximum(np.abs(u) - 0.9 - 0.3 * v, np.abs(v) - 0.055))
        picture = lerp(picture, ramp(hex_colours(*SAIL), np.clip(u * 1.1, 0, 1)), sail)
        picture = lerp(picture, hex_colours("f6c9a0")[0], jib)
        picture = lerp(picture, hex_colours("5a2440")[0], hull)
    return picture


def planted(rng: Generator, canvas: Canvas, picture: Array) -> Array:
    """Returns the scene with trees on the near shore."""
    x, y = canvas.coordinates()
    leaf = smooth_noise(rng, canvas, 22, 3)
    for middle, top, width, foot in TREES:
        trunk = smoothstep(1, -1, np.abs(x - middle - 5 * np.sin(y / 37)) - 5.5 - (y - foot) / 60)
        picture = lerp(
            picture, hex_colours("4a2a4f")[0], trunk * smoothstep(foot + 8, foot, y) * smoothstep(top, top + 60, y)
        )
        crown = 0.5 * (foot - top)
        dx, dy = (x - middle) / width, (y - top - 0.56 * crown) / (0.62 * crown)
        round_part = 1 - np.hypot(dx, dy) + 0.2 * leaf
        light = np.clip(0.5 + 0.42 * (dy - 0.6 * dx) - 0.16 * leaf, 0, 1)
        picture = lerp(picture, ramp(hex_colours(*TREE), light), smoothstep(-0.05, 0.05, round_part))
    return picture


class Dots:
    """Round touches of paint, laid one over the other."""

    def __init__(self, rng: Generator, canvas: Canvas, ground: Array) -> None:
        self.rng = rng
        self.canvas = canvas
        self.colour = ground
        self.height = np.zeros((canvas.side, canvas.side), dtype=np.float32)

    def lay(self, layer: Layer, source: Array) -> None:
        """Lays a layer of dots in random order, each in a colour near that of the source."""
        step = layer.spacing * self.canvas.unit
        count = int(np.ceil(self.canvas.side / step))
        palette = hex_colours(*PURE)
        for cell in self.rng.permutation(count * count):
            row, column = (np.array(divmod(int(cell), count)) + self.rng.random(2)) * step
            if row < self.canvas.side and column < self.canvas.side:
                colour = source[int(row), int(column)] + self.rng.normal(0, layer.stray, 3)
                if self.rng.random() < layer.pure:
                    near = np.linalg.norm(palette - colour, axis=1) + self.rng.normal(0, 0.16, len(palette))
                    colour = 0.25 * colour + 0.75 * palette[int(near.argmin())]
                self._touch(float(column), float(row), layer.radius, np.clip(colour, 0, 1).astype(np.float32))

    def _touch(self, x: float, y: float, radius: float, colour: Array) -> None:
        size = radius * self.canvas.unit * float(self.rng.uniform(0.8, 1.2))
        stretch, turn = float(self.rng.uniform(1.0, 1.3)), float(self.rng.uniform(0, np.pi))
        reach = size * stretch + 1
        left, right = max(0, int(x - reach)), min(self.canvas.side, int(x + reach) + 2)
        top, bottom = max(0, int(y - reach)), min(self.canvas.side, int(y + reach) + 2)
        dx = np.arange(left, right, dtype=np.float32)[None, :] - x
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - y
        along = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
        distance = np.hypot(along, dy * np.cos(turn) - dx * np.sin(turn))
        cover = np.clip(size - distance + 0.5, 0, 1)
        window = (slice(top, bottom), slice(left, right))
        self.colour[window] = lerp(self.colour[window], colour, cover)
        dome = np.sqrt(np.clip(1 - (distance / size) ** 2, 0, 1))
        self.height[window] += (0.3 * self.height[window] + dome - self.height[window]) * cover


def draw_pointillism(canvas: Canvas) -> Array:
    """Paints the evening dot by dot, on a ground of cream."""
    rng = np.random.default_rng(1884)
    source = scene(rng, canvas)
    dots = Dots(rng, canvas, 0.5 * source + 0.5 * hex_colours("f2e2c0")[0])
    for layer in LAYERS:
        dots.lay(layer, source)
    light = slope_light(blurred(dots.height, 0.35 * canvas.unit), 1.1 * canvas.unit)
    return np.asarray(dots.colour * (1 + 0.16 * light[..., None]), dtype=np.float32)
