"""A colour print of a sun over mountains, hills and sea, carved in four blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from drawing.canvas import Array, Canvas, Generator, hex_colours, lerp, smooth_noise, smoothstep, solid

PAPER = "f4e6c8"
INKS = {"ochre": "f0ad2e", "brick": "c73a22", "teal": "3f9fa0", "indigo": "161c4d"}
INK_OFFSETS = {"ochre": (1.6, -1.1), "brick": (-1.3, 0.9), "teal": (0.8, 1.4), "indigo": (0.0, 0.0)}
SUN = (336.0, 138.0, 56.0)


class Blocks:
    """The carved blocks of a colour print: for every ink, where it is printed (0..1)."""

    def __init__(self, rng: Generator, canvas: Canvas) -> None:
        self.rng = rng
        self.canvas = canvas
        x, y = canvas.coordinates()
        # The hand that holds the gouge is never quite steady.
        self.x = x + 0.9 * smooth_noise(rng, canvas, 26)
        self.y = y + 0.9 * smooth_noise(rng, canvas, 26)
        self.ink = {name: np.zeros_like(x) for name in INKS}

    def cover(self, area: Array, **inks: float | Array) -> None:
        """Prints an area with the named inks and with no other."""
        for name, block in self.ink.items():
            self.ink[name] = block + (inks.get(name, 0.0) - block) * area

    def outline(self, depth: Array, width: float = 1.3) -> None:
        """Prints an indigo line of uneven width where ``depth`` is 0."""
        uneven = width * (1 + 0.35 * smooth_noise(self.rng, self.canvas, 30))
        line = smoothstep(0.6, -0.6, np.abs(depth) - uneven)
        self.ink["indigo"] = np.maximum(self.ink["indigo"], line)

    def gouged(self, phase: Array, along: Array, width: Array | float, length: float) -> Array:
        """Returns 1 where a gouge cut the block: rows of strokes that swell and taper.

        Args:
            phase: Counts the rows; strokes lie on whole numbers plus a half.
            along: Distance along the rows, in units.
            width: Share of a row that its strokes take at their widest.
            length: Length of a stroke, in units.
        """
        row = np.floor(phase).astype(np.intp)
        table = self.rng.random(8192)
        place = along / length + table[row * 37 % 8192] * 7
        stroke = np.floor(place).astype(np.intp)
        chance = table[(row * 131 + stroke * 977) % 8192]
        # A gouge enters the wood quickly and leaves it slowly.
        swell = np.sin(np.pi * (place - stroke) ** 0.7) ** 0.65
        half = 0.5 * width * swell * (0.65 + 0.5 * chance)
        down, right = np.gradient(phase)
        soft = np.hypot(down, right) * 0.7 + 1e-4
        inside = (half - np.abs(phase - row - 0.5)) / soft
        return np.asarray(np.clip(inside + 0.5 * (half > 0.02), 0, 1), dtype=np.float32)


def ridge_depth(blocks: Blocks, ridge: Array) -> Array:
    """Returns the distance below a ridge line, given as its height at each pixel's x."""
    steepness = np.gradient(ridge, axis=1) * blocks.canvas.unit
    return np.asarray((blocks.y - ridge) / np.sqrt(1 + steepness**2), dtype=np.float32)


