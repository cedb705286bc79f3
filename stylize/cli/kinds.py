"""`stylize list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stylize.models.file import ModelCard


@click.command(name="list")
@click.argument("kind", type=click.Choice(["norms", "generators", "styles"]))
def list_kinds(kind: str) -> None:
    """List the available norms, generators or built-in styles."""
    for name, summary in _described(kind):
        click.echo(f"{name:20} {summary}")


def _described(kind: str) -> list[tuple[str, str]]:
    if kind == "norms":
        from stylize.norms import NORMS

        return [(name, _summary(cls)) for name, cls in NORMS.items()]
    if kind == "generators":
        from stylize.generators import GENERATORS

        return [(name, _summary(cls)) for name, cls in GENERATORS.items()]
    from stylize.models.file import read_card
    from stylize.models.find import built_in_models

    cards = {name: read_card(path) for name, (path, _) in built_in_models().items()}
    return [
        (name, f"{card.generator.name}, {card.generator.norm} norm, width {card.generator.width}{_blends(card)}")
        for name, card in cards.items()
    ]


def _blends(card: ModelCard) -> str:
    """The styles that this one can be blended with."""
    return f"; --style blends {', '.join(card.styles)}" if card.styles else ""


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
