"""Rasters: frames of pixels in rows, in memory or on the disk, and the metadata of their file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stylize.pictures.picture import Picture
from stylize.system.row_store import RowStore


@dataclass(frozen=True)
class Header:
    """What the beginning of an image file says.

    Attributes:
        size: Width and height in px of a frame, upright.
        frames: Number of frames; more than 1 for an animation.
        bits: Bits per channel, 8 or 16.
        has_alpha: Whether there is transparency.
    """

    size: tuple[int, int]
    frames: int = 1
    bits: int = 8
    has_alpha: bool = False

    def bytes_of(self, size: tuple[int, int]) -> int:
        """Return the bytes of the raster with all frames at this width and height."""
        return size[0] * size[1] * self.frames * (3 + self.has_alpha) * self.bits // 8


@dataclass(frozen=True)
class Metadata:
    """What an image file holds beside its pixels, and what the stylized file keeps of it.

    Attributes:
        bits: Bits per channel, 8 or 16.
        exif: EXIF block without prefix and thumbnail, for an upright picture.
        xmp: XMP packet.
        iptc: IPTC block.
        dpi: Horizontal and vertical resolution; None if the file has none.
        profile: ICC profile of RGB colours in which files are written; None for sRGB without a profile.
        delays_ms: Duration of each frame; empty for a still picture.
        loops: Number of times an animation is shown; 0 for endlessly.
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
    """Frames of pixels, in memory or on the disk, and their metadata.

    Attributes:
        rows: `(frames · H, W, C)`, uint8 or uint16: RGB or RGBA, upright, sRGB, not premultiplied.
        frames: Number of frames, which lie one below the other.
        metadata: What belongs to the pixels.
    """

    rows: RowStore
    frames: int = 1
    metadata: Metadata = Metadata()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px of a frame."""
        return self.rows.shape[1], self.rows.shape[0] // self.frames

    @property
    def bits(self) -> int:
        """Bits per channel, 8 or 16."""
        return 8 * self.rows.dtype.itemsize

    @property
    def has_alpha(self) -> bool:
        """Whether there is a fourth channel."""
        return self.rows.shape[2] == 4

    def picture(self, frame: int = 0) -> Picture:
        """Return a frame as float32 tensors."""
        height = self.size[1]
        values = self.rows.read(frame * height, (frame + 1) * height).permute(2, 0, 1)
        levels = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(2**self.bits - 1)
        return Picture(levels[:3], levels[3:] if self.has_alpha else None)

    def close(self) -> None:
        """Free the memory, or the disk."""
        self.rows.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def raster_of(pictures: Sequence[Picture], metadata: Metadata) -> Raster:
    """Return frames of one size as a raster in memory, rounded to the nearest level of the metadata's bits."""
    width, height = pictures[0].size
    channels = 3 + any(picture.alpha is not None for picture in pictures)
    dtype, white = (torch.uint16, 65535) if metadata.bits == 16 else (torch.uint8, 255)
    rows = RowStore((len(pictures) * height, width, channels), dtype)
    for i, picture in enumerate(pictures):
        alpha = [] if channels == 3 else [torch.ones(1, height, width) if picture.alpha is None else picture.alpha]
        levels = torch.cat([picture.rgb.cpu().float(), *(a.cpu().float() for a in alpha)])
        rows.write(i * height, levels.clamp(0, 1).mul_(white).round_().permute(1, 2, 0).to(dtype))
    return Raster(rows, len(pictures), metadata)
