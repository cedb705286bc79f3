"""`stylize info`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole training configuration.")
def info(model: str, as_json: bool) -> None:
    """Show the style, generator and training of a model.

    MODEL is a model file, a run folder, or the name of a built-in style.
    """
    from stylize.models.file import read_card
    from stylize.models.find import find_model

    path, _, style = find_model(model, place="MODEL")
    card = read_card(path)
    if style is not None:
        card = card.of_style(style)
    facts = {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "style": card.style,
        "styles": list(card.all_styles),
        "generator": card.generator.model_dump(),
        "step": card.step,
        "vgg": card.vgg,
        "validation": dict(card.validation),
        "stylize_version": card.stylize_version,
        "torch_version": card.torch_version,
        "config": dict(card.config),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    from stylize.losses.summary import headline_values

    generator = card.generator
    click.echo(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")
    click.echo(f"style       {card.style}")
    for name in card.styles:
        held_out = card.by_style.get(name, {})
        told = f": held-out style {held_out['style']:.4f}" if "style" in held_out else ""
        click.echo(f"  - {name}{told}")
    click.echo(f"generator   {generator.name}, {generator.norm} norm, width {generator.width}")
    click.echo(f"trained     {card.step} steps against VGG-19 ({card.vgg})")
    for name in headline_values():
        if name in card.validation:
            click.echo(f"held-out    {name.replace('_', ' ')} {card.validation[name]:.4f}")
    click.echo(f"written by  stylize {card.stylize_version}, torch {card.torch_version}")
