"""Draw the four style pictures that ship with the project.

Every picture is original, drawn from scratch with NumPy, Pillow and a fixed seed. So it is free of
third-party rights and can be reproduced at any time:

* ``swirling_strokes``: thick brush strokes that follow the whirls of a night sky over fields.
* ``stained_glass``: rose windows among curved rays of leaded glass in jewel colours.
* ``woodcut``: a colour print of a sun over mountains, hills and sea, carved in four blocks.
* ``mosaic_tiles``: a spiral sun, a flower, a wave and fish scales in rows of small glass tiles.

Run it from anywhere::

    python scripts/make_styles.py [--output DIR] [--size 512] [STYLE ...]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.intp]
Generator = np.random.Generator

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "configs" / "styles"
DEFAULT_SIZE = 512
SUPERSAMPLING = 2
MAX_BYTES = 139_000
MAX_QUALITY = 95
MIN_QUALITY = 40


# --- Shared drawing tools -------------------------------------------------------------------------


@dataclass(frozen=True)
class Canvas:
    """A square drawing area, larger than the picture so that it can be antialiased.

    Attributes:
        side: Side in drawing pixels.
        unit: Drawing pixels in 1/512 of the picture's side, the unit of all lengths below.
    """

    side: int
    unit: float

    @classmethod
    def for_picture(cls, size: int) -> Canvas:
        """Returns the supersampled canvas of a picture with the given side."""
        side = size * SUPERSAMPLING
        return cls(side, side / 512)

    def coordinates(self) -> tuple[Array, Array]:
        """Returns the x and y of each pixel's centre, in units (0 to 512)."""
        axis = ((np.arange(self.side) + 0.5) / self.unit).astype(np.float32)
        x, y = np.meshgrid(axis, axis)
        return x, y


def hex_colours(*codes: str) -> Array:
    """Returns colours such as ``"ffcc00"`` as rows of RGB in 0..1."""
    return np.array([list(bytes.fromhex(code)) for code in codes], dtype=np.float32) / 255


def smoothstep(low: float, high: float, values: Array) -> Array:
    """Returns a smooth 0..1 ramp of ``values`` between ``low`` and ``high``."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def lerp(start: Array, end: Array, amount: Array) -> Array:
    """Returns the per-pixel mix of two colours or pictures, ``amount`` being one number a pixel."""
    return (start + (end - start) * amount[..., None]).astype(np.float32)


def ramp(colours: Array, values: Array) -> Array:
    """Returns the colours of a gradient through ``colours`` at ``values`` in 0..1."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(values, stops, colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def resized(values: Array, width: int, height: int) -> Array:
    """Returns a field resampled smoothly to a new shape."""
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def smooth_noise(rng: Generator, canvas: Canvas, feature: float, octaves: int = 3, stretch: float = 1.0) -> Array:
    """Returns value noise with mean 0 and deviation 1.

    Args:
        rng: Source of randomness.
        canvas: Where the noise is used.
        feature: Size of the largest features, in units.
        octaves: Number of layers, each half the size and half the strength of the one before.
        stretch: How many times longer than high the features are.
    """
    total = np.zeros((canvas.side, canvas.side), dtype=np.float32)
    for octave in range(octaves):
        cell = feature * canvas.unit / 2**octave
        rows = max(2, min(canvas.side, round(canvas.side / cell)))
        columns = max(2, min(canvas.side, round(canvas.side / (cell * stretch))))
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        total += resized(grid, canvas.side, canvas.side) / 2**octave
    return np.asarray((total - total.mean()) / total.std(), dtype=np.float32)


def blurred(values: Array, sigma: float) -> Array:
    """Returns a field or picture after a Gaussian blur of ``sigma`` pixels."""
    if values.ndim == 3:
        return np.stack([blurred(values[..., c], sigma) for c in range(values.shape[2])], axis=-1)
    margin = int(3 * sigma) + 1
    padded = np.pad(values, margin, mode="reflect")
    rows = np.fft.fftfreq(padded.shape[0])[:, None]
    columns = np.fft.rfftfreq(padded.shape[1])[None, :]
    response = np.exp(-2 * (np.pi * sigma) ** 2 * (rows**2 + columns**2))
    smooth = np.fft.irfft2(np.fft.rfft2(padded) * response, s=padded.shape)
    return smooth[margin:-margin, margin:-margin].astype(np.float32)


