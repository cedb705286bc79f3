"""Train compact students of VGG-19: the same layers and taps, with fewer channels or low-rank convolutions.

A loss network is used for its gradient with respect to the picture, so candidates are evaluated by the direction of
that gradient. A student starts from random weights and learns the teacher's activations through linear heads, which are
discarded afterwards; or it starts from a decomposition of the teacher's weights and learns the activations of the
channels that it keeps. It may also learn the directions of the gradients of the style and content terms; training then
differentiates through its own gradients::

    python scripts/distill_vgg.py train --config scripts/distill/students.yaml [--set KEY=VALUE ...] [--resume]
    python scripts/distill_vgg.py evaluate --config scripts/distill/students.yaml runs/distill/*.safetensors

Paths in a config are relative to the current folder. `tensorboard --logdir runs/distill` shows every run.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import click
import torch
import yaml
from distill.decomposition import decompose_
from distill.examination import Examination, LayerChoice, Look, cosine, log_ratio, look, table
from distill.pictures import Mixture, MixtureConfig, Pool, PoolConfig, Scenes, Section, Share, Weight, augment, uniform
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from stylize import __version__
from stylize.config import read_config
from stylize.errors import StylizeError
from stylize.losses.terms import LayerWeights, squared_error
from stylize.losses.vgg import TAPS, VGG19, Convolution, last_convolution
from stylize.losses.vgg_weights import encode_compact, load_vgg, randomize_, read_compact
from stylize.pictures.find import find_images
from stylize.pictures.sheets import contact_sheet
from stylize.system.devices import choose_device
from stylize.system.files import write_atomically
from stylize.training.checkpoint import newest_checkpoint, save_checkpoint
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig, find_photographs, validation_images
from stylize.training.schedule import ScheduleConfig, rate_factor

MAX_GRADIENT_NORM = 1.0
WEAKEST_CHANNEL = 1e-3  # relative to the mean energy; weaker channels are treated as this strong
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class MatchConfig(Section):
    """Targets that a student has to match, and their weights."""

    features: Weight = Field(1.0, description="the teacher's activations")
    channel_balance: Share = Field(
        0.5, description="for decomposed students: 0: strong channels dominate; 1: all have equal weight"
    )
    style_gradient: Weight = Field(1.0, description="the direction of the style term's gradient")
    content_gradient: Weight = Field(0.5, description="the direction of the content term's gradient")
    gradient_norms: Weight = Field(0.05, description="the logarithms of both gradients' norms, squared")

    def gradients(self) -> dict[str, float]:
        """Return the weights of the terms that need gradients."""
        others = self.model_dump(exclude={"features", "channel_balance"})
        return {name: weight for name, weight in others.items() if weight > 0}


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1)]
Rank = Annotated[list[Width], Field(min_length=2, max_length=2)]


class StudentConfig(Section):
    """A network to train, and its targets."""

    widths: list[Width] = Field(min_length=1, max_length=len(TAPS), description="channels of each layer")
    convolution: Convolution = Field(
        "plain", description="plain, separable or low_rank; see `stylize.losses.vgg.VGG19`"
    )
    ranks: list[Rank | None] = Field(
        [], description="for low_rank, for each layer: input and output channels of its 3×3, or null: plain"
    )
    start: str | None = Field(
        None,
        description="`teacher`: decompose its weights; or a student's file: layers of the same shape start from its "
        "weights; null: random",
    )
    fixed: str | None = Field(
        None,
        description="for `start: teacher`: a student's file, whose layers are taken over and stay as they are; its "
        "last must have all of the teacher's channels",
    )
    learning_rate: Rate | None = Field(None, description="of Adam; null: the common one")
    match: MatchConfig = MatchConfig()

    @model_validator(mode="after")
    def _fits(self) -> StudentConfig:
        wanted = len(self.widths) if self.convolution == "low_rank" else 0
        if len(self.ranks) != wanted:
            raise ValueError(f"got {len(self.ranks)} ranks, must be {wanted}: one a layer for low_rank, else none")
        if self.ranks and self.ranks[0] is not None:
            raise ValueError("got ranks for the first layer, must be null: plain")
        if self.start == "teacher" and self.convolution == "separable":
            raise ValueError("got start: teacher with separable, must be plain or low_rank: these can be decomposed")
        if self.fixed is not None and self.start != "teacher":
            raise ValueError("got fixed without start: teacher, must be with it: the other layers are fitted to these")
        return self

    def build(self) -> VGG19:
        """Return the network with arbitrary weights."""
        ranks = [None if rank is None else (rank[0], rank[1]) for rank in self.ranks]
        return VGG19(len(self.widths), widths=self.widths, convolution=self.convolution, ranks=ranks)


class TermsConfig(Section):
    """The terms whose gradients are matched."""

    style_layers: LayerWeights = Field({"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0}, description="with weights")
    content_layers: LayerWeights = Field({"relu2_2": 1.0, "relu3_1": 1.0}, description="with weights")
    channel_balance: Share = Field(0.5, description="as in loss.channel_balance")
    drawn: Share = Field(0.5, description="share of the steps with drawn weights on all layers, and a drawn balance")


class DistillConfig(Section):
    """All settings that determine the students."""

    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers")
    teacher: str = Field("imagenet", description="VGG-19's weights, as in loss.vgg")
    students: dict[Name, StudentConfig] = Field(min_length=1, description="networks to train side by side, by name")
    content: ContentConfig = ContentConfig(path="samples", validation=2, resize=320, crop=256)
    styles: str = Field("configs/styles", description="a folder of style pictures")
    size: int = Field(64, ge=16, description="side of the pictures, px, to which parts of the crops are scaled")
    terms: TermsConfig = TermsConfig()
    mixture: MixtureConfig = MixtureConfig()
    pool: PoolConfig = PoolConfig()
    decomposed_on: int = Field(
        240, ge=1, description="number of pictures for the decomposition of the teacher, for `start: teacher`"
    )
    steps: int = Field(3000, ge=1, description="optimizer steps")
    batch_size: int = Field(4, ge=2, description="pictures a step")
    learning_rate: Rate = Field(3e-3, description="of Adam")
    schedule: ScheduleConfig = ScheduleConfig()
    log_every: int = Field(10, ge=1)
    evaluate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _equally_deep(self) -> DistillConfig:
        depths = sorted({len(student.widths) for student in self.students.values()})
        if len(depths) > 1:
            raise ValueError(f"students: got {depths[0]} and {depths[-1]} widths, must be as many for each of them")
        return self

    def taps(self) -> tuple[str, ...]:
        """Return the layers of the students."""
        return tuple(TAPS)[: len(next(iter(self.students.values())).widths)]

    def to_yaml(self) -> str:
        """Return the configuration with every key."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def configured(terms: TermsConfig) -> LayerChoice:
    """Return the layers of the config."""
    return LayerChoice(terms.style_layers, terms.content_layers, terms.channel_balance)


