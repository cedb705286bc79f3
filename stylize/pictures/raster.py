"""Pixels in rows, and what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stylize.pictures.images import Picture
from stylize.system.row_store import RowStore


@dataclass(frozen=True)
class Header:
    """What the beginning of a file says.

    Attributes:
        size: Width and height in px of a frame, upright.
        frames: More than 1 for an animation.
        bits: 8 or 16 a channel.
        has_alpha: Whether there is transparency.
    """

    size: tuple[int, int]
    frames: int = 1
    bits: int = 8
    has_alpha: bool = False

    def bytes_of(self, size: tuple[int, int]) -> int:
        """Of the raster, all frames at this width and height."""
        return size[0] * size[1] * self.frames * (3 + self.has_alpha) * self.bits // 8


@dataclass(frozen=True)
class Notes:
    """What belongs to a picture beside its pixels, and outlasts their painting.

    Attributes:
        bits: 8 or 16 a channel.
        exif: EXIF block without prefix and thumbnail, for an upright picture.
        xmp: XMP packet.
        iptc: IPTC block.
        dpi: Horizontally and vertically; None where the file does not tell.
        profile: ICC profile, of RGB, in whose colours files are written; None for sRGB that is not spelled out.
        delays_ms: How long each frame is shown; empty for a still picture.
        loops: How often an animation is shown; 0 for endlessly.
    """

    bits: int = 8
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    profile: bytes | None = None
    delays_ms: tuple[int, ...] = ()
    loops: int = 0


@dataclass(frozen=True)
class Raster:
    """Frames of pixels, in memory or on the disk, and what belongs to them.

    Attributes:
        rows: `(frames · H, W, C)`, uint8 or uint16: RGB or RGBA, upright sRGB, the alpha not multiplied in.
        frames: Their number; they lie one below the other.
        notes: What belongs to them.
    """

    rows: RowStore
    frames: int = 1
    notes: Notes = Notes()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px of a frame."""
        return self.rows.shape[1], self.rows.shape[0] // self.frames

    @property
    def bits(self) -> int:
        """8 or 16 a channel."""
        return 8 * self.rows.dtype.itemsize

    @property
    def has_alpha(self) -> bool:
        """Whether there is a fourth channel."""
        return self.rows.shape[2] == 4

    def picture(self, frame: int = 0) -> Picture:
        """A frame as a whole, in float32."""
        height = self.size[1]
        values = self.rows.read(frame * height, (frame + 1) * height).permute(2, 0, 1)
        levels = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(2**self.bits - 1)
        return Picture(levels[:3], levels[3:] if self.has_alpha else None)

    def close(self) -> None:
        """Give the memory or the file back."""
        self.rows.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def raster_of(pictures: Sequence[Picture], notes: Notes) -> Raster:
    """Painted frames, all of one size, rounded to the nearest of the levels that the notes ask for; in memory."""
    width, height = pictures[0].size
    channels = 3 + any(picture.alpha is not None for picture in pictures)
    dtype, white = (torch.uint16, 65535) if notes.bits == 16 else (torch.uint8, 255)
    rows = RowStore((len(pictures) * height, width, channels), dtype)
    for i, picture in enumerate(pictures):
        alpha = [] if channels == 3 else [torch.ones(1, height, width) if picture.alpha is None else picture.alpha]
        levels = torch.cat([picture.rgb.cpu().float(), *(a.cpu().float() for a in alpha)])
        rows.write(i * height, levels.clamp(0, 1).mul_(white).round_().permute(1, 2, 0).to(dtype))
    return Raster(rows, len(pictures), notes)