def slope_light(height: Array, strength: float) -> Array:
    """Returns light from the upper left on a relief: 0 on the flat, up to about 1 on lit slopes."""
    down, right = np.gradient(height)
    return np.asarray(np.tanh((right + 1.3 * down) * strength / 1.64), dtype=np.float32)


def finished(picture: Array, canvas: Canvas) -> Image.Image:
    """Returns the canvas scaled down to the picture's size."""
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    size = canvas.side // SUPERSAMPLING
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)


# --- Swirling strokes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Whirl:
    """A vortex of the painted sky; a negative ``spin`` turns it the other way."""

    x: float
    y: float
    radius: float
    spin: float
    glow: float


WHIRLS = (
    Whirl(178, 176, 92, 1.0, 0.46),
    Whirl(318, 236, 62, -1.0, 0.46),
    Whirl(428, 84, 58, 1.0, 1.0),
    Whirl(62, 62, 34, -1.0, 0.9),
    Whirl(282, 62, 30, 1.0, 0.85),
    Whirl(52, 290, 30, 1.0, 0.8),
    Whirl(458, 236, 34, -1.0, 0.8),
)
SKY_COLOURS = ("0b1440", "14277a", "1d4fb0", "1f86b8", "4fb9b4", "bfe0c4", "f6ecc2")
GLOW_COLOURS = ("1f86b8", "7fc0a0", "f2c230", "f79a1e", "fff3c4")
FIELD_COLOURS = ("0d2a3f", "0f5b5c", "3b8a4e", "c9a227", "f2c14e", "d9481f", "f3e3b0")
ACCENT_COLOURS = ("e23d1a", "f58a1f", "fbe8b0", "0a0f3a")


