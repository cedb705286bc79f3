"""What the checks work with: a device, sizes, networks, a trainer."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args
from unittest import mock

import torch
from benchmarks.settings import LOSS, make_generator
from torch import Tensor, nn

from gpu_checks.results import Skipped
from stylize.generators import Generator
from stylize.inference.plans import MemoryBudget, Plan, choose_plan
from stylize.inference.strips import StripPainter
from stylize.inference.stylizer import Stylizer
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import VGG19, tap_depth
from stylize.losses.vgg_weights import natural_noise
from stylize.system.compute import Compute
from stylize.system.devices import multiplies_bf16
from stylize.system.memory import keep_freed_memory
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig
from stylize.training.schedule import ScheduleConfig
from stylize.training.trainer import TrainConfig, Trainer

T = TypeVar("T")
NOISE_PX = 512  # larger pictures are repetitions: their noise takes long to draw
PLENTY_BYTES = 2**62
# For small crops; the speed is measured with the benchmark's.
SMALL_LOSS = LossConfig(
    vgg="random",
    style_layers={"relu1_1": 1.0, "relu2_1": 1.0},
    content_layers={"relu2_1": 1.0},
    style_weight=3.0,
)


@dataclass(frozen=True)
class Setting:
    """The device, and how large everything is.

    Attributes:
        device: The device to check.
        miniature: Whether everything is small.
        folder: Folder for results.
        missing: Optional packages that cannot be imported.
        seed: Seed of weights and pictures.
    """

    device: torch.device
    miniature: bool
    folder: Path
    missing: frozenset[str] = frozenset()
    seed: int = 0

    @classmethod
    def prepare(cls, device: str, miniature: bool, folder: Path, missing: frozenset[str]) -> Setting:
        """Prepare this process for a section, and return its setting."""
        keep_freed_memory()  # as the commands do
        logging.basicConfig(format="%(levelname)s %(message)s")
        if miniature and device == "cpu":
            torch.set_num_threads(1)  # several that wait for each other take long where the machine has other work
        return cls(torch.device(device), miniature, folder, missing)

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU of NVIDIA's, or one that torch calls so."""
        return self.device.type == "cuda"

    def sized(self, full: T, small: T) -> T:
        """Return the one or the other value, as everything is large or small."""
        return small if self.miniature else full

    def precisions(self) -> tuple[str, ...]:
        """Return the precisions that the device has."""
        has_bf16 = not self.on_cuda or multiplies_bf16(self.device)
        return ("fp32", *(["bf16"] if has_bf16 else []), "fp16")

    @property
    def fast_precision(self) -> str:
        """The precision of a training on the device."""
        return "bf16" if multiplies_bf16(self.device) else "fp32"

    def needs(self, *packages: str) -> None:
        """Skip a check that needs packages that are not installed.

        Raises:
            Skipped: One is missing.
        """
        lacking = [package for package in packages if package in self.missing]
        if lacking:
            raise Skipped(f"not installed: {', '.join(lacking)}")

    def synchronize(self) -> None:
        """Wait for the device's work."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Return memory that torch keeps to the device."""
        if self.on_cuda:
            torch.cuda.empty_cache()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a folder that is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
            yield Path(name)


