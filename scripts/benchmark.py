"""Time stylize against the same mathematics written plainly.

Two workloads, each on both sides:

* ``train step``: one optimizer step of a Johnson generator (width 32, instance normalization) against VGG-19 with
  style at relu1_1, 2_1, 3_1, 4_1 and content at relu4_2.
* ``apply``: painting one square image.

``stylize`` runs a real `Trainer` and a real `Stylizer`, with the precision, memory format and compilation that they
choose. ``plain`` is eager float32 of ordinary `torch.nn` modules in the contiguous layout, as the widely copied
scripts write it, with the same weights: the first repeat of each side must give the same loss, gradient norm and
picture. VGG-19's weights are random and seeded; they do not change the time.

Every side of every workload has a process of its own, so that its peak memory can be told; the sides take turns::

    python scripts/benchmark.py [--rounds 3] [--steps 1] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stylize.devices import choose_device, choose_memory_format, choose_precision
from stylize.generators import Generator, GeneratorConfig, build_generator
from stylize.images import Picture
from stylize.inference.stylizer import Stylizer
from stylize.losses import LossConfig, PerceptualLoss
from stylize.norms import Norm
from stylize.training.data import Batches, ContentConfig, CropDataset
from stylize.training.trainer import (
    ScheduleConfig,
    TrainConfig,
    Trainer,
    choose_compile,
)
from stylize.vgg import VGG19, natural_noise, randomize_, tap_depth

WIDTH = 32
LEARNING_RATE = 1e-3
STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
CONTENT_TAP = "relu4_2"
# What VGG-19 runs through up to each tap: a number is a convolution of so many channels, P a pooling.
VGG_SLICES = ((64,), (64, "P", 128), (128, "P", 256), (256, 256, 256, "P", 512), (512,))

LOSS = LossConfig(
    vgg="random",
    style_layers=dict.fromkeys(STYLE_TAPS, 1.0),
    content_layers={CONTENT_TAP: 1.0},
    content_weight=1.0,
    style_weight=3.0,
    channel_balance=0.0,  # the plain side has plain Gram matrices
    tv_weight=0.0,
    scale="relative",
)

TOLERANCE = 1e-3
# bfloat16 has 8 bits of precision; on CUDA the plain float32 convolutions may be TF32, which has 11.
COARSE_TOLERANCE = 0.1

Side = Literal["plain", "stylize"]
SIDES: tuple[Side, Side] = ("plain", "stylize")


@dataclass(frozen=True)
class Settings:
    """What is timed, and how.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        threads: Of torch on the CPU; None: torch's own choice.
        batch: Crops in a training step.
        crop: Side of a crop, px.
        size: Side of the image to paint, px.
        precision: `auto`, `fp32` or `bf16`, of stylize.
        compile: `auto`, `always` or `never`, of stylize's training step.
        seed: Of weights and images.
    """

    device: str
    threads: int | None
    batch: int
    crop: int
    size: int
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "always", "never"]
    seed: int = 0

    def torch_device(self) -> torch.device:
        """The device to compute on; `auto`: CUDA, else the CPU."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return choose_device(name)


# --- The inputs, the same on both sides ---------------------------------------------------------------------------


def make_generator(seed: int) -> Generator:
    """The generator in `train()` on the CPU, its norms' parameters drawn, too, so that mixing them up would show."""
    torch.manual_seed(seed)
    generator = build_generator(GeneratorConfig(name="johnson", norm="instance", width=WIDTH))
    for norm in generator.norms().values():
        _draw_(norm)
    return generator


@torch.no_grad()
def _draw_(norm: Norm) -> None:
    assert norm.weight is not None and norm.bias is not None
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.uniform_(-0.5, 0.5)


def make_vgg(seed: int) -> VGG19:
    """VGG-19 to its deepest tap, pooling by maximum as with trained weights."""
    vgg = VGG19(tap_depth(LOSS.taps()))
    randomize_(vgg, seed)
    return vgg


def make_images(count: int, size_px: int, seed: int) -> Tensor:
    """Images `(count, 3, size, size)` in [0, 1]."""
    return natural_noise(count, size_px, torch.Generator().manual_seed(seed))


def make_crops(settings: Settings) -> Tensor:
    """A batch of training crops, uint8."""
    return (make_images(settings.batch, settings.crop, settings.seed + 1) * 255).byte()