def sky_flow(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Returns the sky's stroke direction (x and y parts) and its phase, which makes the bands."""
    drift = 0.35 * np.sin(x / 70 + y / 55)
    flow_x, flow_y = 0.28 * np.cos(drift), 0.28 * np.sin(drift)
    wave = 0.28 * np.exp(1j * (y + 16 * np.sin(x / 60)) / 9.5)
    for whirl in WHIRLS:
        dx, dy = x - whirl.x, y - whirl.y
        distance = np.hypot(dx, dy) + 1e-3
        weight = 1.6 * np.exp(-((distance / whirl.radius) ** 2) / 1.5)
        # A logarithmic spiral: bands run along it, so the strokes follow its tangent.
        inward = 0.32
        flow_x = flow_x + weight * whirl.spin * (-dy - inward * whirl.spin * dx) / distance
        flow_y = flow_y + weight * whirl.spin * (dx - inward * whirl.spin * dy) / distance
        turn = np.arctan2(dy, dx) * whirl.spin * 2 + distance / whirl.radius * 7.5
        wave = wave + weight * np.exp(1j * turn)
    return flow_x, flow_y, np.angle(wave)


def horizon(x: Array) -> Array:
    """Returns the height of the line where the painted sky meets the fields."""
    return np.asarray(356 + 26 * np.sin(x / 78 + 0.6) + 9 * np.sin(x / 29), dtype=np.float32)


def near_hill(x: Array) -> Array:
    """Returns the height of the nearest hill's crest."""
    return np.asarray(452 - 44 * np.sin(x / 105 - 0.5) + 7 * np.sin(x / 33), dtype=np.float32)


def swirl_underpainting(rng: Generator, canvas: Canvas) -> tuple[Array, Array]:
    """Returns the colours that the strokes pick up and the angle that they follow."""
    x, y = canvas.coordinates()
    flow_x, flow_y, phase = sky_flow(x, y)
    tone = 0.42 + 0.30 * np.cos(phase) + 0.09 * smooth_noise(rng, canvas, 60)
    sky = ramp(hex_colours(*SKY_COLOURS), np.clip(tone, 0, 1))
    for whirl in WHIRLS:
        distance = np.hypot(x - whirl.x, y - whirl.y) / whirl.radius
        core = np.clip(1.12 - distance + 0.22 * np.cos(phase), 0, 1) * whirl.glow
        amount = smoothstep(0.05, 0.45, core)
        sky = lerp(sky, ramp(hex_colours(*GLOW_COLOURS), np.clip(core * 1.1, 0, 1)), amount)

    depth = y - horizon(x)
    near = y - near_hill(x)
    furrow = depth + 12 * np.sin(x / 44 + depth / 30)
    furrow = np.where(near > 0, 0.62 * (x + 30 * np.sin(near / 38)) - 0.8 * near, furrow)
    field_tone = 0.46 + 0.36 * np.sin(furrow / 7.5) + 0.16 * smooth_noise(rng, canvas, 48)
    fields = ramp(hex_colours(*FIELD_COLOURS), np.clip(field_tone, 0, 1))
    below = smoothstep(-2, 2, depth)
    rise_y, rise_x = np.gradient(furrow)
    angle_x = flow_x * (1 - below) + rise_y * below * canvas.unit
    angle_y = flow_y * (1 - below) - rise_x * below * canvas.unit
    edge = np.exp(-((depth / 4) ** 2)).astype(np.float32)
    colours = lerp(lerp(sky, fields, below), hex_colours("0a1238")[0], 0.85 * edge)
    return colours, np.arctan2(angle_y, angle_x).astype(np.float32)


@dataclass(frozen=True)
class Brush:
    """One pass of brush strokes, lengths in units.

    Attributes:
        length: Half of a stroke's length.
        width: Half of a stroke's width.
        spacing: Distance between strokes.
        cover: Share of the places that get a stroke.
        accents: Share of the strokes in a colour of their own.
    """

    length: float
    width: float
    spacing: float
    cover: float
    accents: float


BRUSHES = (
    Brush(36, 9.5, 13, 1.0, 0.05),
    Brush(27, 6.0, 9.5, 1.0, 0.06),
    Brush(20, 4.0, 8.5, 0.9, 0.03),
    Brush(12, 2.4, 8, 0.4, 0.0),
)


class Painting:
    """Wet paint on a canvas: its colour and its thickness."""

    def __init__(self, rng: Generator, canvas: Canvas, colours: Array, angle: Array) -> None:
        self.rng = rng
        self.canvas = canvas
        self.source = colours
        self.angle = angle
        self.colour = colours * 0.6
        self.height = np.zeros((canvas.side, canvas.side), dtype=np.float32)

    def brush_over(self, brush: Brush) -> None:
        """Paints one pass of strokes, in random order, over the whole canvas."""
        step = brush.spacing * self.canvas.unit
        count = int(np.ceil(self.canvas.side / step))
        for cell in self.rng.permutation(count * count):
            if self.rng.random() > brush.cover:
                continue
            jitter = self.rng.random(2)
            row, column = (np.array(divmod(int(cell), count)) + jitter) * step
            if row < self.canvas.side and column < self.canvas.side:
                self._stroke(float(column), float(row), brush)

    def _stroke(self, x: float, y: float, brush: Brush) -> None:
        """Paints one stroke, a part of a parabola that keeps to the flow around its middle."""
        scale = float(self.rng.uniform(0.7, 1.25)) * self.canvas.unit
        length, width = brush.length * scale, brush.width * scale
        angle, bend = self._course(x, y, length)
        reach = length + width
        left, right = max(0, int(x - reach)), min(self.canvas.side, int(x + reach) + 1)
        top, bottom = max(0, int(y - reach)), min(self.canvas.side, int(y + reach) + 1)
        dx = np.arange(left, right, dtype=np.float32)[None, :] - x
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - y
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        across = (across - 0.5 * bend * along**2) / np.sqrt(1 + (bend * along) ** 2)
        window = (slice(top, bottom), slice(left, right))
        self._lay_paint(window, along / length, across / width, self._load(x, y, brush.accents))

    def _course(self, x: float, y: float, length: float) -> tuple[float, float]:
        """Returns the stroke's angle at its middle and its curvature."""
        angle = float(self._at(self.angle, x, y)) + float(self.rng.normal(0, 0.09))
        ends = [
            float(self._at(self.angle, x + s * np.cos(angle), y + s * np.sin(angle)))
            for s in (-0.5 * length, 0.5 * length)
        ]
        turn = (ends[1] - ends[0] + np.pi) % (2 * np.pi) - np.pi
        return angle, float(np.clip(turn, -1.1, 1.1)) / length

    def _load(self, x: float, y: float, accent: float) -> Array:
        """Returns the two colours that the brush picks up, one beside the other."""
        colour = self._at(self.source, x, y)
        if self.rng.random() < accent:
            accents = hex_colours(*ACCENT_COLOURS)
            colour = 0.2 * colour + 0.8 * accents[self.rng.integers(len(accents))]
        nearby = self._at(self.source, *(np.array([x, y]) + self.rng.normal(0, 14, 2)))
        first = colour * self.rng.uniform(0.82, 1.18) + self.rng.normal(0, 0.035, 3)
        second = 0.5 * (colour + nearby) * self.rng.uniform(0.7, 1.4)
        return np.clip([first, second], 0.01, 1).astype(np.float32)

    def _at(self, field: Array, x: float, y: float) -> Array:
        """Returns a field's value at a point, or at the nearest one on the canvas."""
        last = self.canvas.side - 1
        return np.asarray(field[min(max(int(y), 0), last), min(max(int(x), 0), last)])

    def _lay_paint(self, window: tuple[slice, slice], along: Array, across: Array, load: Array) -> None:
        """Drags the loaded brush over a window, in coordinates where the stroke fills -1..1."""
        bristles = np.interp(np.linspace(0, 1, 64), np.linspace(0, 1, 11), self.rng.random(11))
        ends = np.interp(np.linspace(0, 1, 64), np.linspace(0, 1, 9), self.rng.random(9))
        hair = np.clip((across + 1) * 31.5, 0, 63).astype(np.intp)
        bristle = bristles.astype(np.float32)[hair]
        ragged = 0.78 + 0.22 * ends.astype(np.float32)[hair] - 0.3 * across**2
        cover = np.clip((ragged - np.abs(along)) * 9, 0, 1)
        cover *= np.clip((1 - np.abs(across)) * 5, 0, 1)
        # Thin hairs run dry towards the end of the stroke.
        cover *= np.clip(1.5 - 1.2 * (along > 0) * along * (1 - bristle), 0, 1)
        paint = lerp(load[0], load[1], np.clip((bristle - 0.45) * 3, 0, 1))
        self.colour[window] = lerp(self.colour[window], paint, cover)
        ridge = 0.45 + 0.65 * bristle + 0.35 * np.abs(across) ** 3 - 0.2 * along
        old = self.height[window]
        self.height[window] = old + (0.35 * old + ridge - old) * cover


def draw_swirling_strokes(canvas: Canvas) -> Array:
    """Paints a whirling night sky over fields in thick, lit strokes."""
    rng = np.random.default_rng(1889)
    colours, angle = swirl_underpainting(rng, canvas)
    painting = Painting(rng, canvas, colours, angle)
    for brush in BRUSHES:
        painting.brush_over(brush)
    height = blurred(painting.height, 0.4 * canvas.unit)
    light = slope_light(height, 2.1 * canvas.unit)
    picture = painting.colour * (1 + 0.46 * light[..., None])
    shine = np.clip(light - 0.45, 0, 1)[..., None]
    return np.asarray(picture + 0.28 * shine, dtype=np.float32)


# --- Stained glass --------------------------------------------------------------------------------

GLASS_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("c8102e", "e8262f", "9b0d2a", "ff4a3d", "d81b60"),  # ruby
    ("0d3bb8", "1557e0", "0a2a8a", "2a7df0", "3a35b5"),  # cobalt
    ("f6a800", "ffc629", "ff8a00", "ffe27a", "f77f00"),  # amber
    ("0a8a4a", "13b06a", "056b4e", "5cc84a", "0c9c8a"),  # emerald
    ("6a1fa8", "9136d0", "4a1585", "c04bd6", "e056a0"),  # amethyst
    ("0aa5c0", "38c8e0", "0c7fae", "8fe6e0", "1b6fd0"),  # turquoise
    ("fff0c0", "ffe08a", "ffd0b0", "e8f4d8", "ffd23f"),  # opal
)
RUBY, COBALT, AMBER, EMERALD, AMETHYST, TURQUOISE, OPAL = range(7)
THICK_LEAD, THIN_LEAD = 2.9, 1.25


