"""Mountains, a lake and a sun, hatched in dark ink on cream paper."""

from __future__ import annotations

import numpy as np
from drawing.canvas import Array, Canvas, Generator, hex_colours, lerp, smooth_noise, smoothstep, solid

PAPER, INK, RED = "f3e7cd", "1b2238", "c4432b"
SUN = (338.0, 128.0, 47.0)
SHORE = 300.0
PITCH = 5.2
FIRS = ((56, 404, 176), (104, 398, 122), (22, 424, 132), (466, 408, 150), (498, 420, 108), (428, 414, 84))


class Plate:
    """A copper plate: where it is cut, 0..1, and where the red plate prints."""

    def __init__(self, rng: Generator, canvas: Canvas) -> None:
        self.rng = rng
        self.canvas = canvas
        x, y = canvas.coordinates()
        self.x = x + 0.5 * smooth_noise(rng, canvas, 24)
        self.y = y + 0.5 * smooth_noise(rng, canvas, 24)
        self.ink = np.zeros_like(x)
        self.red = np.zeros_like(x)
        self.wear = smooth_noise(rng, canvas, 40, 3)

    def lines(self, course: Array, tone: Array, pitch: float = PITCH) -> Array:
        """Returns lines that swell with the tone.

        Args:
            course: Its multiples of ``pitch`` are the lines' middles, in units where its slope is 1.
            tone: From 0, no line, to 1, all ink.
            pitch: Distance of the lines where the slope is 1.
        """
        down, right = np.gradient(course)
        slope = np.maximum(np.hypot(down, right) * self.canvas.unit, 0.25)
        distance = np.abs((course / pitch + 0.5) % 1 - 0.5) * pitch / slope
        half = 0.5 * pitch / slope * np.clip(tone + 0.05 * self.wear, 0, 0.94)
        return np.asarray(smoothstep(0.45, -0.45, distance - half) * smoothstep(0.05, 0.12, tone), dtype=np.float32)

    def hatched(self, course: Array, across: Array, tone: Array) -> Array:
        """Returns lines, and where it is dark a second set across them, where it is darker a third."""
        first = self.lines(course, np.clip(1.25 * tone, 0, 0.72))
        second = self.lines(across, np.clip(1.5 * (tone - 0.42), 0, 0.6))
        third = self.lines(0.7 * (course + across), np.clip(1.6 * (tone - 0.72), 0, 0.5))
        return np.maximum(np.maximum(first, second), third)

    def cut(self, area: Array, ink: Array) -> None:
        """Cuts an area anew."""
        self.ink = self.ink + (ink - self.ink) * area
        self.red = self.red * (1 - area)

    def outline(self, depth: Array, width: float) -> None:
        """Cuts a line where ``depth`` is 0."""
        uneven = width * (1 + 0.4 * smooth_noise(self.rng, self.canvas, 34))
        self.ink = np.maximum(self.ink, smoothstep(0.5, -0.5, np.abs(depth) - uneven))


def engrave_sky(plate: Plate) -> None:
    """Engraves a sky of long lines that bend around clouds, and a sun with rays."""
    x, y = plate.x, plate.y
    billow = smooth_noise(plate.rng, plate.canvas, 88, 3, stretch=2.2)
    distance = np.hypot(x - SUN[0], y - SUN[1])
    angle = np.arctan2(y - SUN[1], x - SUN[0])
    tone = 0.62 - 0.42 * smoothstep(20, 290, y) - 0.30 * np.exp(-(((distance - SUN[2]) / 95) ** 2))
    tone = np.clip(tone - 0.42 * smoothstep(0.1, 1.1, billow) + 0.16 * smoothstep(0.0, -1.2, billow), 0, 1)
    course = y + 9 * billow + 4 * np.sin(x / 47 + 0.4 * billow)
    plate.cut(np.ones_like(x), plate.hatched(course, x + 0.5 * y + 9 * billow, tone))
    halo = smoothstep(118, 104, distance + 9 * np.sin(angle * 14)) * solid(distance - SUN[2])
    rays = plate.lines(angle * 62, np.clip(0.75 - (distance - SUN[2]) / 110, 0, 0.6), 62 * 2 * np.pi / 96)
    plate.cut(halo, np.zeros_like(x))
    plate.red = np.maximum(plate.red, halo * rays)
    disc = solid(SUN[2] - distance)
    shade = plate.lines(distance, np.clip(0.55 + (y - SUN[1]) / 150, 0.2, 0.85), 4.6)
    plate.cut(disc, np.zeros_like(x))
    plate.red = np.maximum(plate.red, disc * shade)
    plate.outline(distance - SUN[2], 0.9)