def draw_layers(terms: TermsConfig, taps: Sequence[str], draw: torch.Generator) -> LayerChoice:
    """Return the layers of the config, or random weights on all layers, since users may choose any."""
    if uniform(0, 1, draw, 1) >= terms.drawn:
        return configured(terms)
    style, content = torch.empty(2, len(taps)).exponential_(generator=draw).tolist()
    balance = float(uniform(0, 1, draw, 1))
    return LayerChoice(dict(zip(taps, style, strict=True)), dict(zip(taps, content, strict=True)), balance)


def style_pictures(config: DistillConfig) -> list[Path]:
    """Return the style pictures.

    Raises:
        StylizeError: There are none.
    """
    files = find_images(Path(config.styles))
    if not files:
        raise StylizeError(f"styles: got '{config.styles}', must be a folder of style pictures")
    return files


def build_examination(config: DistillConfig, device: torch.device) -> Examination:
    """Return the examination of this config.

    Raises:
        StylizeError: The teacher, the photographs or the style pictures are not available.
    """
    photographs = validation_images(find_photographs(config.content, config.seed).validation, config.size)
    if len(photographs) < 2:
        raise StylizeError(f"content.validation: got {len(photographs)} photographs, must be at least 2")
    styles = validation_images(style_pictures(config), config.size)
    teacher = load_vgg(config.teacher, config.taps(), say=logging.warning).vgg.to(device)
    return Examination(teacher, configured(config.terms), photographs, styles)


# --- Training -----------------------------------------------------------------------------------------------------


