"""Thick brush strokes that follow the whirls of a night sky over fields."""

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
