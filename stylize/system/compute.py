"""Where and how networks compute: chosen once, taken by the trainer and by the stylizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from stylize.system.compiler import GRAPHS, choose_compile, keep_compiled_code
from stylize.system.devices import (
    choose_device,
    choose_memory_format,
    choose_precision,
    has_antialiased_resizing,
    has_own_memory,
    indexable_values,
)
from stylize.system.memory import available_bytes
from stylize.system.numerics import Numerics, numerics, prepare_determinism
from stylize.system.transfer import DeviceWaits, HostWaits, Waits

logger = logging.getLogger("stylize")

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")
Module = TypeVar("Module", bound=nn.Module)

# Cores that decoding leaves to the training process, whose thread feeds the GPU, and to the copies to it.
CORES_KEPT = 2
# A GPU is busy with so many pixels at a time; smaller pictures are painted several together.
PIXELS_TOGETHER = 1 << 20
MAP_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device, a floating-point precision, and what follows from them.

    No other room asks which kind of device there is: what depends on it is a property here.

    Attributes:
        device: Where networks compute.
        precision: `fp32`, `bf16` or `fp16`: the type of the networks' maps.
        compiled: Whether the training step goes through `torch.compile`.
        graphs: Whether the compiled step is replayed as CUDA graphs.
        deterministic: Whether CUDA computes the same bits at every run.
        tuned: Whether cuDNN tries its algorithms; pays where shapes repeat.
    """

    device: torch.device
    precision: str = "fp32"
    compiled: bool = False
    deterministic: bool = False
    tuned: bool = False
    graphs: bool = False

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Compute:
        """The choice for inference, for a device and a precision by name.

        Args:
            device: `auto`, `cpu`, `cuda` or `mps`; `auto`: CUDA, else MPS, else CPU.
            precision: `auto`, `fp32`, `bf16` or `fp16`; see `choose_precision`.

        Raises:
            StylizeError: torch does not find the device.

        >>> Compute.choose("cpu", "bf16").dtype
        torch.bfloat16
        """
        found = choose_device(device)
        return cls(found, choose_precision(precision, found, inference=True))

    @classmethod
    def for_training(
        cls, device: torch.device, precision: str, compile_step: str, steps: int, deterministic: bool = False
    ) -> Compute:
        """The choice for a training; what `auto` chose is logged. Call it before the first computation on the device.

        Args:
            device: The device of this process.
            precision: `train.precision`.
            compile_step: `train.compile`.
            steps: Number of training steps: compilation pays in long runs only.
            deterministic: `train.deterministic`.

        Raises:
            StylizeError: Compilation was asked for, but no compiler is found; or CUDA graphs where there are none.
        """
        if deterministic:
            prepare_determinism()
        chosen = choose_precision(precision, device)
        if precision == "auto":
            logger.info("train.precision: auto on %s is %s", device.type, chosen)
        return cls(
            device,
            chosen,
            compiled=choose_compile(compile_step, device, steps),
            deterministic=deterministic,
            tuned=device.type == "cuda",
            graphs=compile_step == GRAPHS,
        )

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.device.type

    @property
    def dtype(self) -> torch.dtype:
        """The type of the networks' maps."""
        return MAP_TYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout that the device's convolutions prefer."""
        return choose_memory_format(self.device)

    def context(self) -> AbstractContextManager[object]:
        """A context for all that networks compute, forward and backward: how exactly CUDA's libraries do it.

        In fp32 their products are float32's own; else what stays in float32 may be rounded to TensorFloat-32.
        """
        if self.kind != "cuda":
            return nullcontext()
        return numerics(Numerics(self.precision != "fp32", self.deterministic, self.tuned))

    def exact_context(self) -> AbstractContextManager[object]:
        """A context for what must be as exact as float32 in any precision, such as colors; also within `context`."""
        if self.kind != "cuda":
            return nullcontext()
        return numerics(Numerics(False, self.deterministic, self.tuned))

    def network_input(self, images: Tensor) -> Tensor:
        """Return images as a network takes them: on the device, in its memory layout."""
        return images.to(self.device, memory_format=self.memory_format)

    def photographs(self, images: Tensor) -> Tensor:
        """Return photographs, uint8 or float, as floats in [0, 1], on the device, in its memory layout."""
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return images.contiguous(memory_format=self.memory_format)

    @property
    def has_own_memory(self) -> bool:
        """Whether the device has memory beside the host's."""
        return has_own_memory(self.device)

    @property
    def indexable_values(self) -> int | None:
        """The most values that a map may have; None: as many as the memory holds."""
        return indexable_values(self.device)

    @property
    def has_antialiased_resizing(self) -> bool:
        """Whether the device resizes with antialiased bicubic interpolation."""
        return has_antialiased_resizing(self.device)

    @property
    def file_threads(self) -> int:
        """Number of threads that read files beside the painting, and of those that write them."""
        return max(1, usable_cores() // 2) if self.leaves_cores_idle else 1

    @property
    def leaves_cores_idle(self) -> bool:
        """Whether the host's cores are free for decoding and encoding while networks compute."""
        return self.kind == "cuda"

    @property
    def image_by_image(self) -> bool:
        """Whether the loss takes one image after the other, so that the maps of one at a time fill the cache."""
        return self.kind == "cpu" and not self.compiled

    @property
    def copies_in_background(self) -> bool:
        """Whether batches in pinned memory are copied to the device while it computes."""
        return self.kind == "cuda"

    @property
    def checks_late(self) -> bool:
        """Whether the device itself passes over a step that is not finite, and the host hears of it later.

        A host that asked after every step would wait for the device, which would then wait for the host.
        """
        return self.kind == "cuda"

    def waits(self) -> Waits:
        """A clock for the time in which a training waits for photographs."""
        return DeviceWaits(self.device) if self.kind == "cuda" else HostWaits()

    @property
    def by_stages(self) -> bool:
        """Whether a picture that is not compiled for is painted stage by stage, in one piece of memory."""
        return self.kind == "cpu" and self.precision == "fp32"

    @property
    def has_fused_optimizers(self) -> bool:
        """Whether torch's optimizers have fused kernels for the device."""
        return self.kind in ("cpu", "cuda")

    def place(self, module: Module) -> Module:
        """Move a module to the device and to its memory layout; returns the module itself."""
        return module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]

    def compile(self, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """The function itself, or compiled where that was chosen; it compiles when it is first called."""
        if not self.compiled:
            return function
        keep_compiled_code()
        return torch.compile(function, mode="reduce-overhead") if self.graphs else torch.compile(function)

    @property
    def steps_that_compile(self) -> int:
        """Number of the first training steps in which something is compiled or recorded.

        A CUDA graph is recorded in the second step, and replayed from the third on.
        """
        if not self.compiled:
            return 0
        return 3 if self.graphs else 1

    def begin_step(self) -> None:
        """Tell CUDA graphs that results of the step before are not needed any more."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def decoding_workers(self, cached_bytes: int | None = None) -> int:
        """Number of processes that decode photographs for this one; 0: this one does it.

        Beside a CPU that trains, decoding in another process wins nothing. Reading crops from a cache that fits into
        memory takes a tenth of a millisecond each, less than their way from another process.

        Args:
            cached_bytes: Size of the cache of decoded photographs, or about; None: there is none.
        """
        if self.kind == "cpu" or (cached_bytes is not None and cached_bytes < available_bytes()):
            return 0
        told = os.environ.get("LOCAL_WORLD_SIZE", "")
        processes_here = max(1, int(told)) if told.isdecimal() else 1
        return max(1, usable_cores() // processes_here - CORES_KEPT)

    def random_states(self) -> list[Tensor]:
        """The states of the random generators of this device, for a checkpoint; a CPU has none beside torch's own."""
        if self.kind == "cuda":
            return [torch.cuda.get_rng_state(self.device)]
        return [torch.mps.get_rng_state()] if self.kind == "mps" else []

    def set_random_states(self, states: Sequence[Tensor]) -> None:
        """Set the states that `random_states` returned on a device of the same kind.

        Of the states of several devices, as older versions kept them, the first is taken.
        """
        if self.kind == "cuda" and states:
            torch.cuda.set_rng_state(states[0].cpu(), self.device)
        elif self.kind == "mps" and states:
            torch.mps.set_rng_state(states[0].cpu())

    def pictures_together(self, size: tuple[int, int]) -> int:
        """How many pictures of this width and height are painted together.

        One by one on a CPU, where one picture keeps all cores busy, and several leave its cache.
        """
        width, height = size
        return max(1, PIXELS_TOGETHER // (width * height)) if self.kind == "cuda" else 1


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
