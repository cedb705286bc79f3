"""The drawing area, and tools that all pictures share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.intp]
Generator = np.random.Generator

SUPERSAMPLING = 2


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


def solid(depth: Array) -> Array:
    """Returns the antialiased area where ``depth`` is positive."""
    return smoothstep(-0.5, 0.5, depth)


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