def make_picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Return a picture `(1, 3, height, width)` in [0, 1] with the spectrum of photographs."""
    side = min(NOISE_PX, max(height, width))
    tile = natural_noise(1, side, torch.Generator().manual_seed(seed))
    rows, columns = -(-height // side), -(-width // side)
    return tile.repeat(1, 1, rows, columns)[:, :, :height, :width].contiguous()


def make_vgg(config: LossConfig, seed: int) -> VGG19:
    """Return VGG-19 to its deepest tap with random weights, by the rule that keeps the size of activations.

    The weights do not matter for time or precision, and orthogonal ones take many seconds.
    """
    vgg = VGG19(tap_depth(config.taps()))
    generator = torch.Generator().manual_seed(seed)
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return vgg


class CropsInMemory(Batches):
    """Batches of crops of generated pictures; the batch of a step is always the same.

    Args:
        crops: The pictures, uint8 `(count, 3, side, side)`.
        batch_size: Number of crops in a batch.
        pin_memory: Whether batches are in pinned memory.
        damaged_step: Step whose batch is full of NaN, or None.
    """

    def __init__(self, crops: Tensor, batch_size: int, pin_memory: bool, damaged_step: int | None = None) -> None:
        dataset = CropDataset([], ContentConfig(path="samples"), seed=0)
        super().__init__(dataset, batch_size, pin_memory=pin_memory)
        self.crops = crops
        self.pin_memory = pin_memory
        self.damaged_step = damaged_step

    def from_step(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        for step in range(first_step, last_step):
            chosen = torch.randint(len(self.crops), (self.batch_size,), generator=torch.Generator().manual_seed(step))
            batch = self.crops[chosen]
            if step == self.damaged_step:
                batch = torch.full(batch.shape, float("nan"))
            yield batch.pin_memory() if self.pin_memory else batch


@dataclass(frozen=True)
class Task:
    """A training.

    Attributes:
        norm: Norm of the generator.
        width: Width of the generator.
        crop_px: Side of the crops.
        batch: Number of crops in a step.
        steps: Number of steps.
        precision: Precision of the networks.
        compile: `never`, `always`, or `graphs` where the trainer knows it.
        learning_rate: Learning rate, constant.
        loss: Loss.
        deterministic: Whether the same bits are computed at every run.
    """

    norm: str = "instance"
    width: int = 32
    crop_px: int = 256
    batch: int = 4
    steps: int = 1000
    precision: str = "fp32"
    compile: str = "never"
    learning_rate: float = 1e-3
    loss: LossConfig = LOSS
    deterministic: bool = False


def knows_graphs() -> bool:
    """Return whether `train.compile` has CUDA graphs."""
    return "graphs" in get_args(TrainConfig.model_fields["compile"].annotation)


def build_trainer(
    task: Task, device: torch.device, folder: Path = Path(), batches: Batches | None = None, validation: int = 0
) -> Trainer:
    """Return the trainer of a task.

    Args:
        task: The task.
        device: Where to train.
        folder: The run folder.
        batches: Its batches; None: it gets them step by step.
        validation: Number of held-out pictures.
    """
    given: dict[str, Any] = {"deterministic": task.deterministic} if "deterministic" in TrainConfig.model_fields else {}
    config = TrainConfig(
        steps=task.steps,
        batch_size=task.batch,
        learning_rate=task.learning_rate,
        schedule=ScheduleConfig(name="constant", warmup_steps=0),
        precision=task.precision,  # type: ignore[arg-type]
        compile=task.compile,  # type: ignore[arg-type]
        checkpoint_every=task.steps,
        validate_every=task.steps,
        **given,
    )
    compute = Compute.for_training(device, config.precision, config.compile, config.steps)
    compute = dataclasses.replace(compute, deterministic=task.deterministic)  # of any version
    return Trainer(
        make_generator(0, task.norm, task.width),
        PerceptualLoss(make_vgg(task.loss, 0), task.loss, [make_picture(task.crop_px, task.crop_px, 1)[0]]),
        CropsInMemory(make_crops(task, 1), task.batch, False) if batches is None else batches,
        list(make_picture(task.crop_px, task.crop_px * validation, 2)[0].chunk(validation, 2)) if validation else [],
        config,
        compute=compute,
        seed=0,
        run_dir=folder,
        save_best=lambda progress: None,
    )


def make_crops(task: Task, count: int, seed: int = 3) -> Tensor:
    """Return crops, uint8 `(count, 3, side, side)`."""
    return (natural_noise(count, task.crop_px, torch.Generator().manual_seed(seed)) * 255).byte()


@contextmanager
def small_compiler(setting: Setting) -> Iterator[None]:
    """In miniature, let `torch.compile` trace only: compiling takes half a minute."""
    with ExitStack() as stack:
        if setting.miniature:
            compiled = torch.compile

            def traced(function: Any, **options: Any) -> Any:
                return compiled(function, backend="eager", dynamic=options.get("dynamic"))

            stack.enter_context(mock.patch.object(torch, "compile", traced))
        yield


@contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Yield the warnings of stylize's log within the block."""
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger("stylize")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


def make_stylizer(
    setting: Setting, precision: str, width: int = 32, norm: str = "instance", **options: Any
) -> Stylizer:
    """Return a stylizer on the device."""
    return stylizer_of(make_generator(setting.seed, norm, width), setting, precision, **options)


def stylizer_of(generator: Generator, setting: Setting, precision: str, **options: Any) -> Stylizer:
    """Return a stylizer of a network on the device."""
    return Stylizer(generator, Compute(setting.device, precision), **options)


Rows = Any


@torch.inference_mode()
def paint_in_strips(
    stylizer: Stylizer, photograph: Tensor, changes: Mapping[str, Any] | None = None, rows: Rows | None = None
) -> Tensor:
    """Paint a picture in strips, with all maps on the device.

    Args:
        stylizer: Paints.
        photograph: `(1, 3, H, W)` on the device.
        changes: Changes of the plan.
        rows: Returns rows of the photograph as the painter asks for them; None: of `photograph`.

    Returns:
        `(1, 3, H, W)` on the device, float32.
    """
    height, width = photograph.shape[2:]
    stages = stylizer.generator.stages(height, width)
    assert stages is not None
    compute = stylizer.compute
    budget = MemoryBudget(stylizer.device, PLENTY_BYTES, PLENTY_BYTES, Path(tempfile.gettempdir()), PLENTY_BYTES)
    plan: Plan = choose_plan(stages, budget, stylizer.dtype)._replace(**(changes or {}))
    given = rows or partial(_rows, photograph)

    def network_input(first: int, last: int) -> Tensor:
        return compute.network_input(given(first, last))

    painted = torch.empty_like(photograph)
    painter = StripPainter(stages, plan, network_input, height, stylizer.device, stylizer.dtype)
    with stylizer.context(), painter:
        for _ in painter.measure():
            pass
        for first, strip in painter.strips():
            painted[:, :, first : first + strip.shape[2]] = strip[..., :width].float()
    return painted


def _rows(photograph: Tensor, first: int, last: int) -> Tensor:
    return photograph[:, :, first:last]
