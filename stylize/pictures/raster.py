"""Rasters: frames of pixels in rows, in memory or on the disk, and the metadata of their file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylize.pictures.picture import Picture
from stylize.pictures.texts import Text
from stylize.system.devices import CPU
from stylize.system.levels import levels_to_device, levels_to_host, pinned
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
        xmp_extension: What did not fit into a JPEG's first XMP packet.
        iptc: IPTC block.
        texts: Texts and comments, without the mark of painted files.
        left_out: What of the photograph's file could not be kept, each in some words.
        dpi: Horizontal and vertical resolution; None if the file has none.
        profile: ICC profile of RGB colours in which files are written; None for sRGB without a profile.
        delays_ms: Duration of each frame; empty for a still picture.
        loops: Number of times an animation is shown; 0 for endlessly.
    """

    bits: int = 8
    exif: bytes | None = None
    xmp: bytes | None = None
    xmp_extension: bytes | None = None
    iptc: bytes | None = None
    texts: tuple[Text, ...] = ()
    left_out: tuple[str, ...] = ()
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

    def picture(self, frame: int = 0, device: torch.device = CPU) -> Picture:
        """Return a frame as float32 tensors on a device, to which it is copied as it stands in the file."""
        height = self.size[1]
        rows = self.rows.read(frame * height, (frame + 1) * height)
        values = levels_to_device(rows, device).permute(2, 0, 1)
        levels = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(2**self.bits - 1)
        return Picture(levels[:3], levels[3:] if self.has_alpha else None)

    def ready_for(self, device: torch.device) -> Raster:
        """Return the raster in the memory from which the device copies fastest; this one is closed if it is another."""
        if not self.rows.in_memory:
            return self
        values = self.rows.read(0, self.rows.shape[0])
        ready = pinned(values, device)
        if ready is values:
            return self
        self.close()
        return Raster(RowStore.holding(ready), self.frames, self.metadata)

    def close(self) -> None:
        """Free the memory, or the disk."""
        self.rows.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def raster_of(pictures: Sequence[Picture], metadata: Metadata) -> Raster:
    """Return frames of one size as a raster in memory, rounded to the nearest level of the metadata's bits.

    Pictures on a device are rounded there.
    """
    width, height = pictures[0].size
    has_alpha = any(picture.alpha is not None for picture in pictures)
    dtype, white = (torch.uint16, 65535) if metadata.bits == 16 else (torch.uint8, 255)
    rows: RowStore | None = None
    for i, picture in enumerate(pictures):
        values = _with_alpha(picture) if has_alpha else picture.rgb.float()
        levels = levels_to_host(values.clamp(0, 1).mul_(white).round_().permute(1, 2, 0), dtype)
        if len(pictures) == 1 and levels.is_contiguous():
            return Raster(RowStore.holding(levels), 1, metadata)
        rows = rows or RowStore((len(pictures) * height, width, 3 + has_alpha), dtype)
        rows.write(i * height, levels)
    assert rows is not None
    return Raster(rows, len(pictures), metadata)


def _with_alpha(picture: Picture) -> Tensor:
    """`(4, H, W)`; a picture without transparency is opaque."""
    rgb = picture.rgb.float()
    alpha = torch.ones_like(rgb[:1]) if picture.alpha is None else picture.alpha.to(rgb)
    return torch.cat([rgb, alpha])
