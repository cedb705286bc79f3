"""The only door for pixels: files in any common format ↔ RGB float32 `(3, H, W)` in [0, 1].

EXIF orientation is applied, alpha is kept apart, colour profiles become sRGB, 16-bit grays are scaled.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from stylize.errors import StylizeError
from stylize.system.files import write_atomically

logger = logging.getLogger("stylize")

WRITABLE = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".avif": "AVIF",
}
READABLE = frozenset(WRITABLE)
WITH_ALPHA = frozenset(("PNG", "WEBP", "TIFF", "AVIF"))
LOSSY = frozenset(("JPEG", "WEBP", "AVIF"))
SIXTEEN_BIT = frozenset(("I;16", "I;16B", "I;16L", "I"))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Picture:
    """An image and what belongs to it.

    Attributes:
        rgb: `(3, H, W)`, float32 in [0, 1].
        alpha: `(1, H, W)`, float32 in [0, 1], or None where the file has no transparency.
    """

    rgb: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.rgb.shape[-1], self.rgb.shape[-2]


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Every file below `folder` with the suffix of an image, sorted; hidden ones are passed over."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if recursive and not f.startswith("."))
        found += [
            Path(parent, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in READABLE
        ]
    return sorted(found)


def read_picture(path: Path) -> Picture:
    """Read an image file at its full size.

    Raises:
        StylizeError: The file is missing, no image, or damaged.
    """
    image = _open(path)
    alpha = alpha_of(image)
    return Picture(to_tensor(to_rgb(image, path)), None if alpha is None else to_tensor(alpha))


def read_rgb(path: Path, shorter_side_px: int | None = None) -> Image.Image:
    """Read an image file as 8-bit RGB, transparency laid on white, at no more than the resolution that is needed.

    Args:
        path: The file.
        shorter_side_px: Resize so that the shorter side has this many px; a JPEG is decoded at the smallest
            scale that is still larger.

    Raises:
        StylizeError: The file is missing, no image, or damaged.
    """
    image = _open(path, shorter_side_px)
    alpha = alpha_of(image)
    image = to_rgb(image, path)
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    if shorter_side_px is not None:
        image = resize(image, shorter_side_px / min(image.size))
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in px as displayed, from the file's header alone.

    Raises:
        StylizeError: The file is missing or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                width, height = image.size
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise StylizeError(f"{path}: {reason_of(error)}") from error
    return (height, width) if turned else (width, height)


def limited_size(size: tuple[int, int], max_size_px: int | None) -> tuple[int, int]:
    """Width and height of a picture whose longer side is not to exceed the limit.

    >>> limited_size((90, 60), 45), limited_size((30, 20), 45), limited_size((30, 20), None)
    ((45, 30), (30, 20), (30, 20))
    """
    if max_size_px is None or max(size) <= max_size_px:
        return size
    factor = max_size_px / max(size)
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


def resize(image: Image.Image, factor: float) -> Image.Image:
    """Scale an image, at least to 1 px; Lanczos filter, which is antialiased on the way down."""
    if factor == 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit image → float32 `(C, H, W)` in [0, 1]."""
    return to_bytes(image).float().div_(255)


def to_bytes(image: Image.Image) -> Tensor:
    """8-bit image → uint8 `(C, H, W)`."""
    array = np.array(image, dtype=np.uint8)
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1)


def to_image(tensor: Tensor) -> Image.Image:
    """Float `(3 or 1, H, W)` in [0, 1] → 8-bit image, rounded to the nearest level."""
    array = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def write_picture(path: Path, picture: Picture, *, quality: int = 95) -> None:
    """Write an image file in the format of its suffix; it appears whole or not at all.

    Args:
        path: Where to. Transparency is kept where the format has it.
        picture: What to write.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        StylizeError: Unknown suffix, or the place cannot be written to.
    """
    image_format = format_of(path)
    image = to_image(picture.rgb)
    if picture.alpha is not None and image_format in WITH_ALPHA:
        image.putalpha(to_image(picture.alpha))
    options = {"quality": quality} if image_format in LOSSY else {}
    if image_format == "JPEG":
        options["subsampling"] = 0  # painted colour edges are sharp
    encoded = io.BytesIO()
    try:
        image.save(encoded, image_format, **options)
    except (OSError, ValueError) as error:  # larger than the format allows
        raise StylizeError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error
    write_atomically(path, encoded.getvalue())