@dataclass(frozen=True)
class Rose:
    """A round window of petals, jewels and rims; ``families`` are petal, jewel, ground, rim."""

    x: float
    y: float
    radius: float
    petals: int
    turn: float
    families: tuple[int, int, int, int]


ROSES = (
    Rose(218, 222, 158, 10, 0.10, (RUBY, AMBER, COBALT, TURQUOISE)),
    Rose(434, 412, 84, 8, 0.30, (AMETHYST, OPAL, EMERALD, AMBER)),
    Rose(428, 92, 58, 6, 0.20, (AMBER, RUBY, AMETHYST, EMERALD)),
    Rose(78, 446, 62, 7, 0.00, (TURQUOISE, OPAL, RUBY, COBALT)),
    Rose(268, 462, 36, 6, 0.40, (OPAL, RUBY, EMERALD, AMETHYST)),
    Rose(36, 40, 40, 6, 0.15, (OPAL, EMERALD, RUBY, AMBER)),
)


class GlassPlan:
    """The cutting plan of a window: which pane covers each pixel, and how far the lead is."""

    def __init__(self, canvas: Canvas) -> None:
        shape = (canvas.side, canvas.side)
        self.canvas = canvas
        self.x, self.y = canvas.coordinates()
        self.pane: Labels = np.zeros(shape, dtype=np.intp)
        self.family: Labels = np.zeros(shape, dtype=np.intp)
        self.gap = np.full(shape, 1e3, dtype=np.float32)
        self._next_pane = 0

    def cut(self, where: NDArray[np.bool_], part: Labels, family: int | Labels) -> None:
        """Replaces the glass in an area by panes, one for each number in ``part``."""
        numbers, pane = np.unique(part[where], return_inverse=True)
        self.pane[where] = self._next_pane + pane.ravel()
        self._next_pane += len(numbers)
        self.family[where] = family[where] if isinstance(family, np.ndarray) else family
        self.gap[where] = 1e3

    def lead(self, where: NDArray[np.bool_], distance: Array, half_width: float | Array) -> None:
        """Lays lead along the curve at distance 0, seen only in an area."""
        self.gap[where] = np.minimum(self.gap, distance - half_width)[where]

    def polar(self, x: float, y: float) -> tuple[Array, Array]:
        """Returns each pixel's distance and angle from a point."""
        dx, dy = self.x - x, self.y - y
        return np.hypot(dx, dy), np.arctan2(dy, dx)