class Student:
    """A student in training, with its optimizer.

    Args:
        config: The network and its targets.
        seed: Seed of the weights.
        learning_rate: Adam's learning rate if the student's config has none.
        teacher: The network whose activations it learns.
        pictures: Returns pictures for the decomposition of the teacher.
    """

    def __init__(
        self, config: StudentConfig, seed: int, learning_rate: float, teacher: VGG19, pictures: Callable[[], Tensor]
    ) -> None:
        self.match = config.match
        self.vgg = config.build().to(teacher.mean.device)
        self.vgg.pooling = teacher.pooling
        self.kept, self.heads = dict[str, Tensor](), nn.ModuleDict()
        if config.start == "teacher":
            given = None if config.fixed is None else read_compact(Path(config.fixed), None)
            self.kept = decompose_(self.vgg, teacher, pictures(), seed, given)
        else:
            randomize_(self.vgg, seed)
            self.heads = linear_heads(self.vgg, teacher, seed)
        if config.start not in (None, "teacher"):
            take_over_(self.vgg, Path(config.start))
        self.learned = tuple(self.kept) or self.vgg.taps
        for tap, module in zip(self.vgg.taps, self.vgg.features.values(), strict=True):
            module.requires_grad_(tap in self.learned)
        self.parameters = [p for p in (*self.vgg.parameters(), *self.heads.parameters()) if p.requires_grad]
        self.learning_rate = config.learning_rate or learning_rate
        self.optimizer = torch.optim.Adam(self.parameters, self.learning_rate)

    def train_step(self, scenes: Scenes, layers: LayerChoice, taught: Look, rate: float) -> dict[str, Tensor]:
        """Make an optimizer step at a share of the learning rate; return the terms.

        Raises:
            StylizeError: The loss is not finite.
        """
        terms = self.terms(scenes, layers, taught)
        if not torch.isfinite(terms["total"]):
            raise StylizeError("the loss is not finite; lower learning_rate, and --resume")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        self.optimizer.zero_grad()
        torch.autograd.backward(terms["total"])
        norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()} | {"gradient_norm": norm}

    def terms(self, scenes: Scenes, layers: LayerChoice, taught: Look) -> dict[str, Tensor]:
        """Return the terms to minimize: relative errors of the features, 1 − cosine of the gradients, log ratios."""
        gradients, terms = self.match.gradients(), dict[str, Tensor]()
        # Without gradients to match, no graph of a gradient is built, which is many times cheaper.
        mine = look(self.vgg, scenes, layers, differentiable=True) if gradients else None
        features = self.vgg(scenes.image, self.vgg.taps) if mine is None else mine.features
        for tap in self.learned:
            terms[f"features/{tap}"] = self._missed(tap, features[tap], taught.features[tap].detach())
        terms["features"] = torch.stack(list(terms.values())).mean()
        if mine is not None:
            pairs = ((mine.style_gradient, taught.style_gradient), (mine.content_gradient, taught.content_gradient))
            terms["style_gradient"], terms["content_gradient"] = (1 - cosine(*pair) for pair in pairs)
            terms["gradient_norms"] = torch.stack([log_ratio(*pair).square().mean() for pair in pairs]).mean()
        weights = {"features": self.match.features, **gradients}
        terms["total"] = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        return terms

    def _missed(self, tap: str, features: Tensor, target: Tensor) -> Tensor:
        """Return the relative error of a layer."""
        if tap not in self.kept:
            return squared_error(self.heads[tap](features), target) / target.square().mean()
        target = target[:, self.kept[tap]]
        energy = target.square().mean((0, 2, 3))
        weights = (energy / energy.mean()).clamp_min(WEAKEST_CHANNEL) ** -self.match.channel_balance
        return (weights * (features - target).square().mean((0, 2, 3))).sum() / (weights * energy).sum()

    def finished(self, images: Tensor) -> VGG19:
        """Return the final network: activations like the teacher's, or with mean 1 on `images` in every layer."""
        vgg = copy.deepcopy(self.vgg).requires_grad_(False)
        if not self.kept:
            scale_to_unit_mean_(vgg, images)
        return vgg

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes."""
        modules = {"vgg": self.vgg, "heads": self.heads}
        state: dict[str, Any] = {name: module.state_dict() for name, module in modules.items()}
        return state | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state."""
        for name, part in (("vgg", self.vgg), ("heads", self.heads), ("optimizer", self.optimizer)):
            part.load_state_dict(state[name])


