"""The workloads of both sides, and the player that times one in its own process."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmarks.measuring import Memory, MemoryGauge, environment, timed
from benchmarks.plain import PlainLoss, PlainVGG, copy_parameters_, plain_generator
from benchmarks.settings import LOSS, WIDTH, Settings, make_crops, make_generator, make_images, make_style, make_vgg
from numpy.typing import NDArray
from torch import Tensor, nn

from stylize.inference.plans import MemoryBudget, choose_plan
from stylize.inference.strips import StripPainter
from stylize.inference.stylizer import Stylizer
from stylize.losses.perceptual import PerceptualLoss
from stylize.pictures.picture import Picture
from stylize.system.compute import Compute
from stylize.system.devices import choose_precision
from stylize.system.memory import keep_freed_memory, return_freed_memory
from stylize.system.threads import SHORT_SPINS
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig
from stylize.training.schedule import ScheduleConfig
from stylize.training.trainer import TrainConfig, Trainer

LEARNING_RATE = 1e-3
# Environment variables of the processes, as the commands set them.
ENVIRONMENT = SHORT_SPINS


class Workload:
    """A task to time.

    Attributes:
        result: Name of the result.
        generator: The network that computes.
        choices: Precision, memory format and compilation, by name.
    """

    result: str
    generator: nn.Module
    choices: dict[str, str]

    def run(self) -> Tensor:
        """Run the task once; return the result on the CPU."""
        raise NotImplementedError  # abstract: each workload is this function


class StylizeTraining(Workload):
    """A training step of stylize's trainer."""

    result = "loss"

    def __init__(self, settings: Settings, norm: str = "instance") -> None:
        keep_freed_memory()  # as `stylize train` does
        assert settings.precision != "fp16"  # there is no training in it
        device = settings.torch_device()
        generator = make_generator(settings.seed, norm).train()
        loss = PerceptualLoss(make_vgg(settings.seed), LOSS, [make_style(settings)])
        config = TrainConfig(
            batch_size=settings.batch,
            optimizer="adam",  # as the plain side
            norm_rate=1.0,
            shift_weight=0.0,
            learning_rate=LEARNING_RATE,
            schedule=ScheduleConfig(name="constant", warmup_steps=0),
            precision=settings.precision,
            compile=settings.compile,
        )
        self.crops = make_crops(settings)
        compute = Compute.for_training(device, config.precision, config.compile, config.steps)
        self.trainer = Trainer(
            generator,
            loss,
            Batches(CropDataset([], ContentConfig(path="samples"), seed=0), settings.batch),  # not used
            validation=[],
            config=config,
            compute=compute,
            seed=settings.seed,
            run_dir=Path(),
            save_best=lambda progress: None,
        )
        self.generator = generator
        self.choices = choices(compute.precision, compute.memory_format, compute.compiled)

    def run(self) -> Tensor:
        return self.trainer.step(self.crops)["total"].cpu()


class PlainTraining(Workload):
    """A training step as in the widely copied scripts."""

    result = "loss"

    def __init__(self, settings: Settings) -> None:
        self.device = settings.torch_device()
        self.generator = plain_generator(WIDTH).to(self.device)
        vgg = PlainVGG().to(self.device)
        copy_parameters_(self.generator, make_generator(settings.seed))
        copy_parameters_(vgg, make_vgg(settings.seed))
        self.loss = PlainLoss(vgg, make_style(settings).to(self.device))
        self.optimizer = torch.optim.Adam(self.generator.parameters(), LEARNING_RATE)
        self.crops = make_crops(settings)
        self.choices = choices("fp32", torch.contiguous_format, compiled=False)

    def run(self) -> Tensor:
        content = self.crops.to(self.device).float() / 255
        self.optimizer.zero_grad()
        loss = self.loss(self.generator(content), content)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach().cpu()


class StylizeApply(Workload):
    """Painting with `Stylizer`."""

    result = "picture"

    def __init__(self, settings: Settings) -> None:
        device = settings.torch_device()
        precision = choose_precision(settings.precision, device)
        self.stylizer = Stylizer(make_generator(settings.seed), Compute(device, precision))
        self.generator = self.stylizer.generator
        self.picture = Picture(make_images(1, settings.size, settings.seed + 3)[0])
        self.choices = choices(precision, memory_format_of(self.generator), compiled=False)

    def run(self) -> Tensor:
        return self.stylizer(self.picture).rgb


class StripsApply(Workload):
    """Painting in strips.

    Args:
        settings: Size, device, precision, seed.
        on_disk: Whether to keep maps on disk, in the folder for temporary files.
    """

    result = "picture"

    def __init__(self, settings: Settings, *, on_disk: bool) -> None:
        keep_freed_memory()  # as `stylize apply` does for large pictures
        device = settings.torch_device()
        precision = choose_precision(settings.precision, device)
        self.stylizer = Stylizer(make_generator(settings.seed), Compute(device, precision))
        self.generator = self.stylizer.generator
        self.photograph = make_images(1, settings.size, settings.seed + 3).to(device)
        stages = self.generator.stages(settings.size, settings.size)
        assert stages is not None
        self.stages = stages
        folder = Path(tempfile.gettempdir())
        plan = choose_plan(stages, MemoryBudget(device, 2**62, 2**62, folder, 2**62), self.stylizer.dtype)
        self.plan = plan._replace(place=folder) if on_disk else plan
        self.choices = choices(precision, memory_format_of(self.generator), compiled=False)

    @torch.inference_mode()
    def run(self) -> Tensor:
        painted = torch.empty(self.photograph.shape[1:])
        height, device = painted.shape[1], self.photograph.device
        painter = StripPainter(self.stages, self.plan, self._rows, height, device, self.stylizer.dtype)
        with self.stylizer.context(), painter:
            for _ in painter.measure():
                pass
            for first, strip in painter.strips():
                painted[:, first : first + strip.shape[2]] = strip[0].float()
        return painted

    def _rows(self, first: int, last: int) -> Tensor:
        return self.photograph[:, :, first:last]


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


class Round(NamedTuple):
    """One turn of a side.

    Attributes:
        values: Results of the first call of the turn, by name.
        seconds: Seconds of each timed repeat.
        memory: Memory until the end of the turn.
        environment: Environment and choices of the process.
    """

    values: dict[str, NDArray[np.float32]]
    seconds: list[float]
    memory: Memory
    environment: dict[str, str]


class WorkloadPlayer:
    """Times a workload.

    Args:
        make: Creates the workload.
        settings: Argument of `make`.
    """

    def __init__(self, make: Callable[[Settings], Workload], settings: Settings) -> None:
        self.device = settings.torch_device()
        self.workload = make(settings)
        gc.collect()
        return_freed_memory()  # memory of the creation of inputs must not be measured
        self.gauge = MemoryGauge(self.device)

    def play(self, steps: int) -> Round:
        """A warm-up, then `steps` timed repeats."""
        first = self.play_first_call()
        return first._replace(
            seconds=[timed(self.workload.run, self.device) for _ in range(steps)], memory=self.gauge.read()
        )

    def play_first_call(self) -> Round:
        """One call, timed, with nothing before it."""
        outputs: list[Tensor] = []
        seconds = timed(lambda: outputs.append(self.workload.run()), self.device)
        values = {self.workload.result: outputs[0].float().numpy()}
        gradients = [p.grad for p in self.workload.generator.parameters() if p.grad is not None]
        if gradients:
            values["gradient norm"] = torch.nn.utils.get_total_norm(gradients).cpu().numpy()
        told = {**environment(self.device), **self.workload.choices}
        return Round(values, [seconds], self.gauge.read(), told)
