"""What a training begins from: a model, or the start that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import Generator, GeneratorConfig
from stylize.models.file import ModelCard, load_model
from stylize.models.find import find_model, learned_start

LEARNED, NONE = "learned", "none"


@dataclass(frozen=True)
class Start:
    """A network that a training begins from.

    Attributes:
        generator: The network, on the CPU.
        styles: The names of its styles.
        card: Its description.
        reason: Which it is and why, for the log.
    """

    generator: Generator
    styles: tuple[str, ...]
    card: ModelCard
    reason: str


def find_start(source: str, config: GeneratorConfig) -> Start | None:
    """Return what `train.start` names.

    Args:
        source: `learned`, `none`, or a model: the path of its file or run folder, or the name of a built-in style.
        config: The network that is to begin with it.

    Returns:
        None: the network begins with random weights: so it was asked for, or no learned start fits.

    Raises:
        StylizeError: The model cannot be read, or is of another network.
    """
    if source == NONE:
        return None
    if source == LEARNED:
        path = learned_start(config.name, config.width)
        if path is None or config.norm not in ("instance", "batch", "batch_instance") or config.padding != "reflection":
            return None
        generator, card = load_model(path)
        return Start(generator, (), card, f"the start for {config.name} of width {config.width}, {card.style}")
    found = find_model(source, place="train.start")
    generator, card = load_model(found.path, found.style)
    for key in ("name", "norm", "width", "padding"):
        theirs, ours = getattr(card.generator, key), getattr(config, key)
        if theirs != ours:
            raise StylizeError(f"train.start: {source} has generator.{key} {theirs!r}, must be as here: {ours!r}")
    return Start(generator, card.styles or (card.style,), card, f"{found.path}, {found.reason}")


@torch.no_grad()
def begin_(generator: Generator, start: Start, styles: Sequence[str]) -> None:
    """Copy the weights of a start into a network.

    Args:
        generator: The network; its norms may be of another kind than the start's.
        start: The start.
        styles: The names of the network's styles: those that the start has too begin with their γ and β, the others
            with the mean.
    """
    theirs = start.generator.state_dict()
    ours = generator.state_dict()
    own = {f"{name}.{kind}" for name in generator.norms() for kind in ("weight", "bias")}
    for name, value in ours.items():
        given = theirs.get(name)
        if given is None:  # a gate or running statistic of another kind of norm
            continue
        value.copy_(_of_styles(given, value, start.styles, styles) if name in own else given)


def _of_styles(given: Tensor, value: Tensor, theirs: Sequence[str], ours: Sequence[str]) -> Tensor:
    """γ or β for our styles, of the shape of `value`."""
    rows = given[None] if given.dim() == 1 else given
    mean = rows.mean(0)
    chosen = [rows[theirs.index(name)] if name in theirs else mean for name in ours]
    return torch.stack(chosen).reshape(value.shape)


def train_norms_only(generator: Generator) -> None:
    """Train γ and β alone: all other weights stay, and so do running statistics, by which images are normalized."""
    own = set(map(id, generator.norm_parameters()))
    for parameter in generator.parameters():
        parameter.requires_grad_(id(parameter) in own)
    for norm in generator.norms().values():
        norm.hold_running()


def check_kept(kept: Sequence[str], new: Sequence[str], source: str) -> None:
    """Refuse a new style that has the name of a kept one.

    Raises:
        StylizeError: There is one.
    """
    for name in new:
        if name in kept:
            raise StylizeError(
                f"styles: got the name '{name}', which {source} has already; choose another, or set "
                "train.keep_styles: false"
            )