def engrave_range(plate: Plate, base: float, height: float, spread: float, seed: float, haze: float) -> None:
    """Engraves a range of mountains whose lines run down the slopes, dark on the side away from the sun."""
    x, y = plate.x, plate.y
    place = (x / spread + seed) % 1
    number = np.floor(x / spread + seed)
    peak = 0.30 + 0.40 * ((number * 0.618 + seed) % 1)
    rise = np.where(place < peak, place / peak, (1 - place) / (1 - peak))
    crag = 0.10 * np.abs(np.sin(x / 11.0 + 2 * seed)) + 0.05 * np.abs(np.sin(x / 4.7))
    tall = height * (0.62 + 0.38 * np.sin(number * 2.4 + seed) ** 2)
    depth = (y - (base - tall * (rise**1.15 - crag))).astype(np.float32)
    fold = smooth_noise(plate.rng, plate.canvas, 30, 3)
    side = np.where(place < peak + 0.05 * fold + 0.02 * depth / 10, -1.0, 1.0)
    lit = SUN[0] > x
    dark = np.where((side > 0) == lit, 0.22, 0.80)
    snow = smoothstep(26, 8, depth + 9 * fold)
    tone = np.clip((dark + 0.16 * fold) * (1 - 0.75 * snow) * haze + 0.12 * smoothstep(30, 150, depth), 0, 1)
    course = (x * 0.95 - side * depth * 0.55 + 4 * fold).astype(np.float32)
    across = (depth + 0.25 * x + 4 * fold).astype(np.float32)
    plate.cut(solid(depth), plate.hatched(course, across, tone))
    plate.outline(depth, 0.95)


def engrave_lake(plate: Plate) -> None:
    """Engraves a lake in level lines that break in the light of the sun."""
    x, y = plate.x, plate.y
    depth = y - SHORE
    ripple = smooth_noise(plate.rng, plate.canvas, 20, 3, stretch=6)
    path = smoothstep(0.35, 0.65, np.exp(-(((x - SUN[0]) / (34 + 0.3 * np.maximum(depth, 0))) ** 2)) + 0.1 * ripple)
    tone = np.clip(0.50 - 0.26 * smoothstep(0, 120, depth) + 0.20 * ripple, 0, 0.8) * (1 - path)
    course = (depth + 1.5 * np.sin(x / 23 + depth / 9) + 1.2 * ripple).astype(np.float32)
    plate.cut(solid(depth), plate.lines(course, tone, 4.4))
    plate.red = np.maximum(plate.red, plate.lines(course, 0.62 * path, 6.2) * solid(depth))


def engrave_bank(plate: Plate) -> None:
    """Engraves the near bank, its lines bent over mounds, and firs on it."""
    x, y = plate.x, plate.y
    bank = 416 - 46 * np.exp(-(((x - 70) / 120) ** 2)) - 30 * np.exp(-(((x - 470) / 90) ** 2)) + 6 * np.sin(x / 21)
    depth = (y - bank).astype(np.float32)
    mound = smooth_noise(plate.rng, plate.canvas, 64, 2)
    tone = np.clip(0.52 + 0.32 * mound + 0.1 * np.sin(x / 30 + depth / 14), 0.12, 1)
    course = (depth * 0.9 + 11 * mound + 5 * np.sin(x / 31)).astype(np.float32)
    plate.cut(solid(depth), plate.hatched(course, (0.8 * x + 0.6 * depth + 9 * mound).astype(np.float32), tone))
    plate.outline(depth, 1.1)
    for middle, foot, tall in FIRS:
        down = (y - (foot - tall)) / tall
        ragged = 0.16 * tall * np.clip(down, 0, 1) * (0.62 + 0.5 * ((down * 9 + 0.12 * np.sin(x / 3.1)) % 1))
        inside = (ragged - np.abs(x - middle)).astype(np.float32)
        inside = np.where((down > 0) & (down < 1), inside, -9.0).astype(np.float32)
        shade = np.clip(0.62 + 0.5 * (x - middle) / (0.2 * tall) * (1 if SUN[0] < middle else -1), 0.22, 0.95)
        bough = (down * tall + 0.45 * np.abs(x - middle)).astype(np.float32)
        plate.cut(solid(inside), plate.hatched(bough, (x * 0.9 - 0.4 * y).astype(np.float32), shade.astype(np.float32)))
        plate.outline(inside, 0.7)


def draw_engraving(canvas: Canvas) -> Array:
    """Engraves the landscape and prints it in two inks."""
    rng = np.random.default_rng(1498)
    plate = Plate(rng, canvas)
    engrave_sky(plate)
    engrave_range(plate, SHORE + 4, 150, 176, 0.37, 0.62)
    engrave_range(plate, SHORE + 6, 92, 118, 0.81, 0.95)
    engrave_lake(plate)
    engrave_bank(plate)
    grain = smooth_noise(rng, canvas, 4, 2)
    paper = hex_colours(PAPER)[0] * (1 + 0.012 * grain + 0.02 * smooth_noise(rng, canvas, 120))[..., None]
    bite = 0.95 + 0.05 * smooth_noise(rng, canvas, 7)
    picture = lerp(paper.astype(np.float32), hex_colours(RED)[0], np.clip(0.9 * plate.red * bite, 0, 1))
    return lerp(picture, hex_colours(INK)[0], np.clip(0.95 * plate.ink * bite, 0, 1))
