"""Subjects of an evaluation: a model, or pictures that any program has stylized, and their photographs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from stylize.errors import StylizeError
from stylize.evaluation.evaluate import Painter, Photograph
from stylize.generators import Generator
from stylize.inference.stylizer import Stylizer
from stylize.losses.perceptual import least_side_px
from stylize.losses.terms import LossConfig
from stylize.models.file import ModelCard, load_model
from stylize.models.find import MODEL_NAME, find_model
from stylize.optimization.gatys import LEAST_LEVEL_PX
from stylize.pictures.find import find_images
from stylize.pictures.formats import listed_suffixes
from stylize.pictures.picture import Picture, limited_size, to_tensor
from stylize.pictures.reading import open_picture, read_header
from stylize.system.compute import Compute

logger = logging.getLogger("stylize")

SHAPE_TOLERANCE = 0.05  # programs round sizes to multiples that their networks support
SHOWN_NAMES = 5


class Subject(NamedTuple):
    """A model or pictures to evaluate.

    Attributes:
        name: Path of the model file, or of the folder of pictures.
        card: Card of the model; None for pictures.
        painter: Painter of the model; None for pictures.
        pictures: Paths of the pictures by stem; None for a model.
    """

    name: str
    card: ModelCard | None = None
    painter: Painter | None = None
    pictures: Mapping[str, Path] | None = None


class Pair(NamedTuple):
    """A photograph, and its stylized picture if pictures are evaluated."""

    photograph: Path
    picture: Path | None = None


def read_subject(model: str, device: torch.device) -> Subject:
    """Load the subject of an evaluation.

    Args:
        model: A model file, run folder, built-in style, or a folder of pictures.
        device: Where the model computes.

    Raises:
        StylizeError: `model` is none of these, or cannot be read.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / MODEL_NAME).is_file():
        pictures = find_images(folder, recursive=False)
        if not pictures:
            raise StylizeError(
                f"MODEL: {folder} holds neither {MODEL_NAME} nor pictures, must be a run folder or one of pictures"
            )
        return Subject(model, pictures=_by_stem(pictures))
    found = find_model(model, place="MODEL")
    generator, card = load_model(found.path, found.style)
    logger.info("model: %s, style %s, %s", found.path, card.style, found.reason)
    return Subject(str(found.path), card, painter_of(generator, device))


def painter_of(generator: Generator, device: torch.device) -> Painter:
    """Return a painter that works like `stylize apply`, in float32 on every device."""
    stylizer = Stylizer(generator, Compute(device))
    return lambda photograph: stylizer(Picture(photograph[0])).rgb[None].to(photograph)


def find_pairs(content: Path, pictures: Mapping[str, Path] | None, count: int) -> list[Pair]:
    """Return the first photographs by name with their pictures, without those that have no picture.

    Args:
        content: The folder of photographs.
        pictures: Paths of the pictures by stem; None for a model.
        count: Maximum number of pairs.

    Raises:
        StylizeError: There is no photograph, or none with a picture.
    """
    if not content.is_dir():
        raise StylizeError(f"--content: {content} must be a folder of photographs that exists")
    files = find_images(content, recursive=False)
    if not files:
        raise StylizeError(f"--content: {content} holds no image files ({listed_suffixes()})")
    pairs = [Pair(file) for file in files] if pictures is None else _paired(content, files, pictures)
    if len(pairs) > count:
        logger.info("of %d photographs the first %d by name; --photographs takes more", len(pairs), count)
    return pairs[:count]


def _paired(content: Path, files: Sequence[Path], pictures: Mapping[str, Path]) -> list[Pair]:
    photographs = _by_stem(files)
    pairs = [Pair(file, pictures[stem]) for stem, file in photographs.items() if stem in pictures]
    if not pairs:
        raise StylizeError(
            f"MODEL: got no picture named as one of the photographs in {content}, such as {files[0].stem}.png"
        )
    alone = [file.name for stem, file in photographs.items() if stem not in pictures]
    if alone:
        more = f" and {len(alone) - SHOWN_NAMES} more" if len(alone) > SHOWN_NAMES else ""
        logger.warning("left out, for there is no picture of them: %s%s", ", ".join(alone[:SHOWN_NAMES]), more)
    return pairs


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise StylizeError(
                f"{file}: {found[file.stem].name} has the same stem, by which pictures and photographs are paired; "
                "take one away"
            )
        found[file.stem] = file
    return found


def check_sizes(pairs: Sequence[Pair], size_px: int, loss: LossConfig, iterations: int) -> None:
    """Check in the files' headers that all are large enough, and that pictures have the shape of their photographs.

    Args:
        pairs: The files.
        size_px: The longer side that photographs are resized to.
        loss: Config of the loss; its layers determine the smallest size.
        iterations: Number of iterations of the reference; 0 for none.

    Raises:
        StylizeError: A file is too small, or of another shape.
    """
    least = max(least_side_px(loss), LEAST_LEVEL_PX if iterations else 0)
    resized = 0
    for pair in pairs:
        width, height = _size(pair.photograph, size_px)
        if min(width, height) < least:
            raise StylizeError(
                f"{pair.photograph}: got {width}×{height} px at --size {size_px}, must be at least {least} px in each "
                "direction; --size takes more of a larger file"
            )
        resized += pair.picture is not None and not _has_size(pair.picture, (width, height), size_px)
    if resized:
        logger.info("%d of %d pictures are resized by a few px to the size of their photographs", resized, len(pairs))


def _has_size(picture: Path, photograph_size: tuple[int, int], size_px: int) -> bool:
    size = _size(picture, size_px)
    deviation = max(abs(side / wanted - 1) for side, wanted in zip(size, photograph_size, strict=True))
    if deviation > SHAPE_TOLERANCE:
        raise StylizeError(
            f"{picture}: got {size[0]}×{size[1]} px at --size {size_px}, must be within {SHAPE_TOLERANCE:.0%} of its "
            f"photograph's {photograph_size[0]}×{photograph_size[1]}; stylize the whole photograph, or lower --size"
        )
    return size == photograph_size


def _size(path: Path, size_px: int) -> tuple[int, int]:
    return limited_size(read_header(path).size, size_px)


def read_photographs(pairs: Sequence[Pair], size_px: int, device: torch.device) -> Iterator[Photograph]:
    """Read the pairs one after the other, with a progress bar; files that cannot be decoded are skipped."""
    with tqdm(pairs, unit="photograph", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for pair in bar:
            try:
                image = _read(pair.photograph, size_px).to(device)
                stylized = None if pair.picture is None else _fitted(_read(pair.picture, size_px).to(device), image)
            except StylizeError as error:  # the others may have taken hours so far
                logger.warning("skipped: %s", error)
                continue
            yield Photograph(pair.photograph.name, image, stylized)


def _read(path: Path, size_px: int) -> Tensor:
    with open_picture(path) as picture:
        return to_tensor(picture.read_rgb(limited_size(picture.header.size, size_px)))


def _fitted(picture: Tensor, photograph: Tensor) -> Tensor:
    if picture.shape == photograph.shape:
        return picture
    size = photograph.shape[-2:]
    resized = F.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)