def format_of(path: Path) -> str:
    """The format in which a file of this name is written.

    Raises:
        StylizeError: No format has this suffix.

    >>> format_of(Path("a.JPG"))
    'JPEG'
    """
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise StylizeError(f"{path}: got the suffix '{suffix}', must be one of {', '.join(sorted(WRITABLE))}")
    return WRITABLE[suffix]


def contact_sheet(rows: Iterable[Iterable[Tensor]], gap_px: int = 4) -> Tensor:
    """Lay out images `(3, H, W)` in rows on white, each row as high as its highest image."""
    strips = [_row(list(row), gap_px) for row in rows]
    width = max(strip.shape[-1] for strip in strips)
    padded = [torch.nn.functional.pad(strip, (0, width - strip.shape[-1], 0, gap_px), value=1.0) for strip in strips]
    return torch.cat(padded, dim=1)[:, :-gap_px]


def _row(images: list[Tensor], gap_px: int) -> Tensor:
    height = max(image.shape[-2] for image in images)
    padded = [torch.nn.functional.pad(image, (0, gap_px, 0, height - image.shape[-2]), value=1.0) for image in images]
    return torch.cat(padded, dim=2)[:, :, :-gap_px]


def _open(path: Path, shorter_side_px: int | None = None) -> Image.Image:
    """Decode a file, turned as EXIF says; a JPEG no larger than the needed shorter side asks for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures, and damaged notes beside the pixels, are no trouble
            with Image.open(path) as image:
                if shorter_side_px is not None:
                    # a square, for the shorter side alone decides: the longer one, rounded up, would at times ask
                    # for twice the scale
                    image.draft("RGB", (shorter_side_px, shorter_side_px))
                image.load()
                turned = ImageOps.exif_transpose(image)
                return turned if turned is not image else image.copy()
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise StylizeError(f"{path}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, must be an image file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return f"cannot be read as an image ({error or type(error).__name__})".replace("\n", " ")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The opacity as an 8-bit image, or None where there is none."""
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A")
    if "transparency" not in image.info:
        return None
    if image.mode in SIXTEEN_BIT:
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Any mode → 8-bit RGB in sRGB, without the alpha."""
    if image.mode in SIXTEEN_BIT:
        return Image.fromarray(_to_8_bit(np.asarray(image), 65535)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        return Image.fromarray(_to_8_bit(values, 1 if values.max() <= 1 else 255)).convert("RGB")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGBA", "P", "PA", "LA"):
        image.info.pop("transparency", None)
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        return _to_srgb(image, profile, path)
    return image.convert("RGB")


def _to_8_bit(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    levels: NDArray[Any] = np.clip(np.nan_to_num(values) * (255.0 / white) + 0.5, 0, 255)
    return levels.astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes, path: Path) -> Image.Image:
    try:
        transform = transform_to_srgb(profile, image.mode)
        converted = image if transform is None else transform.apply(image)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        logger.warning("%s: its colour profile cannot be used (%s); taken as sRGB", path, error)
        return image.convert("RGB")
    return converted


@lru_cache(maxsize=8)  # most photographs of a camera have the same; building a transform takes longer than applying it
def transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a colour profile to sRGB; None where it is that already.

    Raises:
        ImageCms.PyCMSError: It is no profile, or none of images of this mode.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
        return None
    return ImageCms.buildTransform(source, SRGB, mode, "RGB")
