"""The perceptual loss of a picture in tiles: the same numbers and gradients, in the memory of one tile.

A Gram matrix is a sum over places, so that of a picture is the sum of those of its tiles. Once it is known, so is the
loss's gradient with respect to it, and each tile's gradient can be computed by itself. A tile overlaps its neighbours
by what its features see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from stylize.losses.perceptual import PerceptualLoss, with_known_gradient
from stylize.losses.terms import TOTAL, Batch, ContentTerm, StyleTerm, TotalVariationTerm
from stylize.losses.vgg import LAYERS, tap_depth
from stylize.ops import gram_matrix

TILE_PX = 512


class Tile(NamedTuple):
    """A part of a picture, and that part with what its features see.

    Attributes:
        rows: First row, and that behind the last.
        columns: Likewise.
        seen_rows: The rows with what is seen beside them.
        seen_columns: Likewise.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    seen_rows: tuple[int, int]
    seen_columns: tuple[int, int]

    def seen(self, picture: Tensor) -> Tensor:
        """Return the part of a picture `(…, H, W)` that is seen."""
        (top, bottom), (left, right) = self.seen_rows, self.seen_columns
        return picture[..., top:bottom, left:right]

    def inside(self, maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
        """Return the tile's own part of maps that were computed of what it sees.

        Args:
            maps: `(1, C, h, w)`.
            size: Height and width of the picture.
            stride: Pixels between two places of the maps.
        """
        parts = []
        for (first, last), (seen_first, _), length in zip(
            (self.rows, self.columns), (self.seen_rows, self.seen_columns), size, strict=True
        ):
            end = length // stride if last == length else last // stride
            parts.append(slice((first - seen_first) // stride, end - seen_first // stride))
        return maps[:, :, parts[0], parts[1]]


def tiles_of(height: int, width: int, tile_px: int, seen_px: int) -> list[Tile]:
    """Return tiles that cover a picture; each begins at a multiple of `seen_px`, and so at one of every stride."""
    step = max(seen_px, tile_px // seen_px * seen_px)
    spans = [
        [
            ((first, min(length, first + step)), (max(0, first - seen_px), min(length, first + step + seen_px)))
            for first in range(0, length, step)
        ]
        for length in (height, width)
    ]
    return [
        Tile(rows, columns, seen_rows, seen_columns)
        for rows, seen_rows in spans[0]
        for columns, seen_columns in spans[1]
    ]


def sight_px(tap: str) -> int:
    """Return how far a place of a layer sees beside itself, rounded up to a multiple of its stride.

    >>> sight_px("relu1_1"), sight_px("relu3_1"), sight_px("relu4_1")
    (1, 16, 40)
    """
    sight, stride = 0, 1
    for layer in LAYERS[: tap_depth([tap])]:
        if layer.pool_before:
            sight += stride
            stride *= 2
        sight += stride
    return -(-sight // stride) * stride


def tiled_towards(
    loss: PerceptualLoss, content: Tensor, tile_px: int = TILE_PX
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return the loss of one picture as a function of its pixels, as `PerceptualLoss.towards` does.

    Args:
        loss: The loss, of one style.
        content: The photograph, `(1, 3, H, W)` in [0, 1].
        tile_px: About the side of a tile.
    """
    height, width = content.shape[-2:]
    if max(height, width) <= tile_px:
        return loss.towards(content)
    return _TiledLoss(loss, content, tile_px)


class _TiledLoss:
    """The loss of one picture in tiles; see `tiled_towards`."""

    def __init__(self, loss: PerceptualLoss, content: Tensor, tile_px: int) -> None:
        self.loss = loss
        self.content = content
        self.size = (content.shape[-2], content.shape[-1])
        self.taps = loss.config.taps()
        self.strides = {tap: 1 << (int(tap[4]) - 1) for tap in self.taps}
        self.seen_px = max(max(sight_px(tap) for tap in self.taps), max(self.strides.values()))
        self.tiles = tiles_of(*self.size, tile_px, self.seen_px)
        self.style = cast(StyleTerm, loss.terms["style"])
        self.contents = cast(ContentTerm, loss.terms["content"])
        self.variation = cast(TotalVariationTerm, loss.terms["tv"])
        self.counts = {tap: (self.size[0] // s) * (self.size[1] // s) for tap, s in self.strides.items()}
        with torch.no_grad():
            self.content_energy = self._content_energy()

    def __call__(self, picture: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            grams, errors = self._sums(picture.detach())
        grams = {tap: gram.requires_grad_() for tap, gram in grams.items()}
        errors = {tap: error.requires_grad_() for tap, error in errors.items()}
        leaf = picture.detach().requires_grad_()
        with torch.enable_grad():
            values = self._values(grams, errors, leaf)
            inputs = [*grams.values(), *errors.values(), leaf]
            found = torch.autograd.grad(values[TOTAL], inputs, allow_unused=True)
        of_grams = dict(zip(grams, found, strict=False))
        of_errors = dict(zip(errors, found[len(grams) :], strict=False))
        gradient = torch.zeros_like(picture) if found[-1] is None else found[-1].clone()
        for tile in self.tiles:
            self._add_gradient(gradient, picture.detach(), tile, of_grams, of_errors)
        terms = {name: value.detach() for name, value in values.items()}
        return terms | {TOTAL: with_known_gradient(terms[TOTAL], picture, gradient)}

    def _values(self, grams: Mapping[str, Tensor], errors: Mapping[str, Tensor], picture: Tensor) -> dict[str, Tensor]:
        batch = Batch(picture, self.content, {}, {})
        style = self.style.of_grams(grams, batch)
        by_layer = {tap: error / self.content_energy[tap] for tap, error in errors.items()}
        content = self.contents.over_layers(by_layer)
        variation = self.variation(batch)
        weight_of = self.loss.config.weight_of
        return {
            **{f"style/{tap}": value for tap, value in style.by_layer.items()},
            **{f"content/{tap}": value for tap, value in by_layer.items()},
            "style": style.value,
            "content": content,
            "tv": variation.value,
            TOTAL: weight_of("style") * style.in_total
            + weight_of("content") * content
            + weight_of("tv") * variation.in_total,
        }

    def _features(self, seen: Tensor, tile: Tile, taps: tuple[str, ...]) -> dict[str, Tensor]:
        """The features of a tile, from what it sees of a picture."""
        maps = self.loss.vgg(seen, taps)
        return {tap: tile.inside(found, self.size, self.strides[tap]) for tap, found in maps.items()}

    def _content_energy(self) -> dict[str, Tensor]:
        """What the error of a content layer is divided by."""
        layers = tuple(self.contents.layers)
        sums = {tap: torch.zeros((), device=self.content.device) for tap in layers}
        if self.loss.config.scale == "raw":
            return {tap: torch.ones_like(total) for tap, total in sums.items()}
        channels = {}
        for tile in self.tiles:
            for tap, features in self._features(tile.seen(self.content), tile, layers).items():
                sums[tap] += features.float().square().sum()
                channels[tap] = features.shape[1]
        batch = Batch(self.content, self.content, {}, {})
        energies = {tap: total / (channels[tap] * self.counts[tap]) for tap, total in sums.items()}
        return {tap: (e + self.contents.energy_of_style(tap, batch)).clamp_min(1e-12) for tap, e in energies.items()}

    def _sums(self, picture: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The Gram matrices `(1, C, C)`, and the mean squared differences from the photograph's features."""
        grams: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        for tile in self.tiles:
            for (kind, tap), value in self._of_tile(tile.seen(picture), tile):
                into = grams if kind == "gram" else errors
                into[tap] = into[tap] + value if tap in into else value
        return grams, errors

    def _of_tile(self, seen: Tensor, tile: Tile) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """The share of a tile in the Gram matrices and errors of the picture."""
        features = self._features(seen, tile, self.taps)
        with torch.no_grad():
            targets = self._features(tile.seen(self.content), tile, tuple(self.contents.layers))
        for tap in self.style.layers:
            maps = features[tap]
            if not maps[0, 0].numel():  # what is left of a picture at its edge is less than a place of this layer
                continue
            yield ("gram", tap), gram_matrix(maps) * (maps.shape[2] * maps.shape[3] / self.counts[tap])
        for tap in self.contents.layers:
            difference = (features[tap].float() - targets[tap].float()).square().sum()
            yield ("error", tap), difference / (features[tap].shape[1] * self.counts[tap])

    def _add_gradient(
        self,
        gradient: Tensor,
        picture: Tensor,
        tile: Tile,
        of_grams: Mapping[str, Tensor],
        of_errors: Mapping[str, Tensor],
    ) -> None:
        """Add what a tile's features contribute to the gradient of the pixels that they see."""
        leaf = tile.seen(picture).clone().requires_grad_()
        with torch.enable_grad():
            parts = [
                ((of_grams if kind == "gram" else of_errors)[tap] * value).sum()
                for (kind, tap), value in self._of_tile(leaf, tile)
            ]
            (found,) = torch.autograd.grad(torch.stack(parts).sum(), leaf)
        tile.seen(gradient).add_(found)