class Distiller:
    """Trains students side by side on the same pictures; the teacher's features are computed once for all.

    All random numbers of a step are determined by the seed and the step.
    """

    def __init__(self, config: DistillConfig, device: torch.device, run_dir: Path) -> None:
        self.config, self.device, self.run_dir, self.step = config, device, run_dir, 0
        self.examination = build_examination(config, device)
        self.teacher = self.examination.teacher
        self.mixture = Mixture(config.mixture, device)
        self.students = {
            name: Student(student, config.seed, config.learning_rate, self.teacher, self._pictures)
            for name, student in config.students.items()
        }
        self.pool = Pool(config.pool, config.size, device)

    def fit(self) -> None:
        """Train from the current step to the last one, with a TensorBoard record and a log line for each student."""
        config = self.config
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not sys.stderr.isatty())
        with contextlib.ExitStack() as stack:
            stack.enter_context(bar)
            boards = {
                name: stack.enter_context(SummaryWriter(str(self.run_dir / name), purge_step=self.step + 1))
                for name in self.students
            }
            for photographs, styles in self._crops():
                scenes, terms = self.train_step(photographs, styles)
                self.step += 1
                bar.update()
                if self._due(config.log_every):
                    log(boards, "train", terms, self.step)
                if self._due(config.evaluate_every):
                    log(boards, "held_out", self.evaluate(), self.step)
                    sheet = contact_sheet(scenes)
                    next(iter(boards.values())).add_image("pictures, photographs, styles", sheet, self.step)
                if self._due(config.checkpoint_every):
                    self.save()

    def train_step(self, photographs: Tensor, styles: Tensor) -> tuple[Scenes, dict[str, dict[str, Tensor]]]:
        """Make a step of every student on crops, uint8; return the scenes and every student's terms.

        Raises:
            StylizeError: A loss is not finite.
        """
        config, draw = self.config, torch.Generator().manual_seed((self.config.seed << 32) + self.step)
        scenes, slots = self.pool.exchange(*self._mixed(photographs, styles, draw), draw)
        layers = draw_layers(config.terms, self.teacher.taps, draw)
        taught = look(self.teacher, scenes, layers)
        rate = rate_factor(self.step, config.steps, config.schedule)
        terms = {}
        for name, student in self.students.items():
            try:
                terms[name] = student.train_step(scenes, layers, taught, rate)
            except StylizeError as error:
                raise StylizeError(f"{name}, step {self.step + 1}: {error}") from None
        self.pool.descend_(scenes, slots, self._followed(scenes, slots, layers, taught))
        return scenes, terms

    def _followed(self, scenes: Scenes, slots: Sequence[int], layers: LayerChoice, taught: Look) -> list[Tensor]:
        """Return the gradients that the scenes of the pool descend; each slot of the pool always uses the same network.

        A generator descends the loss of its loss network to pictures whose faults this network does not detect. So a
        student also needs pictures that descend its own loss: they have faults that only the teacher detects.
        """
        gradients = [taught.style_gradient.clone(), taught.content_gradient.clone()]
        for number, student in enumerate(self.students.values(), start=1):
            places = [
                place for place, slot in enumerate(slots) if slot >= 0 and slot % (len(self.students) + 1) == number
            ]
            if places:
                own = look(student.vgg, Scenes(*(images[places] for images in scenes)), layers)
                gradients[0][places], gradients[1][places] = own.style_gradient, own.content_gradient
        return gradients

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Examine the final students, and write their files."""
        images = torch.cat([scenes.image for scenes in self.examination.scenes.values()])
        results = {}
        for name, student in self.students.items():
            vgg = student.finished(images)
            results[name] = self.examination(vgg)
            about = {
                "name": name,
                "config": json.dumps(
                    {**self.config.model_dump(mode="json"), "teacher": Path(self.config.teacher).name}
                ),
                "step": str(self.step),
                "held_out": json.dumps(results[name]),
                "stylize_version": __version__,
            }
            write_atomically(self.run_dir / f"{name}.safetensors", encode_compact(vgg, about))
        return results

    def save(self) -> None:
        """Write a checkpoint of everything that the seed and the step do not determine."""
        state = {
            "step": self.step,
            "students": {name: student.state_dict() for name, student in self.students.items()},
            "pool": self.pool.scenes,
            "pool_filled": self.pool.filled,
        }
        save_checkpoint(self.run_dir / "checkpoints", self.step, state, keep=2)

    def resume(self) -> None:
        """Load the newest checkpoint.

        Raises:
            StylizeError: There is none, or it is damaged.
        """
        found = newest_checkpoint(self.run_dir / "checkpoints", self.device)
        if found is None:
            raise StylizeError(f"{self.run_dir}: nothing to resume: no checkpoint was written yet")
        _, state = found
        for name, student in self.students.items():
            student.load_state_dict(state["students"][name])
        self.pool.scenes, self.pool.filled, self.step = state["pool"], state["pool_filled"], state["step"]

    def _mixed(self, photographs: Tensor, styles: Tensor, draw: torch.Generator) -> tuple[Scenes, list[bool]]:
        contents, paintings = (
            augment(crops, self.config.size, draw).to(self.device) for crops in (photographs, styles)
        )
        return self.mixture(contents, paintings, draw)

    def _pictures(self) -> Tensor:
        """Return the pictures for the decomposition of the teacher."""
        draw = torch.Generator().manual_seed(self.config.seed)
        count = -(-self.config.decomposed_on // self.config.batch_size)
        batches = itertools.islice(itertools.chain.from_iterable(self._crops() for _ in range(count)), count)
        return torch.cat([self._mixed(*crops, draw)[0].image for crops in batches])

    def _crops(self) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        workers = config.content.workers if config.content.workers != "auto" else 0
        folders = (find_photographs(config.content, config.seed).training, style_pictures(config))
        datasets = (CropDataset(files, config.content, config.seed + i) for i, files in enumerate(folders))
        streams = [Batches(dataset, config.batch_size, workers) for dataset in datasets]
        return zip(*(stream.from_step(self.step, config.steps) for stream in streams), strict=True)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps


def log(
    boards: Mapping[str, SummaryWriter], kind: str, results: Mapping[str, Mapping[str, float | Tensor]], step: int
) -> None:
    """Write each student's numbers to its own TensorBoard run."""
    for student, numbers in results.items():
        for name, number in numbers.items():
            boards[student].add_scalar(f"{kind}/{name}", float(number), step)