def sectors(angle: Array, count: int, turn: float = 0.0) -> tuple[Labels, Array]:
    """Returns the sector of each angle and the angle to the nearest sector border."""
    position = ((angle / (2 * np.pi) + turn) % 1) * count
    border = 0.5 - np.abs(position % 1 - 0.5)
    return np.floor(position).astype(np.intp), (border * 2 * np.pi / count).astype(np.float32)


def cells(plan: GlassPlan, seeds: Array) -> tuple[Labels, Array]:
    """Returns the Voronoi cell of each pixel and roughly its distance to the cell's border."""
    nearest = np.full(plan.pane.shape, 1e9, dtype=np.float32)
    second = nearest.copy()
    cell: Labels = np.zeros(plan.pane.shape, dtype=np.intp)
    for number, (x, y) in enumerate(seeds):
        distance = np.hypot(plan.x - x, plan.y - y)
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        nearest = np.where(closer, distance, nearest)
        cell[closer] = number
    return cell, (second - nearest) / 2


def scattered(rng: Generator, spacing: float) -> Array:
    """Returns irregular but evenly spread points over the picture and a little around it."""
    count = int(560 / spacing)
    rows, columns = np.divmod(np.arange(count * count), count)
    points = np.stack([columns + 0.5 * (rows % 2), rows], axis=-1) * spacing - 20
    return (points + rng.uniform(-0.42, 0.42, points.shape) * spacing).astype(np.float32)


def cut_rays(plan: GlassPlan, rng: Generator, rose: Rose) -> None:
    """Fills the window with curved rays around a rose, broken into irregular panes."""
    distance, angle = plan.polar(rose.x, rose.y)
    swirl = angle + 0.75 * np.log(distance / 100 + 0.1) + 0.10 * np.sin(distance / 26)
    ray, to_ray = sectors(swirl, 22)
    cell, to_cell = cells(plan, scattered(rng, 29))
    everywhere = np.ones(plan.pane.shape, dtype=np.bool_)
    rota = np.array([COBALT, AMBER, EMERALD, RUBY, TURQUOISE, AMETHYST, AMBER, COBALT, RUBY, OPAL])
    plan.cut(everywhere, ray * 10_000 + cell, rota[ray % len(rota)])
    plan.lead(everywhere, to_ray * distance / 1.3, THICK_LEAD * 0.8)
    plan.lead(everywhere, to_cell, THIN_LEAD)


