"""Train several generators alike, and set what they reach on held-out photographs side by side.

    python scripts/compare_generators.py --config configs/quickstart.yaml --set content.path=PHOTOGRAPHS \
        --set loss.vgg=vgg19.safetensors --set train.steps=600

All of a config but what is named here: Johnson's generator as it is; the same by torch alone, in eager float32 without
the convolutions, norms and loss that stylize has of its own for CPUs, with the same seed, which shows what these change
in the result; at half the width; and with separable convolutions. Every run is a `stylize train`, with its folder under
`--output`; runs that ended are not repeated, interrupted ones are resumed. The table is of each run's last validation;
`sheet.jpg` shows photographs, and below them what each generator makes of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.generators import build_generator
from stylize.models.file import load_model
from stylize.pictures.picture import Picture
from stylize.pictures.sheets import contact_sheet
from stylize.pictures.writing import write_picture
from stylize.training.photographs import find_photographs, validation_images

# What tells whether an input is one for stylize's own functions.
SWITCHES = (
    "stylize.generators.base.suits",
    "stylize.losses.vgg.suits",
    "stylize.norms._is_dense_on_cpu",
    "stylize.ops.cpu.matmul.suit",
)
BY_TORCH_ALONE = f"""
from unittest import mock
for switch in {SWITCHES}:
    mock.patch(switch, lambda *_: False).start()
import torch
mock.patch("stylize.training.trainer.choose_memory_format", lambda device: torch.contiguous_format).start()
from stylize.losses.perceptual import PerceptualLoss
PerceptualLoss.by_image = PerceptualLoss.__call__
from stylize.cli import main
main()
"""
SHOWN = 4
COLUMNS = ("generator", "thousand MAC/px", "parameters", "style", "content", "correlation", "total", "s/step")


@dataclass(frozen=True)
class Variant:
    """A generator to train.

    Attributes:
        name: As it is called in the table.
        folder: Its run's, under the output.
        overrides: Of the config.
        by_torch_alone: Without what stylize has of its own for CPUs.
    """

    name: str
    folder: str
    overrides: tuple[str, ...] = ()
    by_torch_alone: bool = False


VARIANTS = (
    Variant("johnson", "johnson"),
    Variant("johnson, by torch alone", "by-torch-alone", by_torch_alone=True),
    Variant("johnson, half the width", "half-width", ("generator.width=16",)),
    Variant("johnson_lite", "lite", ("generator.name=johnson_lite",)),
)


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote of its progress."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return [json.loads(line) for line in lines]


def validation(folder: Path) -> dict[str, float]:
    """The last validation of a run; empty: there is none."""
    found: dict[str, float] = {}
    for record in records(folder):
        if record["kind"] == "validation":
            found = record
    return found


def train(variant: Variant, config_path: Path, common: Sequence[str], output: Path) -> None:
    """Train a variant to the config's last step, unless that is done.

    Raises:
        StylizeError: The training failed; its message stands above.
    """
    folder = output / variant.folder
    overrides = [*common, *variant.overrides]
    if validation(folder).get("step") == load_config(config_path, overrides).train.steps:
        return
    start = ["-c", BY_TORCH_ALONE] if variant.by_torch_alone else ["-m", "stylize"]
    command = [sys.executable, *start, "train", "--config", str(config_path), "--output", str(folder)]
    for override in overrides:
        command += ["--set", override]
    if any((folder / "checkpoints").glob("*")):
        command += ["--resume"]
    elif folder.exists():
        command += ["--overwrite"]
    if subprocess.run(command, check=False).returncode:
        raise StylizeError(f"{folder}: its training failed")


def row(variant: Variant, config_path: Path, common: Sequence[str], output: Path) -> tuple[str, ...]:
    """A line of the table."""
    config = load_config(config_path, [*common, *variant.overrides])
    found = validation(output / variant.folder)
    generator = build_generator(config.generator)
    rates = [record["images_per_s"] for record in records(output / variant.folder) if "images_per_s" in record]
    return (
        variant.name,
        f"{multiplications(generator) / 1e3:.3g}",
        f"{sum(p.numel() for p in generator.parameters()):,}",
        *(f"{found[name]:.4f}" for name in ("style", "content", "content_correlation", "total")),
        f"{config.train.batch_size / statistics.median(rates):.3g}",
    )


@torch.no_grad()
def multiplications(generator: torch.nn.Module, side_px: int = 128) -> float:
    """Multiply-adds of the convolutions for each pixel of the image."""
    with FlopCounterMode(display=False) as counter:
        generator.to(torch.bfloat16)(torch.zeros(1, 3, side_px, side_px, dtype=torch.bfloat16))
    return float(counter.get_total_flops()) / 2 / side_px**2


@torch.no_grad()
def sheet(variants: Sequence[Variant], config_path: Path, common: Sequence[str], output: Path) -> Tensor:
    """Held-out photographs, and below them what each generator makes of them."""
    config = load_config(config_path, common)
    files = find_photographs(config.content, config.seed).validation
    photographs = validation_images(files, config.content.crop)[:SHOWN]
    rows = [photographs]
    for variant in variants:
        generator, _ = load_model(output / variant.folder / "model.safetensors")
        rows.append([generator.eval()(photograph[None])[0] for photograph in photographs])
    return contact_sheet(rows)


@click.command()
@click.option("--config", "config_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--set", "common", multiple=True, metavar="KEY=VALUE", help="Change a key of the config, for all.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/generators"))
@click.option("--only", multiple=True, type=click.Choice([v.folder for v in VARIANTS]), help="Leave out the others.")
def main(config_path: Path, common: tuple[str, ...], output: Path, only: tuple[str, ...]) -> None:
    """Train several generators alike and compare what they reach."""
    chosen = [variant for variant in VARIANTS if not only or variant.folder in only]
    try:
        for variant in chosen:
            train(variant, config_path, common, output)
        rows = [row(variant, config_path, common, output) for variant in chosen]
        write_picture(output / "sheet.jpg", Picture(sheet(chosen, config_path, common, output)))
    except StylizeError as error:
        raise click.ClickException(str(error)) from error
    for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows):
        click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
