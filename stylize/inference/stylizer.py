"""A model and a picture → the painted picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.generators import Generator
from stylize.generators.base import check_size
from stylize.inference.strokes import enlarged, shrunk_size
from stylize.inference.whole import layout_of, paint_whole
from stylize.ops.cpu import norm as channelwise
from stylize.ops.cpu.winograd import load_compiled_functions
from stylize.pictures.picture import Picture, limited_size
from stylize.system.devices import choose_memory_format
from stylize.system.memory import return_freed_memory

logger = logging.getLogger("stylize")

# Luma and chroma of ITU-R BT.601, full range, as JPEG uses them.
RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

# A GPU is busy with this much at a time; of smaller pictures several go together.
PIXELS_TOGETHER = 1 << 20


class Paint(NamedTuple):
    """How to paint.

    Attributes:
        strength: 0 gives the photograph, 1 the painted picture; between, a mixture of the two.
        keep_colors: Take the luminance from the painted picture and the colour from the photograph.
        max_size_px: Shrink larger pictures to this longer side first.
        stroke_scale: Paint strokes so many times as large, 1 to 8: pictures are painted at this fraction of their
            size, and enlarged by the photograph's detail.
    """

    strength: float = 1.0
    keep_colors: bool = False
    max_size_px: int | None = None
    stroke_scale: float = 1.0


class Shape(NamedTuple):
    """Of pictures that are painted together: how many, and their width and height in px."""

    pictures: int
    width: int
    height: int


class Stylizer:
    """Paints pictures with a generator.

    Args:
        generator: The network; it is put on the device, in `eval()`.
        device: Where to compute.
        precision: `fp32`, or `bf16` for autocast.
        compiled: For which shapes the network is compiled, when the first pictures of a shape come.
    """

    def __init__(
        self,
        generator: Generator,
        device: torch.device,
        precision: str = "fp32",
        compiled: Collection[Shape] = (),
    ) -> None:
        self.memory_format = choose_memory_format(device)
        self.generator = generator.to(device).eval()
        self.generator.to(memory_format=self.memory_format)
        self.device = device
        self.precision = precision
        self.compiled = frozenset(compiled)
        if device.type == "cpu" and precision == "fp32":
            channelwise.load_compiled_functions()
            load_compiled_functions()  # before anyone plans what memory is left
            return_freed_memory()
        # Every shape by itself: sizes that are known are faster, and those that are rare are not compiled at all.
        self._compiled_network: Callable[[Tensor], Tensor] | None = (
            torch.compile(self.generator, dynamic=False) if compiled else None
        )

    def __call__(self, picture: Picture, paint: Paint = Paint()) -> Picture:  # noqa: B008  # immutable
        """Paint one picture; size and transparency stay, but for `max_size_px`.

        Raises:
            StylizeError: The picture is smaller than the generator can take, with its stroke scale.
        """
        return self.paint_many([picture], paint)[0]

    @torch.inference_mode()
    def paint_many(
        self,
        pictures: Sequence[Picture],
        paint: Paint = Paint(),  # noqa: B008  # immutable
    ) -> list[Picture]:
        """Paint pictures of one size together, every one as it would be painted alone.

        Args:
            pictures: One or more; with `max_size_px`, of one size when they are shrunk.
            paint: How.

        Raises:
            StylizeError: The pictures are smaller than the generator can take, with their stroke scale.
            ValueError: They are of several sizes.
        """
        pictures = [limit_size(picture, paint.max_size_px) for picture in pictures]
        sizes = sorted({picture.size for picture in pictures})
        if len(sizes) != 1:
            raise ValueError(f"pictures to paint together: got the sizes {sizes}, must be of one")
        images = [picture.rgb[None] for picture in pictures]
        together = images[0] if len(images) == 1 else torch.cat(images)
        photographs = together.to(self.device)
        size = shrunk_size(sizes[0], paint.stroke_scale)
        if size == sizes[0]:
            painted = self._painted(photographs)
        else:
            small = shrink(together, size).to(self.device)
            painted = enlarged(small, self._painted(small), photographs)
        painted = finished(photographs, painted, paint).cpu()
        return [Picture(rgb, picture.alpha) for rgb, picture in zip(painted, pictures, strict=True)]

    @property
    def dtype(self) -> torch.dtype:
        """In which the network's maps are."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Within it the network computes in its precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _painted(self, photographs: Tensor) -> Tensor:
        with self.autocast():
            return self._network(photographs).float()

    @property
    def by_stages(self) -> bool:
        """Whether a picture that is not compiled for is painted stage by stage, if its generator has stages."""
        return self.device.type == "cpu" and self.precision == "fp32"

    def values_per_px(self, size: tuple[int, int]) -> float:
        """How many values a pixel of a picture of this width and height all maps have in memory at most."""
        width, height = size
        stages = self.generator.stages(height, width) if self.by_stages else None
        return self.generator.values_per_px if stages is None else layout_of(stages).values / (width * height)

    def _network(self, photographs: Tensor) -> Tensor:
        count, _, height, width = photographs.shape
        if self._compiled_network is not None and Shape(count, width, height) in self.compiled:
            try:
                return self._compiled_network(photographs.contiguous(memory_format=self.memory_format))
            except RuntimeError as error:  # what torch.compile raises: its compiler may lack anything
                self._compiled_network = None
                reason = str(error).strip().partition("\n")[0]
                logger.warning("--compile: compilation failed (%s); painting without", reason)
        check_size(height, width)
        stages = self.generator.stages(height, width) if self.by_stages else None
        if stages is not None:
            pictures = [paint_whole(stages, photograph[None]) for photograph in photographs]
            return pictures[0] if count == 1 else torch.cat(pictures)
        painted: Tensor = self.generator(photographs.contiguous(memory_format=self.memory_format))
        return painted


def finished(photographs: Tensor, painted: Tensor, paint: Paint) -> Tensor:
    """What is left to do at full size, pixel by pixel: colours and strength; `(N, 3, H, W)` in [0, 1]."""
    if paint.keep_colors:
        painted = with_colors_of(photographs, painted)
    if paint.strength != 1:
        painted = torch.lerp(photographs, painted, paint.strength)
    return painted.clamp(0, 1)


def pictures_together(device: torch.device, size: tuple[int, int]) -> int:
    """How many pictures of this width and height are painted together.

    One by one on a CPU, where one picture keeps all cores busy, and several leave its cache.
    """
    width, height = size
    return max(1, PIXELS_TOGETHER // (width * height)) if device.type == "cuda" else 1


def limit_size(picture: Picture, max_size_px: int | None) -> Picture:
    """Shrink a picture whose longer side exceeds the limit, antialiased."""
    size = limited_size(picture.size, max_size_px)
    if size == picture.size:
        return picture
    alpha = None if picture.alpha is None else shrink(picture.alpha[None], size)[0]
    return Picture(shrink(picture.rgb[None], size)[0], alpha)


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `(N, C, H, W)` at a smaller width and height, antialiased."""
    resized = F.interpolate(images, size[::-1], mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def with_colors_of(photograph: Tensor, painted: Tensor) -> Tensor:
    """The luminance of `painted` with the colour of `photograph`, both `(N, 3, H, W)`, clipped to [0, 1]."""
    matrix = painted.new_tensor(RGB_TO_YCC)
    luma = torch.einsum("c,nchw->nhw", matrix[0], painted)
    chroma = torch.einsum("kc,nchw->nkhw", matrix[1:], photograph)
    mixed = torch.cat([luma[:, None], chroma], dim=1)
    return torch.einsum("ck,nkhw->nchw", torch.linalg.inv(matrix), mixed).clamp(0, 1)
