"""What computes a network: the seam between pictures and backends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cached_property
from threading import Lock
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stylize import ops
from stylize.errors import StylizeError
from stylize.generators import Generator
from stylize.generators.base import Stage, check_size, with_margin, without_margin
from stylize.inference.footprint import Footprint, footprint
from stylize.inference.plans import whole_bytes
from stylize.inference.whole import layout_of, paint_whole
from stylize.system.compute import Compute
from stylize.system.devices import is_out_of_memory
from stylize.system.memory import return_freed_memory

logger = logging.getLogger("stylize")

KEPT_SIZES = 8  # sizes for which the stages of the network are kept


class Painter(Protocol):
    """A backend that paints with one network.

    The stylizer and the jobs know a backend by this protocol only. Another one, for example for ONNX Runtime, needs
    these two methods and no change elsewhere. They are called from several threads at once.
    """

    def paint(self, photographs: Tensor) -> Tensor:
        """Paint photographs of one size.

        Args:
            photographs: `(N, 3, H, W)` in [0, 1], float32, on the device of the stylizer.

        Returns:
            The stylized pictures, of the same shape, type and device.

        Raises:
            StylizeError: The photographs are smaller than the network can take.
        """

    def bytes_for(self, size: tuple[int, int]) -> int:
        """Estimated device memory in bytes for painting one picture of this width and height as a whole."""


class Shape(NamedTuple):
    """Shape of a batch: number of pictures, width and height in px."""

    pictures: int
    width: int
    height: int


class TorchPainter:
    """Paints with PyTorch.

    Args:
        generator: The network. It is moved to the device, put into `eval()`, and its weights are frozen.
        compute: Device and precision.
        compiled: Shapes for which the network is compiled, each when its first batch comes.
    """

    def __init__(self, generator: Generator, compute: Compute, compiled: Collection[Shape] = ()) -> None:
        # Frozen weights are transformed for Winograd's algorithm once, others anew for every picture.
        self.generator = generator.to(compute.device).eval().requires_grad_(False)
        self.generator.to(memory_format=compute.memory_format)
        self.generator.hold_in(compute.dtype)
        self.compute = compute
        self.compiled = frozenset(compiled)
        self._stages: dict[tuple[int, int], list[Stage] | None] = {}
        self._stages_lock = Lock()
        if not compute.has_own_memory:
            ops.load_kernels(compute.dtype)  # before the remaining memory is divided
            return_freed_memory()
        # One graph a shape: static shapes run faster, and rare shapes are not compiled at all.
        self._compiled_network: Callable[[Tensor], Tensor] | None = (
            torch.compile(self.generator, dynamic=False) if compiled else None
        )

    def paint(self, photographs: Tensor) -> Tensor:
        """Paint photographs of one size; see `Painter`.

        Raises:
            StylizeError: A photograph is smaller than the network can take, or its maps have more values than the
                device can index.
        """
        count, _, height, width = photographs.shape
        check_size(height, width)
        together = self.indexable_pictures((width, height))
        if together == 0:
            raise StylizeError(
                f"got an image of {width}×{height} px, whose maps have more values than the "
                f"{self.compute.indexable_values} that {self.compute.device} can index; files of this size are painted "
                "in strips, and max_size shrinks an image"
            )
        with self.compute.context():
            if together is None or count <= together:
                return self._network(self.compute.network_input(photographs))
            parts = torch.split(photographs, together)
            return torch.cat([self._network(self.compute.network_input(part)) for part in parts])

    def bytes_for(self, size: tuple[int, int]) -> int:
        """Estimated device memory in bytes for one picture; see `Painter`."""
        width, height = size
        stages = self.stages(size) if self.compute.by_stages else None
        if stages is None:
            bytes_per_px = self.footprint.bytes_per_px
        else:
            bytes_per_px = layout_of(stages).values * self.compute.dtype.itemsize / (width * height)
        return whole_bytes(bytes_per_px, size, self.compute.device)

    def indexable_pictures(self, size: tuple[int, int]) -> int | None:
        """How many pictures of this width and height have maps together that the device can index; None: any number."""
        most = self.compute.indexable_values
        return None if most is None else int(most // (self.footprint.values_per_px * size[0] * size[1]))

    @cached_property
    def footprint(self) -> Footprint:
        """What the maps of the network take where it is not painted by stages."""
        return footprint(self.generator)

    def stages(self, size: tuple[int, int]) -> list[Stage] | None:
        """The stages of the generator for a picture of this width and height, margins included; built once a size."""
        margins = 2 * self.generator.margin
        width, height = size[0] + margins, size[1] + margins
        with self._stages_lock:
            if size not in self._stages:
                if len(self._stages) == KEPT_SIZES:
                    del self._stages[next(iter(self._stages))]
                self._stages[size] = self.generator.stages(height, width)
            return self._stages[size]

    def _network(self, photographs: Tensor) -> Tensor:
        count, _, height, width = photographs.shape
        if self._compiled_network is not None and Shape(count, width, height) in self.compiled:
            try:
                return self._compiled_network(photographs)
            except RuntimeError as error:  # torch.compile raises it for whatever its compiler lacks
                if is_out_of_memory(error):
                    raise
                self._compiled_network = None
                reason = str(error).strip().partition("\n")[0]
                logger.warning("--compile: compilation failed (%s); painting without", reason)
        stages = self.stages((width, height)) if self.compute.by_stages else None
        if stages is not None:
            margin = self.generator.margin
            pictures = [
                without_margin(paint_whole(stages, with_margin(photograph[None], margin)), margin)
                for photograph in photographs
            ]
            return pictures[0] if count == 1 else torch.cat(pictures)
        painted: Tensor = self.generator(photographs)
        return painted