def carve_sky(blocks: Blocks) -> None:
    """Carves the sun and the rings of light around it."""
    sun_x, sun_y, radius = SUN
    dx, dy = blocks.x - sun_x, blocks.y - sun_y
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    away = distance - radius
    ring = away / 7.2 + 0.5 * np.sin(angle * 5)
    light = 0.94 - 0.62 * smoothstep(10, 330, away)
    cut = blocks.gouged(ring, angle * (distance + 30), light, 46)
    glow = solid(110 - away - 26 * np.sin(angle * 16))
    blocks.cover(np.ones_like(cut), indigo=1 - cut, ochre=glow, teal=1 - glow)
    breeze = blocks.gouged(ring / 3, angle * (distance + 30) + 60, 0.3, 110)
    blocks.cover(breeze * (1 - glow), ochre=smoothstep(200, 120, away))
    ray = angle * 40 / (2 * np.pi)
    rays = blocks.gouged(ray, away + 500, 0.95 * smoothstep(80, 0, away), 70)
    blocks.cover(rays * solid(away), ochre=1.0)
    red_ray = blocks.gouged(ray + 0.5, away + 500, 0.7 * smoothstep(62, 0, away), 64)
    blocks.cover(red_ray * solid(away), ochre=1.0, brick=1.0)
    shade = blocks.gouged((dx + 1.5 * dy) / 9, dx - dy, 0.92 - distance / 120 - dy / 110, 36)
    blocks.cover(solid(-away), brick=1 - shade, ochre=1.0)
    blocks.outline(away, 1.8)


def carve_cloud(blocks: Blocks, puffs: Sequence[tuple[float, float, float]]) -> None:
    """Carves a cloud of round puffs, hatched along their outlines."""
    depth = np.full_like(blocks.x, -1e3)
    turn, winding = np.zeros_like(depth), np.zeros_like(depth)
    for x, y, radius in puffs:
        dx, dy = blocks.x - x, (blocks.y - y) * 1.15
        inside = radius - np.hypot(dx, dy)
        front = (inside > 0) | (inside > depth)
        angle = np.arctan2(dy, dx)
        depth = np.where(front, inside, depth)
        turn = np.where(front, angle * radius, turn)
        winding = np.where(front, angle / np.pi, winding)
    low = smoothstep(-1.0, 1.0, np.sin(turn / 19))
    curl = (depth / 5.6 + winding).astype(np.float32)
    hatch = blocks.gouged(curl, turn, 0.28 + 0.55 * smoothstep(2, 22, depth) * low, 30)
    blush = smoothstep(12, 14, depth)
    blocks.cover(solid(depth.astype(np.float32)), indigo=0.0, teal=hatch, ochre=0.55 * blush)
    blocks.outline(depth.astype(np.float32), 1.7)
    inner = np.abs(depth - 8).astype(np.float32)
    blocks.ink["indigo"] = np.maximum(
        blocks.ink["indigo"], blocks.gouged(inner / 8 + 0.5, turn, 0.34 * (inner < 4), 44)
    )


CLOUDS: tuple[tuple[tuple[float, float, float], ...], ...] = (
    ((30, 70, 34), (78, 52, 40), (122, 74, 30), (60, 92, 30), (160, 88, 20), (8, 96, 24)),
    ((470, 44, 34), (505, 66, 32), (434, 62, 24), (408, 72, 15)),
    ((226, 26, 26), (258, 14, 30), (196, 36, 18), (290, 28, 18)),
)


def carve_mountains(blocks: Blocks) -> None:
    """Carves a jagged range, lit on the side of the sun."""
    rng = blocks.rng
    stops = np.linspace(-10, 522, 15)
    stops[1:-1] += rng.uniform(-11, 11, 13)
    peaks = 236 + np.where(np.arange(15) % 2, -34, 14) + rng.uniform(-20, 20, 15)
    ridge = np.interp(blocks.x, stops, peaks).astype(np.float32)
    ridge += 2.5 * smooth_noise(rng, blocks.canvas, 14)
    depth = ridge_depth(blocks, ridge)
    slope = np.gradient(np.interp(blocks.x, stops, peaks), axis=1) * blocks.canvas.unit
    lit = np.where(slope < 0, 0.30, 0.86)
    crag = (blocks.x * np.where(slope < 0, 0.75, -0.75) + blocks.y) / 6.4
    along = blocks.y - blocks.x * np.sign(slope)
    cut = blocks.gouged(crag.astype(np.float32), along, lit * smoothstep(70, 20, depth) + 0.1, 26)
    snow = solid(15 - depth + 6 * np.sin(blocks.x / 3.7)) * (lit > 0.5)
    blocks.cover(solid(depth), indigo=1 - cut, brick=0.9 * (1 - snow))
    blocks.outline(depth, 1.8)


