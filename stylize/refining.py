"""Refine what a network has painted: some iterations of L-BFGS on the pixels, against the loss of the model's style."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.losses.perceptual import PerceptualLoss, least_side_px
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import TAPS
from stylize.losses.vgg_weights import LoadedVGG, load_vgg
from stylize.models.blends import Blend
from stylize.models.file import ModelCard
from stylize.optimization.gatys import OptimizationConfig, optimize_from
from stylize.optimization.tiles import TILE_PX, tiled_towards
from stylize.pictures.picture import to_tensor

logger = logging.getLogger("stylize")

HISTORY = 20  # steps that L-BFGS remembers: each takes two pictures of memory
VECTORS = 2 * HISTORY + 12  # pictures in float32 that are in memory beside a tile
TILE_BYTES = 2 * 2**30  # of the features of a tile and their gradients, about


class Refiner:
    """Refines paintings of photographs.

    Args:
        loss: The loss of the style.
        iterations: Iterations of L-BFGS.
    """

    def __init__(self, loss: PerceptualLoss, iterations: int) -> None:
        self.loss = loss
        self.iterations = iterations
        self._tells = True

    def __call__(self, photographs: Tensor, painted: Tensor) -> Tensor:
        """Return refined paintings.

        Args:
            photographs: `(N, 3, H, W)` in [0, 1], on the device of the loss.
            painted: What a network has made of them, likewise.

        Raises:
            StylizeError: They are too small for the loss network.
        """
        least, (height, width) = least_side_px(self.loss.config), painted.shape[-2:]
        if min(height, width) < least:
            raise StylizeError(f"refine: got a picture of {width}×{height} px, must be at least {least} px")
        with torch.inference_mode(False):  # tensors made in it have no gradients
            return torch.cat(
                [self._refined(p[None].clone(), q[None].clone()) for p, q in zip(photographs, painted, strict=True)]
            )

    def _refined(self, photograph: Tensor, painting: Tensor) -> Tensor:
        measure = tiled_towards(self.loss, photograph)
        config = OptimizationConfig(history=HISTORY)
        start_s = began_s = time.monotonic()
        for iterate in optimize_from(measure, painting, self.iterations, config):
            if iterate.iteration == 0:
                first = iterate.terms
            elif iterate.iteration == 1:
                began_s = time.monotonic()
            elif iterate.iteration == 2 and self._tells:
                seconds = (time.monotonic() - began_s) * self.iterations
                logger.info("refine: %d iterations, about %.0f s a picture of this size", self.iterations, seconds)
        self._tells = False
        logger.debug(
            "refined in %.1f s: total %.4f to %.4f, style %.4f to %.4f",
            time.monotonic() - start_s, first["total"], iterate.terms["total"], first["style"], iterate.terms["style"],
        )  # fmt: skip
        return iterate.picture

    def bytes_for(self, size: tuple[int, int]) -> int:
        """Return about how much memory it takes beside the network's, for a picture of this width and height."""
        pixels = size[0] * size[1]
        return VECTORS * 3 * 4 * pixels + min(TILE_BYTES, TILE_BYTES * pixels // TILE_PX**2)


def refiner_of(card: ModelCard, blend: Blend, iterations: int, vgg: str, device: torch.device) -> Refiner:
    """Build the refiner of a model's style, or of a blend of its styles.

    Args:
        card: The model's card, with its style pictures.
        blend: The style.
        iterations: Iterations of L-BFGS.
        vgg: The loss network: as `loss.vgg` of a config. Layers that it does not reach are left out.
        device: Where to compute.

    Raises:
        StylizeError: The model has no picture of the style, or the weights are not available.
    """
    images, weights = _pictures(card, blend)
    loaded, config = _loaded(LossConfig.model_validate(_plain_loss(card.config)), vgg)
    loss = PerceptualLoss(loaded.vgg, config, images, weights)
    logger.info("refine: against %s at %s", loaded.weights, ", ".join(config.taps()))
    return Refiner(loss.to(device), iterations)


def _pictures(card: ModelCard, blend: Blend) -> tuple[list[Tensor], list[float]]:
    """The pictures of a blend, and their weights."""
    images, weights = [], []
    for place, (name, share) in enumerate(zip(card.all_styles, blend.shares, strict=True)):
        if not share:
            continue
        pictures = card.style_pictures[place] if place < len(card.style_pictures) else ()
        if not pictures:
            raise StylizeError(
                f"refine: this model file has no picture of its style '{name}', must be one that this version wrote; "
                "train it again, or take `stylize optimize`"
            )
        total = sum(picture.weight for picture in pictures)
        images += [to_tensor(picture.rgb()) for picture in pictures]
        weights += [share * picture.weight / total for picture in pictures]
    return images, weights


def _plain_loss(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The loss that a model was trained with, but for its network."""
    loss = config.get("loss")
    return {key: value for key, value in loss.items() if key != "vgg"} if isinstance(loss, Mapping) else {}


def _loaded(wanted: LossConfig, vgg: str) -> tuple[LoadedVGG, LossConfig]:
    """The loss network, and the loss without the layers that it does not reach.

    Raises:
        StylizeError: It is not available.
    """
    taps = sorted(wanted.taps(), key=lambda tap: TAPS[tap])
    refusals: list[StylizeError] = []
    while taps:
        try:
            loaded = load_vgg(
                vgg, taps, pooling=wanted.pooling, padding=wanted.padding, say=lambda message: logger.info(message)
            )
        except StylizeError as error:
            refusals.append(error)
            taps.pop()
            continue
        if not refusals:
            return loaded, wanted
        left_out = [tap for tap in wanted.taps() if tap not in taps]
        logger.warning("refine: without %s, which %s does not reach", ", ".join(left_out), vgg)
        content = {tap: weight for tap, weight in wanted.content_layers.items() if tap in taps}
        style = {tap: weight for tap, weight in wanted.style_layers.items() if tap in taps}
        changes = {"content_layers": content or {taps[-1]: 1.0}, "style_layers": style or {taps[-1]: 1.0}}
        return loaded, wanted.model_copy(update=changes)
    raise refusals[0]