def make_style(settings: Settings) -> Tensor:
    """The style image, `(3, crop, crop)` in [0, 1]."""
    return make_images(1, settings.crop, settings.seed + 2)[0]


# --- The plain side -----------------------------------------------------------------------------------------------


def conv(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> list[nn.Module]:
    """Reflection padding and a convolution."""
    return [nn.ReflectionPad2d(kernel_px // 2), nn.Conv2d(in_channels, out_channels, kernel_px, stride)]


def conv_norm(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> list[nn.Module]:
    """The same with instance normalization."""
    return [*conv(in_channels, out_channels, kernel_px, stride), nn.InstanceNorm2d(out_channels, affine=True)]


def upsample() -> nn.Module:
    """Twice the size, as `stylize.generators.base.upsample_to` has it."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


class PlainResidual(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv_norm(channels, channels, 3), nn.ReLU(), *conv_norm(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.layers(x)
        return x + residual


def plain_generator(width: int) -> nn.Sequential:
    """Johnson's generator for sides that are multiples of 4; parameters in the order of `JohnsonGenerator`."""
    return nn.Sequential(
        *(*conv_norm(3, width, 9), nn.ReLU()),
        *(*conv_norm(width, 2 * width, 3, stride=2), nn.ReLU()),
        *(*conv_norm(2 * width, 4 * width, 3, stride=2), nn.ReLU()),
        *(PlainResidual(4 * width) for _ in range(5)),
        *(upsample(), *conv_norm(4 * width, 2 * width, 3), nn.ReLU()),
        *(upsample(), *conv_norm(2 * width, width, 3), nn.ReLU()),
        *conv(width, 3, 9),
        nn.Sigmoid(),
    )


class PlainVGG(nn.Module):
    """VGG-19 in slices that end at the taps; parameters in the order of `VGG19`."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.slices = nn.ModuleList()
        channels = 3
        for items in VGG_SLICES:
            layers: list[nn.Module] = []
            for item in items:
                if isinstance(item, str):
                    layers.append(nn.MaxPool2d(2))
                    continue
                layers += [nn.ReplicationPad2d(1), nn.Conv2d(channels, item, 3), nn.ReLU(inplace=True)]
                channels = item
            self.slices.append(nn.Sequential(*layers))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x, features = (image - self.mean) / self.std, {}
        for tap, layers in zip((*STYLE_TAPS, CONTENT_TAP), self.slices, strict=True):
            x = features[tap] = layers(x)
        return features


def plain_gram(features: Tensor) -> Tensor:
    """Gram matrices, `(N, C, H, W)` → `(N, C, C)`."""
    n, c, h, w = features.size()
    flat = features.view(n, c, h * w)
    return flat.bmm(flat.transpose(1, 2)) / (c * h * w)


def plain_error(value: Tensor, target: Tensor, of_style: Tensor | float = 0.0) -> Tensor:
    """The mean squared difference over the target's mean square and another, image by image, then averaged."""
    dims = tuple(range(1, value.dim()))
    return (((value - target) ** 2).mean(dims) / ((target**2).mean(dims) + of_style)).mean()


@torch.no_grad()
def copy_parameters_(target: nn.Module, source: nn.Module) -> None:
    """Give `target` the parameters of `source`, which come in the same order."""
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        assert mine.shape == theirs.shape
        mine.copy_(theirs)


# --- The workloads ------------------------------------------------------------------------------------------------


class Workload:
    """Something to time.

    Attributes:
        result: What a run gives, in a word.
        generator: The network at work.
        choices: Precision, memory format and compilation, by name.
    """

    result: str
    generator: nn.Module
    choices: dict[str, str]

    def run(self) -> Tensor:
        """Do it once; the result is on the CPU."""
        raise NotImplementedError  # abstract: each workload is this function


class StylizeTraining(Workload):
    """A step of the trainer."""

    result = "loss"

    def __init__(self, settings: Settings) -> None:
        device = settings.torch_device()
        generator = make_generator(settings.seed).to(device).train()
        loss = PerceptualLoss(make_vgg(settings.seed), LOSS, [make_style(settings)])
        config = TrainConfig(
            batch_size=settings.batch,
            learning_rate=LEARNING_RATE,
            schedule=ScheduleConfig(name="constant", warmup_steps=0),
            precision=settings.precision,
            compile=settings.compile,
        )
        self.crops = make_crops(settings)
        self.trainer = Trainer(
            generator,
            loss.to(device),
            Batches(CropDataset([], ContentConfig(path="samples"), seed=0), settings.batch),  # not drawn from
            validation=[],
            config=config,
            seed=settings.seed,
            run_dir=Path(),
            save_best=lambda progress: None,
        )
        self.generator = generator
        compiled = choose_compile(config.compile, device, config.steps)
        memory_format = choose_memory_format(device, self.trainer.precision)
        self.choices = choices(self.trainer.precision, memory_format, compiled)

    def run(self) -> Tensor:
        return self.trainer.step(self.crops)["total"].cpu()


class PlainTraining(Workload):
    """A step as the widely copied scripts have it."""

    result = "loss"

    def __init__(self, settings: Settings) -> None:
        self.device = settings.torch_device()
        self.generator = plain_generator(WIDTH).to(self.device)
        self.vgg = PlainVGG().to(self.device)
        copy_parameters_(self.generator, make_generator(settings.seed))
        copy_parameters_(self.vgg, make_vgg(settings.seed))
        with torch.no_grad():
            features = self.vgg(make_style(settings)[None].to(self.device))
        self.grams = {tap: plain_gram(features[tap]) for tap in STYLE_TAPS}
        self.style_energy = (features[CONTENT_TAP] ** 2).mean()
        self.optimizer = torch.optim.Adam(self.generator.parameters(), LEARNING_RATE)
        self.crops = make_crops(settings)
        self.choices = choices("fp32", torch.contiguous_format, compiled=False)

    def run(self) -> Tensor:
        content = self.crops.to(self.device).float() / 255
        self.optimizer.zero_grad()
        loss = self._loss(self.generator(content), content)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach().cpu()

    def _loss(self, stylized: Tensor, content: Tensor) -> Tensor:
        features, targets = self.vgg(stylized), self.vgg(content)
        content_loss = plain_error(features[CONTENT_TAP], targets[CONTENT_TAP], self.style_energy)
        style_loss = torch.zeros((), device=self.device)
        for tap, target in self.grams.items():
            gram = plain_gram(features[tap])
            style_loss = style_loss + plain_error(gram, target.expand_as(gram))
        return LOSS.content_weight * content_loss + LOSS.style_weight * style_loss / len(STYLE_TAPS)


class StylizeApply(Workload):
    """Painting with the stylizer."""

    result = "picture"

    def __init__(self, settings: Settings) -> None:
        device = settings.torch_device()
        precision = choose_precision(settings.precision, device)
        self.stylizer = Stylizer(make_generator(settings.seed), device, precision)
        self.generator = self.stylizer.generator
        self.picture = Picture(make_images(1, settings.size, settings.seed + 3)[0])
        self.choices = choices(precision, memory_format_of(self.generator), compiled=False)

    def run(self) -> Tensor:
        return self.stylizer(self.picture).rgb


class PlainApply(Workload):
    """Painting with the plain generator."""

    result = "picture"

    def __init__(self, settings: Settings) -> None:
        self.device = settings.torch_device()
        self.generator = plain_generator(WIDTH).to(self.device).eval()
        copy_parameters_(self.generator, make_generator(settings.seed))
        self.image = make_images(1, settings.size, settings.seed + 3)
        self.choices = choices("fp32", torch.contiguous_format, compiled=False)

    def run(self) -> Tensor:
        with torch.no_grad():
            painted: Tensor = self.generator(self.image.to(self.device))
        return painted[0].clamp(0, 1).cpu()


WORKLOADS: Mapping[str, Mapping[Side, Callable[[Settings], Workload]]] = {
    "train step": {"plain": PlainTraining, "stylize": StylizeTraining},
    "apply": {"plain": PlainApply, "stylize": StylizeApply},
}


def choices(precision: str, memory_format: torch.memory_format, compiled: bool) -> dict[str, str]:
    """What is printed about how a side computes."""
    return {
        "precision": precision,
        "memory format": str(memory_format).removeprefix("torch."),
        "compile": "on" if compiled else "off",
    }


def memory_format_of(module: nn.Module) -> torch.memory_format:
    """The layout of the module's first convolution."""
    weight = next(p for p in module.parameters() if p.dim() == 4)
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last


# --- The process of one side --------------------------------------------------------------------------------------


class Round(NamedTuple):
    """One turn of a side.

    Attributes:
        values: What the warm-up gave, by name.
        seconds: Of each repeat after it.
    """

    values: dict[str, NDArray[np.float32]]
    seconds: list[float]


def serve(connection: Connection, workload_name: str, side: Side, settings: Settings) -> None:
    """The process: tell the environment, play a round of so many repeats for every number, tell the peak for None."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    workload = WORKLOADS[workload_name][side](settings)
    gc.collect()
    device = settings.torch_device()
    connection.send({**environment(device), **workload.choices})
    while (steps := connection.recv()) is not None:
        connection.send(play_round(workload, steps, device))
    connection.send(peak_bytes(device))


def play_round(workload: Workload, steps: int, device: torch.device) -> Round:
    """A warm-up, then `steps` timed repeats."""
    values = {workload.result: workload.run().float().numpy()}
    gradients = [p.grad for p in workload.generator.parameters() if p.grad is not None]
    if gradients:
        values["gradient norm"] = torch.nn.utils.get_total_norm(gradients).cpu().numpy()
    return Round(values, [timed(workload.run, device) for _ in range(steps)])


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory held so far: torch's tensors on CUDA, else the whole process; None where it is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment(device: torch.device) -> dict[str, str]:
    """Where the numbers hold."""
    return {
        "torch": torch.__version__,
        "CPU": cpu_model(),
        "threads": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- The process that compares ------------------------------------------------------------------------------------


class Worker:
    """The process of one side, seen from outside."""

    def __init__(self, workload_name: str, side: Side, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = f"{workload_name}, {side}"
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, workload_name, side, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.environment = cast(dict[str, str], self._receive())

    def play_round(self, steps: int) -> Round:
        """A warm-up, then `steps` timed repeats."""
        self.connection.send(steps)
        return cast(Round, self._receive())

    def finish(self) -> int | None:
        """End the process; the most bytes that it held."""
        self.connection.send(None)
        peak = cast("int | None", self._receive())
        self.process.join()
        return peak

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError as error:
            raise click.ClickException(f"{self.name}: its process failed; its message stands above") from error


@dataclass(frozen=True)
class Result:
    """What was found for one workload.

    Attributes:
        name: Of the workload.
        environment: Of each side.
        seconds: Of each side, the median repeat of every round.
        peak_bytes: Of each side.
        differences: Between the sides' first results, by name, over the plain side's largest value.
        images: In one repeat.
        megapixels: In one repeat, all images together.
    """

    name: str
    environment: dict[str, dict[str, str]]
    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int | None]
    differences: dict[str, float]
    images: int
    megapixels: float

    def median(self, side: Side) -> float:
        """Seconds of one repeat."""
        return statistics.median(self.seconds[side])

    def ratios(self) -> list[float]:
        """How many times as fast stylize is, round by round."""
        return [a / b for a, b in zip(self.seconds["plain"], self.seconds["stylize"], strict=True)]

    def summary(self) -> dict[str, float]:
        """The numbers that the table shows."""
        ratios, stylize = self.ratios(), self.median("stylize")
        return {
            "plain_seconds": self.median("plain"),
            "stylize_seconds": stylize,
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "images_per_second": self.images / stylize,
            "megapixels_per_second": self.megapixels / stylize,
        }


def compare(name: str, settings: Settings, rounds: int, steps: int) -> Result:
    """Let the sides of a workload take turns.

    Raises:
        click.ClickException: Their first results differ by more than the precision explains.
    """
    workers = {side: Worker(name, side, settings) for side in SIDES}
    played: dict[Side, list[Round]] = {side: [] for side in SIDES}
    differences: dict[str, float] = {}
    for number in range(rounds):
        for side, worker in workers.items():
            click.echo(f"{name}, {side}: round {number + 1} of {rounds}", err=True)
            played[side].append(worker.play_round(steps))
        if number == 0:
            differences = relative_differences(*(played[side][0].values for side in SIDES))
            check_same(name, differences, workers["stylize"].environment)
    images, side_px = (1, settings.size) if name == "apply" else (settings.batch, settings.crop)
    return Result(
        name=f"{name} {images} × {side_px}²",
        environment={side: worker.environment for side, worker in workers.items()},
        seconds={side: [statistics.median(turn.seconds) for turn in played[side]] for side in SIDES},
        peak_bytes={side: worker.finish() for side, worker in workers.items()},
        differences=differences,
        images=images,
        megapixels=images * side_px**2 / 1e6,
    )


def relative_differences(
    plain: Mapping[str, NDArray[np.float32]], stylize: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """The largest difference of each value over the plain one's largest magnitude."""
    return {k: float(np.abs(plain[k] - stylize[k]).max() / np.abs(plain[k]).max()) for k in plain}


def check_same(name: str, differences: Mapping[str, float], chosen: Mapping[str, str]) -> None:
    """Refuse to compare different mathematics.

    Raises:
        click.ClickException: A difference is above the tolerance, or not a number.
    """
    exact = chosen["precision"] == "fp32" and chosen["device"] == "cpu"
    tolerance = TOLERANCE if exact else COARSE_TOLERANCE
    for value, difference in differences.items():
        if not difference <= tolerance:
            raise click.ClickException(
                f"{name}: the sides differ in the {value} by {difference:.2g}, must be at most {tolerance:g}"
            )


# --- The report ---------------------------------------------------------------------------------------------------


def headline(results: Sequence[Result]) -> str:
    """Where the numbers hold, and what stylize chose."""
    own = [result.environment["stylize"] for result in results]
    place = (
        f"torch {own[0]['torch']}, {own[0]['CPU']}, {own[0]['threads']} threads, {own[0]['CPU capability']}, "
        f"device {own[0]['device']}"
    )
    chosen = [
        f"{result.name}: {env['precision']}, {env['memory format']}, compile {env['compile']}"
        for result, env in zip(results, own, strict=True)
    ]
    return "; ".join([place, *chosen])


def table(results: Sequence[Result]) -> str:
    """The numbers in columns."""
    rows = [
        (
            "",
            "plain s",
            "stylize s",
            "times as fast",
            "images/s",
            "MP/s",
            "plain peak",
            "stylize peak",
            "largest difference",
        ),
        *(_cells(result) for result in results),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cells(result: Result) -> tuple[str, ...]:
    numbers = result.summary()
    return (
        result.name,
        f"{numbers['plain_seconds']:.4g}",
        f"{numbers['stylize_seconds']:.4g}",
        f"{numbers['ratio']:.2f} ({numbers['ratio_min']:.2f}..{numbers['ratio_max']:.2f})",
        f"{numbers['images_per_second']:.4g}",
        f"{numbers['megapixels_per_second']:.4g}",
        *(_gib(result.peak_bytes[side]) for side in SIDES),
        ", ".join(f"{name} {difference:.1g}" for name, difference in result.differences.items()),
    )


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.2f} GiB"


def as_json(results: Sequence[Result], settings: Settings, rounds: int, steps: int) -> str:
    """The same as the table, and every round."""
    rows = [{**asdict(result), "ratios": result.ratios(), **result.summary()} for result in results]
    report = {"settings": {**asdict(settings), "rounds": rounds, "steps": steps}, "rows": rows}
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _multiple_of_4(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if value % 4:  # the plain generator does not crop what it enlarges
        raise click.BadParameter(f"got {value}, must be a multiple of 4")
    return value


side_px = click.IntRange(32)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of each side.")
@click.option("--steps", type=click.IntRange(1), default=1, show_default=True, help="Timed repeats in a turn.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops in a training step.")
@click.option("--crop", type=side_px, callback=_multiple_of_4, default=256, show_default=True, help="Their side, px.")
@click.option(
    "--size", type=side_px, callback=_multiple_of_4, default=1024, show_default=True, help="Side to paint, px."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of torch on the CPU; default: torch's own choice.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of stylize; plain is always fp32.",
)
@click.option(
    "--compile",
    "compile_",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Of stylize's training step.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers there.")
def main(
    rounds: int,
    steps: int,
    batch: int,
    crop: int,
    size: int,
    device: str,
    threads: int | None,
    precision: Literal["auto", "fp32", "bf16"],
    compile_: Literal["auto", "always", "never"],
    json_file: Path | None,
) -> None:
    """Time stylize against the same mathematics written plainly."""
    settings = Settings(device, threads, batch, crop, size, precision, compile_)
    results = [compare(name, settings, rounds, steps) for name in WORKLOADS]
    click.echo(headline(results))
    click.echo(table(results))
    if json_file is not None:
        json_file.write_text(as_json(results, settings, rounds, steps), encoding="utf-8")


if __name__ == "__main__":
    main()