@dataclass(frozen=True)
class Hill:
    """A carved hill: where it stands, how it rolls, its inks and its rows."""

    base: float
    swell: float
    pace: float
    start: float
    inks: tuple[str, ...]
    row: float


HILLS = (
    Hill(272, 20, 64, 1.2, ("teal",), 5.4),
    Hill(302, 24, 82, 3.4, ("ochre", "brick"), 6.2),
    Hill(336, 18, 58, 5.2, ("ochre", "teal"), 7.0),
    Hill(368, 16, 96, 2.1, ("ochre",), 7.8),
)


def carve_hill(blocks: Blocks, hill: Hill) -> None:
    """Carves a hill whose rows follow its outline on one side and run down it on the other."""
    wave = np.sin(blocks.x / hill.pace + hill.start)
    ridge = hill.base - hill.swell * wave - 0.3 * hill.swell * np.sin(blocks.x / 27 + hill.start)
    depth = ridge_depth(blocks, ridge.astype(np.float32))
    bent = depth + 7 * np.sin(blocks.x / 33 + depth / 17)
    lit = 0.62 + 0.30 * np.cos(blocks.x / hill.pace + hill.start) - 0.006 * depth
    cut = blocks.gouged(bent / hill.row, blocks.x, np.clip(lit, 0.16, 0.93), 58)
    steep = (blocks.x + 0.9 * depth + 9 * np.sin(depth / 14)) / (hill.row * 1.25)
    cross = blocks.gouged(steep, depth, 0.8 * smoothstep(0.62, 0.30, lit), 24)
    carved = np.maximum(cut, cross)
    inks = {name: np.ones_like(carved) for name in hill.inks}
    bare = blocks.gouged(bent / (hill.row * 4), blocks.x + 90, 0.5, 120)
    inks[hill.inks[-1]] = 1 - bare
    blocks.cover(solid(depth), indigo=1 - carved, **inks)
    blocks.outline(depth, 1.6)


def carve_tree(blocks: Blocks, x: float, foot: float, height: float, ink: str) -> None:
    """Carves a flame-shaped cypress."""
    rise = (foot - blocks.y) / height
    sway = x + 0.05 * height * np.sin(rise * 5 + x)
    inner = np.clip(rise, 0.001, 0.999)
    half = 0.17 * height * np.sin(np.pi * inner**0.62) ** 0.85 + 0.02 * height
    half = half * (1 + 0.10 * np.sin(blocks.y / 3.1 + np.sign(blocks.x - sway)))
    depth = np.where((rise > 0) & (rise < 1), half - np.abs(blocks.x - sway), -9)
    spread = (blocks.x - sway) / (half + 1)
    flame = spread * height / 34 + 0.35 * np.sin(rise * 14)
    tone = 0.30 + 0.45 * smoothstep(-0.5, 0.9, spread)
    cut = blocks.gouged(flame.astype(np.float32), blocks.y, tone, 17)
    blocks.cover(solid(depth.astype(np.float32)), **{"indigo": 1 - cut, ink: np.ones_like(cut)})


TREES = (
    (118, 288, 52, "teal"),
    (142, 292, 38, "teal"),
    (418, 296, 56, "teal"),
    (442, 300, 42, "ochre"),
    (470, 304, 62, "teal"),
    (196, 330, 66, "teal"),
    (222, 336, 44, "ochre"),
    (340, 352, 48, "teal"),
    (362, 350, 62, "ochre"),
    (32, 372, 182, "brick"),
    (74, 378, 128, "ochre"),
    (494, 366, 92, "teal"),
)


