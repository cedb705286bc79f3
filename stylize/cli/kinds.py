"""`stylize list`."""

from __future__ import annotations

from collections.abc import Sequence

import click


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

    cards = {name: read_card(path) for name, path in built_in_models().items()}
    return [
        (name, f"{card.generator.name}, {card.generator.norm} norm, width {card.generator.width}{_named(card.styles)}")
        for name, card in cards.items()
    ]


def _named(styles: Sequence[str]) -> str:
    return f"; --style: {', '.join(styles)}" if styles else ""


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
