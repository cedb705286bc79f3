"""Learn the weights that trainings begin from: one network that paints many styles.

python scripts/learn_start.py scripts/starts/start.yaml --output runs/start-16 [--set generator.width=16] [--resume]

First the styles are made: every picture of the folders, in its own colours, and in variants with others. Then one
network learns all of them, as `stylize train` with `styles:` does, in the run folder `--output`: watch it with
`tensorboard --logdir`. The start is this network with the mean of the styles' γ and β, in float16:
`start.safetensors` in that folder.

With `ending_steps` this network is then trained to be near every style (Reptile): it takes some steps towards one style
after the other, with all weights, and each time goes part of the way there. Pictures that are left out are those by
which starts are judged.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import load_file, save

from stylize import run
from stylize.build import Run, build_run
from stylize.cli.messages import show_log
from stylize.config import NamedStyle, load_config, read_config
from stylize.errors import StylizeError, reason_of
from stylize.generators import Generator
from stylize.models.file import ModelCard, encode_model, load_model
from stylize.system.devices import CPU
from stylize.system.files import write_atomically
from stylize.training.tensorboard import EventFile

logger = logging.getLogger("stylize")

SAVED_EVERY = 10


class StartConfig(BaseModel):
    """How a start is learned."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    base: str = Field(description="the config of the training but for its styles, relative to this file")
    pictures: list[str] = Field(min_length=1, description="folders of style pictures, relative to this file")
    left_out: list[str] = Field(default_factory=list, description="pictures that are not used, without suffix")
    variants: int = Field(3, ge=1, description="styles made of each picture; the first has its own colours")
    sizes: list[int] = Field([384, 256, 512], min_length=1, description="longer sides in turn, px")
    seed: int = Field(0, ge=0, description="of the variants' colours, and of the ending's order")
    ending_steps: int = Field(0, ge=0, description="styles that the ending goes towards, one after the other; 0: none")
    ending_inner_steps: int = Field(10, ge=1, description="optimizer steps towards each")
    ending_shares: tuple[float, float] = Field((0.5, 0.05), description="part of the way, at the first and the last")