def cut_rose(plan: GlassPlan, rose: Rose) -> None:
    """Cuts a rose window into the plan, over whatever was there."""
    petal, jewel, ground, rim = rose.families
    size = rose.radius
    thick = THICK_LEAD * min(1.0, 0.55 + size / 250)
    thin = thick * 0.55
    distance, angle = plan.polar(rose.x, rose.y)
    inside = distance < size
    part, to_part = sectors(angle, rose.petals * 3, rose.turn)
    plan.cut(inside, part, np.where(part % 3 == 0, jewel, rim))
    plan.lead(inside, to_part * distance, thin)

    belt = distance < 0.86 * size
    half, to_half = sectors(angle, rose.petals * 2, rose.turn)
    plan.cut(belt, half, np.where(half % 2 == 0, petal, ground))
    plan.lead(belt, to_half * distance, thin)
    plan.lead(distance < 1.2 * size, np.abs(distance - size), thick)
    plan.lead(inside, np.abs(distance - 0.86 * size), thin * 1.2)
    cut_jewels(plan, rose, 0.735 * size, thin)

    field = distance < 0.62 * size
    tip, to_tip = sectors(angle, rose.petals, rose.turn)
    plan.cut(field, tip, ground)
    plan.lead(field, to_tip * distance, thin)
    plan.lead(belt, np.abs(distance - 0.62 * size), thick * 0.8)
    cut_petals(plan, rose, thick * 0.7)


def cut_jewels(plan: GlassPlan, rose: Rose, orbit: float, half_width: float) -> None:
    """Sets a ring of round jewels into a rose."""
    count = rose.petals * 2
    size = min(0.085 * rose.radius, 0.36 * 2 * np.pi * orbit / count)
    for number in range(count):
        turn = 2 * np.pi * ((number + 0.5) / count - rose.turn)
        x, y = rose.x + orbit * np.cos(turn), rose.y + orbit * np.sin(turn)
        distance, _ = plan.polar(x, y)
        family = rose.families[1] if number % 2 else rose.families[3]
        plan.cut(distance < size, np.zeros_like(plan.pane), family)
        plan.lead(distance < size + 6, np.abs(distance - size), half_width)


def cut_petals(plan: GlassPlan, rose: Rose, half_width: float) -> None:
    """Cuts two whorls of petals and the heart of a rose."""
    petal, jewel, _, rim = rose.families
    distance, angle = plan.polar(rose.x, rose.y)
    for reach, family, shift in ((0.56, petal, 0.5), (0.34, jewel, 0.0)):
        turn = rose.turn + shift / rose.petals
        part, to_part = sectors(angle, rose.petals, turn)
        arch = np.sin(np.clip(to_part * rose.petals / 2, 0, np.pi / 2))
        edge = reach * rose.radius * (0.52 + 0.48 * arch**0.6)
        inside = distance < edge
        plan.cut(inside, part, family)
        plan.lead(inside, to_part * distance, half_width)
        plan.lead(distance < edge + 6, np.abs(distance - edge) * 0.85, half_width)
    heart = 0.13 * rose.radius
    plan.cut(distance < heart, np.zeros_like(plan.pane), rim)
    plan.lead(distance < heart + 6, np.abs(distance - heart), half_width)


def pane_frame(plan: GlassPlan, rng: Generator) -> tuple[Array, Array]:
    """Returns each pixel's place along and across its own pane's random direction, in units."""
    count = int(plan.pane.max()) + 1
    flat = plan.pane.ravel()
    area = np.maximum(np.bincount(flat, minlength=count), 1)
    middle_x = np.bincount(flat, plan.x.ravel(), count) / area
    middle_y = np.bincount(flat, plan.y.ravel(), count) / area
    turn = rng.uniform(0, 2 * np.pi, count)[plan.pane]
    dx, dy = plan.x - middle_x[plan.pane], plan.y - middle_y[plan.pane]
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = dy * np.cos(turn) - dx * np.sin(turn)
    return along.astype(np.float32), across.astype(np.float32)


def sampled(field: Array, canvas: Canvas, x: Array, y: Array) -> Array:
    """Returns a field at other coordinates, in units, mirrored at its borders."""
    last = canvas.side - 1
    columns, rows = (
        np.abs((np.round(axis * canvas.unit).astype(np.intp) + last) % (2 * last) - last) for axis in (x, y)
    )
    return np.asarray(field[rows, columns])


