"""Measure what several styles in one network cost: seconds a step, memory at the peak, parameters.

python scripts/measure_styles.py configs/quickstart.yaml [--counts 1,8,32] [--steps 40] [--set KEY=VALUE]

Trains the config with so many styles, all of its own style picture in different sizes, each count in its own process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import torch

from stylize.build import build_run
from stylize.config import NamedStyle, load_config

SMALLER_PX = 4  # each next style's picture, than the one before
WARM_UP_STEPS = 5
UNMEASURED = ("content.workers=0", "content.validation=0")


def measure(config: Path, count: int, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Train with so many styles for some steps; return the figures."""
    given = load_config(config, [*overrides, *UNMEASURED, f"train.steps={steps}"])
    first = given.all_styles()[0]
    styles = [
        NamedStyle(name=f"style {i}", images=first.all_images(), size=first.size - SMALLER_PX * i) for i in range(count)
    ]
    training = given.model_copy(update={"style": None, "styles": styles})
    trainer = build_run(training, torch.device("cpu"), Path(tempfile.mkdtemp())).trainer
    seconds = []
    for batch in trainer.batches.from_step(0, steps):
        began_s = time.perf_counter()
        trainer.step(batch)
        seconds.append(time.perf_counter() - began_s)
        trainer.progress.step += 1
    return {
        "styles": count,
        "step_s": median(seconds[WARM_UP_STEPS:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(parameter.numel() for parameter in trainer.generator.parameters()),
    }


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path, exists=True))
@click.option("--counts", default="1,8,32", show_default=True, help="Numbers of styles.")
@click.option("--steps", type=click.IntRange(WARM_UP_STEPS + 1), default=40, show_default=True, help="Optimizer steps.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the config.")
@click.option("--one", type=int, hidden=True, help="Measure one count in this process, and print JSON.")
def main(config: Path, counts: str, steps: int, overrides: tuple[str, ...], one: int | None) -> None:
    if one is not None:
        click.echo(json.dumps(measure(config, one, steps, overrides)))
        return
    click.echo("| styles | s a step | MiB at the peak | parameters |\n|---|---|---|---|")
    for count in map(int, counts.split(",")):
        command = [sys.executable, __file__, str(config), "--steps", str(steps), "--one", str(count)]
        command += [f"--set={override}" for override in overrides]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        click.echo("| {styles} | {step_s:.3f} | {peak_mib:,.0f} | {parameters:,} |".format(**found))


if __name__ == "__main__":
    main()
