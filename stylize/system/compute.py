"""Where and how networks compute: chosen once, taken by the trainer and by the stylizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from stylize.system.devices import choose_device, choose_memory_format, choose_precision

# A GPU is busy with so many pixels at a time; smaller pictures are painted several together.
PIXELS_TOGETHER = 1 << 20


@dataclass(frozen=True)
class Compute:
    """A device, a floating-point precision, and what follows from them.

    No other room asks which kind of device there is: what depends on it is a property here.

    Attributes:
        device: Where networks compute.
        precision: `fp32`, or `bf16` for autocast to bfloat16.
        compiled: Whether the training step goes through `torch.compile`.
    """

    device: torch.device
    precision: str = "fp32"
    compiled: bool = False

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Compute:
        """The choice for a device and a precision by name.

        Args:
            device: `auto`, `cpu`, `cuda` or `mps`; `auto`: CUDA, else MPS, else CPU.
            precision: `auto`, `fp32` or `bf16`; `auto`: bf16 on GPUs that multiply it in hardware.

        Raises:
            StylizeError: torch does not find the device.

        >>> Compute.choose("cpu").precision
        'fp32'
        """
        found = choose_device(device)
        return cls(found, choose_precision(precision, found))

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.device.type

    @property
    def dtype(self) -> torch.dtype:
        """The type of the networks' maps."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout that the device's convolutions prefer."""
        return choose_memory_format(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which networks compute in the precision."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.kind, dtype=self.dtype)

    @property
    def has_own_memory(self) -> bool:
        """Whether the device has memory beside the host's."""
        return self.kind != "cpu"

    @property
    def leaves_cores_idle(self) -> bool:
        """Whether the host's cores are free for decoding and encoding while networks compute."""
        return self.kind == "cuda"

    @property
    def image_by_image(self) -> bool:
        """Whether the loss takes one image after the other, so that the maps of one at a time fill the cache."""
        return self.kind == "cpu" and self.precision == "fp32" and not self.compiled

    @property
    def by_stages(self) -> bool:
        """Whether a picture that is not compiled for is painted stage by stage, in one piece of memory."""
        return self.kind == "cpu" and self.precision == "fp32"

    @property
    def has_fused_optimizers(self) -> bool:
        """Whether torch's optimizers have fused kernels for the device."""
        return self.kind in ("cpu", "cuda")

    def pictures_together(self, size: tuple[int, int]) -> int:
        """How many pictures of this width and height are painted together.

        One by one on a CPU, where one picture keeps all cores busy, and several leave its cache.
        """
        width, height = size
        return max(1, PIXELS_TOGETHER // (width * height)) if self.kind == "cuda" else 1