def glass_colour(plan: GlassPlan, rng: Generator) -> Array:
    """Returns the light that falls through the panes: streaks, gradients, ripples and seeds."""
    count = int(plan.pane.max()) + 1
    families = np.stack([hex_colours(*codes) for codes in GLASS_FAMILIES])
    choice = rng.integers(0, families.shape[1], (2, count))[:, plan.pane]
    first, second = families[plan.family, choice[0]], families[plan.family, choice[1]]
    along, across = pane_frame(plan, rng)
    shift = rng.uniform(0, 512, (2, count))
    x, y = along + shift[0][plan.pane], across + shift[1][plan.pane]
    streak = sampled(smooth_noise(rng, plan.canvas, 9, 3, stretch=7), plan.canvas, x, y)
    ripple = sampled(smooth_noise(rng, plan.canvas, 8, 2), plan.canvas, x, y)
    colour = lerp(first, second, smoothstep(-0.8, 1.2, streak))
    size = np.sqrt(np.bincount(plan.pane.ravel(), minlength=count)) / plan.canvas.unit + 6
    slope = along / size[plan.pane]
    brightness = rng.uniform(0.86, 1.22, count)[plan.pane]
    hammered = (rng.random(count) < 0.6)[plan.pane]
    brightness = brightness * (1 + 0.75 * np.tanh(slope)) + 0.13 * streak
    brightness += np.where(hammered, 0.26, 0.07) * slope_light(ripple, 2.0)
    # Thick glass absorbs more of what it absorbs at all: darker is also deeper in colour.
    brightness = np.clip(brightness, 0.3, 3)[..., None]
    lit = np.maximum(colour, 0.02) ** (1 / brightness) * np.sqrt(np.minimum(brightness, 1.2))
    white = smoothstep(1.3, 2.3, brightness[..., 0].astype(np.float32)) * 0.7
    return lerp(lit.astype(np.float32), hex_colours("fff6dc")[0], white)


def draw_stained_glass(canvas: Canvas) -> Array:
    """Builds a window of roses among curved rays, held by dark lead."""
    rng = np.random.default_rng(1220)
    plan = GlassPlan(canvas)
    cut_rays(plan, rng, ROSES[0])
    for rose in ROSES:
        cut_rose(plan, rose)
    uneven = 0.45 * smooth_noise(rng, canvas, 22)
    gap = plan.gap + uneven * np.clip(1 - plan.gap / 5, 0, 1)
    # Old glass is stained dark where it meets the lead.
    patina = 0.5 + 0.5 * smoothstep(-0.5, 4, gap + 0.8 * smooth_noise(rng, canvas, 9))
    glass = glass_colour(plan, rng) * patina[..., None]
    glass = glass + 0.22 * blurred(np.clip(glass - 0.35, 0, 1), 7 * canvas.unit)
    bead = np.sqrt(np.clip(-gap, 0, 3)).astype(np.float32) * canvas.unit
    light = slope_light(blurred(bead, 0.5 * canvas.unit), 1.6)
    grain = 0.012 * smooth_noise(rng, canvas, 3, 2)
    lead = hex_colours("14121a")[0] + (0.30 * np.clip(light, 0, 1) + grain)[..., None]
    cover = smoothstep(0.5, -0.5, gap)
    return lerp(glass.astype(np.float32), lead.astype(np.float32), cover)


# --- Woodcut --------------------------------------------------------------------------------------

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


def solid(depth: Array) -> Array:
    """Returns the antialiased area where ``depth`` is positive."""
    return smoothstep(-0.5, 0.5, depth)


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


# --- Mosaic tiles ---------------------------------------------------------------------------------

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


# --- Command line ---------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[Canvas], Array]] = {
    "swirling_strokes": draw_swirling_strokes,
    "stained_glass": draw_stained_glass,
    "woodcut": draw_woodcut,
    "mosaic_tiles": draw_mosaic_tiles,
}


def encoded(picture: Image.Image) -> bytes:
    """Returns the picture as the best JPEG that stays below the size limit."""
    for quality in range(MAX_QUALITY, MIN_QUALITY, -1):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description="Draw the style pictures of the project.")
    parser.add_argument("styles", nargs="*", metavar="STYLE", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, help="side in pixels")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.styles) - set(PICTURES))
    if unknown:
        parser.error(f"unknown style: {', '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the named pictures, or all of them, and prints what was written."""
    options = parse_arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    canvas = Canvas.for_picture(options.size)
    for style in options.styles or PICTURES:
        path = options.output / f"{style}.jpg"
        data = encoded(finished(PICTURES[style](canvas), canvas))
        path.write_bytes(data)
        print(f"{path}: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
