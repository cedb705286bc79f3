"""Train the same generators against several loss networks, and let one of them, the judge, measure what came out.

    python scripts/compare_loss_networks.py --judge vgg19.safetensors --network compact --network random \
        --style starry_night.jpg --style mosaic.jpg --set content.path=PHOTOGRAPHS

The judge is a loss network, too. Every other is trained for as many steps as it, and, where it is faster, once more
for as long as it; the seconds of a training step are measured first, in turns. Every run is a `stylize train`, with its
folder under `--output`; runs that ended are not repeated. What is told of each, on held-out photographs and in the
judge's eyes: the style term as trained and with plain Gram matrices, each beside that of the photographs as they are,
and the correlation with the photographs' features. `sheet.png` shows the pictures, `results.json` keeps the numbers.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

from stylize.build import build_loss, build_run, read_styles
from stylize.config import RunConfig, load_config
from stylize.errors import StylizeError
from stylize.models.file import load_model
from stylize.pictures.picture import Picture
from stylize.pictures.sheets import contact_sheet
from stylize.pictures.writing import write_picture
from stylize.system.files import write_atomically
from stylize.training.photographs import find_photographs, validation_images

CONFIG = Path(__file__).parent / "distill" / "comparison.yaml"
TIMED_ROUNDS = 7
SHOWN = 4
PLAINLY_FASTER = 1.1  # of a network that takes the judge's time nothing more is to be learned by a second run


@dataclass(frozen=True)
class Judgement:
    """What a model does to held-out photographs, in the judge's eyes.

    Attributes:
        style: The style term, as configured.
        style_of_photographs: That of the photographs as they are.
        plain_style: The style term of plain Gram matrices.
        plain_style_of_photographs: That of the photographs as they are.
        content_correlation: With the photographs' features at the content layers.
    """

    style: float
    style_of_photographs: float
    plain_style: float
    plain_style_of_photographs: float
    content_correlation: float


@dataclass(frozen=True)
class Task:
    """A model to train: a style, a loss network and the label that it goes by, and steps."""

    style: Path
    network: str
    steps: int
    label: str

    def folder(self, output: Path) -> Path:
        """Where it is trained."""
        return output / f"{self.style.stem}-{self.label}-{self.steps}"

    def overrides(self, common: Sequence[str]) -> list[str]:
        """What it changes in the config."""
        own = {
            "name": self.style.stem,
            "style.image": str(self.style.resolve()),
            "loss.vgg": self.network,
            "train.steps": self.steps,
            "train.validate_every": self.steps,
        }
        return [*common, *(f"{key}={json.dumps(value)}" for key, value in own.items())]


def label(network: str) -> str:
    """A short name of a loss network."""
    return Path(network).stem if "/" in network or network.endswith((".pth", ".safetensors")) else network


def step_seconds(config_path: Path, networks: Sequence[str], common: Sequence[str], style: Path) -> dict[str, float]:
    """The median seconds of a training step with each network; they take turns."""
    seconds: dict[str, list[float]] = {network: [] for network in networks}
    trainers = {}
    for network in networks:
        config = load_config(config_path, Task(style, network, 400, "").overrides(common))
        trainers[network] = build_run(config, torch.device("cpu"), Path()).trainer
    batch = next(iter(trainers.values())).batches.from_step(0, 1)
    crops = next(iter(batch))
    for _ in range(TIMED_ROUNDS):
        for network, trainer in trainers.items():
            start_s = time.perf_counter()
            trainer.step(crops)
            seconds[network].append(time.perf_counter() - start_s)
    return {network: statistics.median(times[1:]) for network, times in seconds.items()}


def tasks(
    judge: str, networks: Sequence[str], styles: Sequence[Path], steps: int, seconds: Mapping[str, float]
) -> list[Task]:
    """All models: the judge's, and each other network's of as many steps and of as much time."""
    found = []
    for style in styles:
        found.append(Task(style, judge, steps, label(judge)))
        for network in networks:
            faster = seconds[judge] / seconds[network]
            counts = [steps, round(steps * faster)] if faster > PLAINLY_FASTER else [steps]
            found += [Task(style, network, count, label(network)) for count in counts]
    return found


def train(task: Task, config_path: Path, common: Sequence[str], output: Path) -> None:
    """Train a model, unless it is there; an interrupted run is resumed.

    Raises:
        StylizeError: The training failed; its message stands above.
    """
    folder = task.folder(output)
    if last_step(folder) == task.steps:
        return
    command = [sys.executable, "-m", "stylize", "train", "--config", str(config_path), "--output", str(folder)]
    if any((folder / "checkpoints").glob("*")):
        command += ["--resume"]
    elif folder.exists():
        command += ["--overwrite"]
    for override in task.overrides(common):
        command += ["--set", override]
    if subprocess.run(command, check=False).returncode:
        raise StylizeError(f"{folder}: its training failed")


def last_step(folder: Path) -> int:
    """The step of the last validation of a run; 0: there is none."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = [json.loads(line) for line in lines]
    return max((record["step"] for record in records if record["kind"] == "validation"), default=0)


