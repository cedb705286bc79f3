"""ICC profiles: from the colours of a file to sRGB, and back.

Little CMS converts in all of these functions, with the same intent: through libvips where pixels come in strips, and
through Pillow where the whole picture is in memory. Pillow keeps a transform for the next photograph; libvips builds
one for each, which takes 2.5 ms beside the 2 ms of decoding a photograph of 481×321 px.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyvips
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from stylize.pictures.vips import Vips, color_bands
from stylize.system.row_store import RowStore

logger = logging.getLogger("stylize")

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
INTENT = "perceptual"  # Pillow's default, too
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # Pillow's, by number of channels
LATTICE_STEPS = 9
SRGB_LIKE = frozenset(("srgb", "rgb", "rgb16", "b-w", "grey16", "multiband"))
UNUSABLE = (ImageCms.PyCMSError, OSError, TypeError, ValueError)


@lru_cache(maxsize=8)  # most photographs of a camera have the same
def transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if it changes no colour, whatever the profile is called.

    Raises:
        ImageCms.PyCMSError: It is no profile, or none for images of this mode.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
    if mode == "RGB" and _changes_nothing(transform):
        return None
    return transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a lattice of colours and all grays keep their levels, give or take one."""
    steps = np.linspace(0, 255, LATTICE_STEPS).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    colours = np.concatenate([lattice, np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)])[None]
    converted = np.asarray(transform.apply(Image.fromarray(colours)), np.int16)
    return int(np.abs(converted - colours).max()) <= 1


def usable_profile(profile: bytes | None, channels: int, path: Path) -> bytes | None:
    """Return a file's profile, or None if the file has none or it cannot be used, which is logged.

    Args:
        profile: What the file holds.
        channels: Number of channels without the alpha.
        path: The file, for the log.
    """
    if profile is None or channels not in MODES:
        return None
    try:
        transform_to_srgb(profile, MODES[channels])
    except UNUSABLE as error:
        logger.warning("%s: its colour profile cannot be used (%s); taken as sRGB", path, error)
        return None
    return profile


def is_output_profile(profile: bytes) -> bool:
    """Return whether RGB colours can be converted to this profile."""
    try:
        ImageCms.buildTransform(SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)), "RGB", "RGB")
    except UNUSABLE:
        return False
    return True


def pixels_to_srgb(pixels: NDArray[np.uint8], profile: bytes | None) -> NDArray[np.uint8]:
    """Convert gray or RGB pixels `(H, W, 1 or 3)`, in the colours of a usable profile, to sRGB `(H, W, 3)`."""
    channels = pixels.shape[2]
    transform = None if profile is None else transform_to_srgb(profile, MODES[channels])
    if transform is None:
        return pixels if channels == 3 else pixels.repeat(3, axis=2)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    return np.asarray(transform.apply(image))


def without_profile_to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode of Pillow to RGB, by the profiles that a file without one is given."""
    if image.mode == "CMYK":
        inks = pyvips.Image.new_from_array(np.asarray(image)).copy(interpretation="cmyk")
        return Image.fromarray(to_srgb(inks, None).numpy())
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        converted = ImageCms.buildTransform(lab, SRGB, "LAB", "RGB").apply(image)
        assert converted is not None
        return converted
    return image.convert("RGB")


def to_srgb(image: Vips, profile: bytes | None) -> Vips:
    """Convert an image of any colours, in those of a usable profile, to RGB or RGBA in sRGB with the same bits."""
    bits = 8 if image.format == "uchar" else 16
    if profile is not None and transform_to_srgb(profile, MODES[color_bands(image)]) is not None:
        image = image.icc_transform("srgb", intent=INTENT, depth=bits, embedded=True)
    elif image.interpretation == "cmyk":
        image = image.icc_transform("srgb", intent=INTENT, depth=bits, input_profile="cmyk", embedded=False)
    elif image.interpretation not in SRGB_LIKE:
        image = image.colourspace("srgb" if bits == 8 else "rgb16")
    image = as_rgb(image)
    return image if image.bands <= 4 else image.extract_band(0, n=4 if image.hasalpha() else 3)


def as_rgb(image: Vips) -> Vips:
    """Return a gray image, with or without alpha, with three equal channels; an image of colours as it is."""
    if color_bands(image) >= 3:
        return image
    bands = image.bandsplit()
    image = bands[0].bandjoin([bands[0], bands[0], *bands[1:2]])
    return image.copy(interpretation="srgb" if image.format == "uchar" else "rgb16")


@contextmanager
def in_profile(image: Vips, profile: bytes | None, bits: int) -> Iterator[Vips]:
    """Yield an sRGB image in the colours of a profile, with the profile attached; without one as it is."""
    if profile is None:
        yield image
        return
    if transform_to_srgb(profile, "RGB") is not None:
        with RowStore((len(profile),), torch.uint8, Path(tempfile.gettempdir()), direct=False) as file:
            file.write(0, torch.frombuffer(bytearray(profile), dtype=torch.uint8))  # libvips takes files only
            image = image.icc_transform(file.file_name, input_profile="srgb", embedded=False, intent=INTENT, depth=bits)
    yield with_profile(image, profile)


def with_profile(image: Vips, profile: bytes) -> Vips:
    """Return the image with a profile attached, its pixels as they are."""
    image = image.copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image
