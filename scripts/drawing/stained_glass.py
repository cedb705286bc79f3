"""Rose windows among curved rays of leaded glass in jewel colours."""

from __future__ import annotations

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
    slope_light,
    smooth_noise,
    smoothstep,
)
from numpy.typing import NDArray

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