def carve_wave(blocks: Blocks, base: float, pace: float, start: float, ink: str) -> None:
    """Carves a row of breaking waves with foam on their crests."""
    lean = blocks.x + 0.28 * (blocks.y - base)
    crest = (1 - np.abs(np.sin(lean / pace + start))) ** 1.25
    ridge = base - 0.52 * pace * crest + 3 * np.sin(lean / 15)
    depth = ridge_depth(blocks, ridge.astype(np.float32))
    flow = depth + 6 * np.sin(lean / pace * 2 + start)
    lit = 0.18 + 0.62 * crest + 0.22 * np.sin(depth / 9)
    cut = blocks.gouged(flow / 6.6, lean, np.clip(lit, 0.12, 0.9), 44)
    white = blocks.gouged(flow / 13.2, lean + 31, np.clip(lit - 0.1, 0, 0.8), 66)
    blocks.cover(solid(depth), **{"indigo": 1 - cut, ink: 1 - white})
    beside = np.abs(blocks.x - SUN[0] + 20 * np.sin(depth / 6))
    blocks.cover(solid(depth) * cut * smoothstep(74, 58, beside), ochre=1.0)
    blocks.cover(solid(depth) * white * smoothstep(40, 30, beside), ochre=1.0, brick=1.0)
    foam = 4 + 9 * crest + 3.2 * np.abs(np.sin(lean / 4.6)) - depth
    lace = blocks.gouged(depth / 4.2, lean, 0.5 * smoothstep(2, 6, depth), 9)
    blocks.cover(solid(depth) * solid(foam.astype(np.float32)), teal=lace)
    blocks.outline(np.where(depth > -2, foam, 9).astype(np.float32), 1.0)
    blocks.outline(depth, 1.7)


WAVES = (
    (398, 46, 0.4, "teal"),
    (428, 58, 1.7, "teal"),
    (462, 70, 0.2, "teal"),
    (502, 84, 1.1, "teal"),
)


def shifted(block: Array, canvas: Canvas, right: float, down: float) -> Array:
    """Returns a block moved by some units, its border repeated where it would end."""
    axis = np.arange(canvas.side)
    rows = np.clip(axis - round(down * canvas.unit), 0, canvas.side - 1)
    columns = np.clip(axis - round(right * canvas.unit), 0, canvas.side - 1)
    return block[np.ix_(rows, columns)]


def printed(blocks: Blocks) -> Array:
    """Returns the print: transparent inks, slightly out of register, on grained paper."""
    rng, canvas = blocks.rng, blocks.canvas
    fibre = smooth_noise(rng, canvas, 1.6, 2, stretch=2.0)
    cloudy = smooth_noise(rng, canvas, 40)
    picture = hex_colours(PAPER)[0] * (1 + 0.022 * fibre + 0.012 * cloudy)[..., None]
    for name, code in INKS.items():
        block = shifted(blocks.ink[name], canvas, *INK_OFFSETS[name])
        # Ink misses the paper's pits and shows the wood's grain.
        grain = smooth_noise(rng, canvas, 7, 3, stretch=9)
        pits = smoothstep(1.9, 2.7, fibre + 0.4 * grain)
        cover = block * (1 - 0.75 * pits) * (0.94 + 0.05 * grain)
        picture = picture * lerp(np.ones(3, np.float32), hex_colours(code)[0], np.clip(cover, 0, 1))
    return np.asarray(picture, dtype=np.float32)


def draw_woodcut(canvas: Canvas) -> Array:
    """Prints a sun over mountains, hills and sea from four carved blocks."""
    blocks = Blocks(np.random.default_rng(1831), canvas)
    carve_sky(blocks)
    for puffs in CLOUDS:
        carve_cloud(blocks, puffs)
    carve_mountains(blocks)
    trees = sorted(TREES, key=lambda tree: tree[1])
    for hill in HILLS:
        carve_hill(blocks, hill)
        for tree in [tree for tree in trees if hill.base - 6 <= tree[1] < hill.base + 28]:
            carve_tree(blocks, *tree)
    for wave in WAVES:
        carve_wave(blocks, *wave)
    return printed(blocks)