def recoloured(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Return a picture in other colours: its chroma turned and scaled, its brightness bent, sometimes inverted."""
    rgb = np.asarray(picture, np.float64) / 255
    luma = rgb @ (0.299, 0.587, 0.114)
    blue, red = rgb[..., 2] - luma, rgb[..., 0] - luma
    angle, factor = draw.uniform(0, 2 * math.pi), draw.uniform(0.7, 1.3)
    turned = factor * (math.cos(angle) * blue - math.sin(angle) * red)
    other = factor * (math.sin(angle) * blue + math.cos(angle) * red)
    luma = luma ** draw.uniform(0.7, 1.4)
    if draw.random() < 0.25:
        luma = 1 - luma
    green = (luma - 0.299 * (luma + other) - 0.114 * (luma + turned)) / 0.587
    changed = np.stack([luma + other, green, luma + turned], -1)
    return Image.fromarray((changed.clip(0, 1) * 255).round().astype(np.uint8))


def make_styles(config: StartConfig, folder: Path, target: Path) -> list[NamedStyle]:
    """Write the variants of all pictures below `target`; returns them as styles."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(path for name in config.pictures for path in (folder / name).iterdir() if path.suffix == ".jpg")
    files = [path for path in files if path.stem not in config.left_out]
    if not files:
        raise StylizeError("pictures: got no picture, must be at least one")
    draw, styles = np.random.default_rng(config.seed), []
    for i, path in enumerate(files):
        picture = Image.open(path).convert("RGB")
        for variant in range(config.variants):
            place = target / f"{path.stem}-{variant}.png"
            (picture if variant == 0 else recoloured(picture, draw)).save(place)
            size = config.sizes[(i + variant) % len(config.sizes)]
            styles.append(NamedStyle(name=place.stem, image=str(place), size=size))
    return styles


def mean_of(model: Path) -> tuple[Generator, ModelCard]:
    """Return the network of a model with the mean of its styles, and the card of a start."""
    generator, card = load_model(model)
    count = len(card.all_styles)
    start = ModelCard(
        generator=card.generator, style="learned start", step=card.step, vgg=card.vgg, validation=card.validation,
        config={**card.config, "styles": [{"name": style} for style in card.all_styles]},
    )  # fmt: skip
    return generator.blended([1 / count] * count), start


def write(generator: Generator, card: ModelCard, target: Path) -> None:
    """Write a start in float16."""
    content = encode_model(generator, card, torch.float16)
    write_atomically(target, content)
    logger.info("%s: %s bytes", target, f"{len(content):,}")


def contiguous(generator: Generator) -> dict[str, torch.Tensor]:
    """Return the weights as files hold them."""
    return {name: value.cpu().contiguous() for name, value in generator.state_dict().items()}


def end_near_every_style(generator: Generator, training: Run, config: StartConfig, folder: Path) -> None:
    """Train a network in place so that few steps lead from it to any style.

    It continues where a stopped call has saved its weights.

    Source: Nichol et al. 2018, arXiv:1803.02999, Reptile.

    Args:
        generator: The network of one style.
        training: Loss and crops of all styles.
        config: Number of steps, and how far each goes.
        folder: Where weights and TensorBoard's events are kept.
    """
    trainer, inner, place = training.trainer, config.ending_inner_steps, folder / "ending.safetensors"
    done = 0
    if place.exists():
        with safe_open(place, "pt") as file:
            done = int(file.metadata()["done"])
        generator.load_state_dict(load_file(place))
    generator = trainer.compute.place(generator.train().requires_grad_(True))
    (folder / "ending").mkdir(exist_ok=True)
    events = EventFile(folder / "ending", done)
    batches = iter(trainer.batches.from_step(done * inner, config.ending_steps * inner))
    for step in range(done, config.ending_steps):
        style = int(torch.randint(trainer.loss.style_count, (), generator=torch.Generator().manual_seed(step)))
        before = [parameter.detach().clone() for parameter in generator.parameters()]
        optimizer = torch.optim.Adam(generator.parameters(), lr=trainer.config.learning_rate)
        for _ in range(inner):
            content = trainer.compute.photographs(next(batches))
            styles = torch.full((len(content),), style, device=content.device)
            optimizer.zero_grad(set_to_none=True)
            terms = trainer.loss.by_image(generator(trainer.compute.network_input(content)), content, styles)
            terms["total"].backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        told = {name: float(terms[name].detach()) for name in ("style", "content", "total")}
        first, last = config.ending_shares
        share = first + (last - first) * step / config.ending_steps
        with torch.no_grad():
            for parameter, value in zip(generator.parameters(), before, strict=True):
                parameter.copy_(torch.lerp(value, parameter, share))
        for name, number in told.items():
            events.scalar(f"ending/{name}", number, step + 1)
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == config.ending_steps:
            write_atomically(place, save(contiguous(generator), {"done": str(step + 1)}))
            events.flush()
            logger.info(
                "ending %d of %d: after %d steps towards a style %.4f",
                step + 1,
                config.ending_steps,
                inner,
                told["style"],
            )
    events.close()


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the training's config.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint.")
@click.option("--overwrite", is_flag=True, help="Begin anew.")
@click.option("--trained", is_flag=True, help="The run is trained already: go on with its model.")
def main(config: Path, output: Path, overrides: tuple[str, ...], resume: bool, overwrite: bool, trained: bool) -> None:
    show_log()
    try:
        _learn(config, output, overrides, resume, overwrite, trained)
    except StylizeError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or output}: {reason_of(error)}") from error


def _learn(
    config: Path, output: Path, overrides: tuple[str, ...], resume: bool, overwrite: bool, trained: bool
) -> None:
    start = read_config(StartConfig, config)
    folder = config.resolve().parent
    styles = make_styles(start, folder, output.with_name(f"{output.name}-styles").resolve())
    training = load_config(folder / start.base, overrides).model_copy(update={"style": None, "styles": styles})
    logger.info("%d styles of %d pictures", len(styles), len(styles) // start.variants)
    if (
        not trained
        and run.train(training, output, resume=resume, overwrite=overwrite, stop_on_signals=True).interrupted
    ):
        return
    generator, card = mean_of(output / "model.safetensors")
    if start.ending_steps:
        write(generator, card, output / "mean.safetensors")
        end_near_every_style(generator, build_run(training, CPU, output), start, output)
    write(generator, card, output / "start.safetensors")


if __name__ == "__main__":
    main()