class Judge:
    """Measures models of one style."""

    def __init__(self, config: RunConfig) -> None:
        styles = read_styles(config)
        plain = config.model_copy(update={"loss": config.loss.model_copy(update={"channel_balance": 0.0})})
        self.loss, self.plain = (build_loss(one, styles)[0] for one in (config, plain))
        self.photographs = validation_images(
            find_photographs(config.content, config.seed).validation, config.content.crop
        )

    @torch.no_grad()
    def __call__(self, model: Path) -> tuple[Judgement, list[Tensor], list[Tensor]]:
        """The numbers, averaged; the photographs and what they became."""
        generator, _ = load_model(model)
        pictures, sums = [], dict.fromkeys(Judgement.__dataclass_fields__, 0.0)
        for photograph in self.photographs:
            content = photograph[None]
            painted = generator(content)
            measured = self.loss.measure(painted, content)
            found = {
                "style": measured["style"],
                "style_of_photographs": self.loss(content, content)["style"],
                "plain_style": self.plain(painted, content)["style"],
                "plain_style_of_photographs": self.plain(content, content)["style"],
                "content_correlation": measured["content_correlation"],
            }
            sums = {name: total + float(found[name]) / len(self.photographs) for name, total in sums.items()}
            pictures.append(painted[0])
        return Judgement(**sums), self.photographs, pictures


@dataclass(frozen=True)
class Row:
    """What came of a task: its numbers, the held-out photographs, what they became."""

    task: Task
    found: Judgement
    photographs: list[Tensor]
    pictures: list[Tensor]


def judged(judges: Mapping[Path, Judge], all_tasks: Sequence[Task], output: Path) -> list[Row]:
    """Every task's outcome."""
    rows = []
    for task in all_tasks:
        judge = judges[task.style]
        rows.append(Row(task, *judge(task.folder(output) / "model.safetensors")))
    return rows


def table(rows: Sequence[Row], seconds: Mapping[str, float]) -> str:
    """The numbers in columns."""
    cells = [("style", "network", "steps", "s a step", "style term", "plain Gram", "correlation")]
    for row in rows:
        task, found = row.task, row.found
        cells.append(
            (
                task.style.stem,
                task.label,
                str(task.steps),
                f"{seconds[task.network]:.3f}",
                f"{found.style:.3f} of {found.style_of_photographs:.2f}",
                f"{found.plain_style:.3f} of {found.plain_style_of_photographs:.3f}",
                f"{found.content_correlation:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=CONFIG, show_default=True)
@click.option("--set", "common", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable.")
@click.option("--judge", default="imagenet", show_default=True, help="The loss network that measures all.")
@click.option("--network", "networks", multiple=True, default=("compact", "random"), show_default=True)
@click.option("--style", "styles", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="Of the judge's own models.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs", "loss-networks"), show_default=True)
def main(
    config_path: Path,
    common: tuple[str, ...],
    judge: str,
    networks: tuple[str, ...],
    styles: tuple[Path, ...],
    steps: int,
    output: Path,
) -> None:
    """Train the same generators against several loss networks, and let the judge measure them."""
    logging.getLogger("stylize").setLevel(logging.ERROR)
    times_file = output / "step_seconds.json"
    if not times_file.is_file():
        output.mkdir(parents=True, exist_ok=True)
        measured = step_seconds(config_path, [judge, *networks], common, styles[0])
        write_atomically(times_file, (json.dumps(measured, indent=2) + "\n").encode())
    seconds = json.loads(times_file.read_text())
    all_tasks = tasks(judge, networks, styles, steps, seconds)
    for task in all_tasks:
        train(task, config_path, common, output)
    judges = {
        style: Judge(load_config(config_path, Task(style, judge, steps, "").overrides(common))) for style in styles
    }
    rows = judged(judges, all_tasks, output)
    click.echo(table(rows, seconds))
    write_atomically(output / "results.json", report(rows, seconds).encode())
    write_picture(output / "sheet.png", Picture(sheet(rows)))


def report(rows: Sequence[Row], seconds: Mapping[str, float]) -> str:
    """The table as JSON."""
    runs = [
        {"style": row.task.style.stem, "network": row.task.label, "steps": row.task.steps, **asdict(row.found)}
        for row in rows
    ]
    return json.dumps({"step_seconds": seconds, "runs": runs}, indent=2) + "\n"


def sheet(rows: Sequence[Row]) -> Tensor:
    """A row of photographs for each style, then a row for each of its models."""
    strips: list[list[Tensor]] = []
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1].task.style != row.task.style:
            strips.append(row.photographs[:SHOWN])
        strips.append(row.pictures[:SHOWN])
    return contact_sheet(strips)


if __name__ == "__main__":
    try:
        main()
    except StylizeError as error:
        sys.exit(f"compare_loss_networks: {error}")