def linear_heads(student: VGG19, teacher: VGG19, seed: int) -> nn.ModuleDict:
    """Return linear maps from every tap of the student to the teacher's."""
    torch.manual_seed(seed)
    sizes = zip(student.taps, student.widths, teacher.widths, strict=True)
    return nn.ModuleDict({tap: nn.Conv2d(mine, its, 1) for tap, mine, its in sizes}).to(teacher.mean.device)


@torch.no_grad()
def take_over_(vgg: VGG19, path: Path) -> None:
    """Load the weights of a student's file into the layers of the same shape.

    Raises:
        StylizeError: The file cannot be read.
    """
    given = read_compact(path, len(vgg.widths)).state_dict()
    for name, value in vgg.state_dict().items():
        if name in given and given[name].shape == value.shape:
            value.copy_(given[name])


@torch.no_grad()
def scale_to_unit_mean_(vgg: VGG19, images: Tensor) -> None:
    """Scale every layer to a mean activation of 1 on `images`, like the teacher's; nothing else changes."""
    before = 1.0
    for module, features in zip(vgg.features.values(), vgg(images, vgg.taps).values(), strict=True):
        mean, conv = max(float(features.mean()), 1e-6), last_convolution(module)
        conv.weight *= before / mean
        cast(Tensor, conv.bias).div_(mean)
        before = mean


# --- The command line ---------------------------------------------------------------------------------------------

config_option = click.option("--config", "config_path", type=click.Path(path_type=Path), required=True)
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")


@click.group()
def main() -> None:
    """Train and evaluate students of VGG-19."""


@main.command()
@config_option
@set_option
@device_option
@click.option("--output", type=click.Path(path_type=Path), help="Run folder; default: runs/distill.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint.")
def train(config_path: Path, overrides: tuple[str, ...], device: str, output: Path | None, resume: bool) -> None:
    """Train students; their files are written to RUN_DIR/NAME.safetensors."""
    config = read_config(DistillConfig, config_path, overrides)
    run_dir = output or Path("runs", "distill")
    written = run_dir / "config.yaml"
    if resume and (not written.is_file() or written.read_text(encoding="utf-8") != config.to_yaml()):
        raise StylizeError(f"--resume: {written} is missing or differs, must hold the same configuration")
    if not resume and written.exists():
        raise StylizeError(f"{run_dir}: is there already: go on with --resume, or choose another --output")
    distiller = Distiller(config, choose_device(device), run_dir)
    if resume:
        distiller.resume()
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(written, config.to_yaml().encode())
    distiller.fit()
    click.echo(f"{', '.join(distiller.students)}: in {run_dir}, after {distiller.step} steps")


@main.command()
@config_option
@set_option
@device_option
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.argument("students", nargs=-1, required=True)
def evaluate(
    config_path: Path, overrides: tuple[str, ...], device: str, json_path: Path | None, students: tuple[str, ...]
) -> None:
    """Evaluate STUDENTS on held-out pictures: files, or any value of loss.vgg (`random` for comparison)."""
    config = read_config(DistillConfig, config_path, overrides)
    examination = build_examination(config, choose_device(device))
    results = {name: examination(load_vgg(name, config.taps()).vgg.to(examination.device)) for name in students}
    click.echo(table(results))
    if json_path is not None:
        write_atomically(json_path, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except StylizeError as error:
        sys.exit(f"distill_vgg: {error}")
