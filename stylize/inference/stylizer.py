"""A model and pictures → stylized pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.errors import StylizeError
from stylize.generators import Generator
from stylize.inference.options import PaintOptions
from stylize.inference.painter import Painter, Shape, TorchPainter
from stylize.inference.strokes import DEVICE_STRIP_PIXELS, STRIP_PIXELS, enlarged, shrunk_size
from stylize.pictures.picture import LUMA, Picture, limited_size
from stylize.system.compute import Compute
from stylize.system.devices import CPU, has_antialiased_resizing

# Luma and chroma of ITU-R BT.601, full range, as JPEG uses them.
RGB_TO_YCC = (LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Refines(Protocol):
    """Refines paintings, `(N, 3, H, W)` in [0, 1], of photographs of that shape."""

    def __call__(self, photographs: Tensor, painted: Tensor) -> Tensor:
        """Return the refined paintings."""

    def bytes_for(self, size: tuple[int, int]) -> int:
        """Return about how much memory it takes for a picture of this width and height."""


class Stylizer:
    """Paints pictures; several threads may share one.

    Args:
        network: A generator, whose weights are frozen, or the painter of another backend.
        compute: Device and precision.
        compiled: Shapes for which a generator is compiled, each when its first batch comes.
        refiner: Refines what the network has painted; None: nothing does.
    """

    def __init__(
        self,
        network: Generator | Painter,
        compute: Compute,
        compiled: Collection[Shape] = (),
        refiner: Refines | None = None,
    ) -> None:
        self.painter: Painter = TorchPainter(network, compute, compiled) if isinstance(network, Generator) else network
        self.compute = compute
        self.refiner = refiner

    def __call__(self, picture: Picture, options: PaintOptions = PaintOptions()) -> Picture:  # noqa: B008  # immutable
        """Paint one picture; it keeps its size, except for `max_size_px`, and its transparency.

        Raises:
            StylizeError: The picture is smaller than the generator can take at this stroke scale.
        """
        return self.paint_many([picture], options)[0]

    @torch.inference_mode()
    def paint_many(
        self,
        pictures: Sequence[Picture],
        options: PaintOptions = PaintOptions(),  # noqa: B008  # immutable
    ) -> list[Picture]:
        """Paint pictures of one size together, each as it would be painted alone.

        Args:
            pictures: One or more, all of one size after `max_size_px` has been applied.
            options: How to paint.

        Returns:
            The stylized pictures, on the device where the photographs are.

        Raises:
            StylizeError: The pictures are smaller than the generator can take at this stroke scale.
            ValueError: They are of several sizes.
        """
        pictures = [limit_size(picture, options.max_size_px) for picture in pictures]
        sizes = sorted({picture.size for picture in pictures})
        if len(sizes) != 1:
            raise ValueError(f"pictures to paint together: got the sizes {sizes}, must be of one")
        images = [picture.rgb[None] for picture in pictures]
        together = images[0] if len(images) == 1 else torch.cat(images)
        painted = self.paint_batch(together, options).to(together.device)
        return [Picture(rgb, picture.alpha) for rgb, picture in zip(painted, pictures, strict=True)]

    @torch.inference_mode()
    def paint_batch(self, images: Tensor, options: PaintOptions) -> Tensor:
        """Paint photographs of one size, each as it would be painted alone.

        Args:
            images: `(N, 3, H, W)` in [0, 1], float32, on any device.
            options: How to paint; `max_size_px` has been applied already.

        Returns:
            `(N, 3, H, W)` in [0, 1], float32, on the device of the stylizer.

        Raises:
            StylizeError: The photographs are smaller than the generator can take at this stroke scale.
        """
        photographs = images.to(self.device)
        full_size = (images.shape[3], images.shape[2])
        size = shrunk_size(full_size, options.stroke_scale)
        if size == full_size:
            painted = self._painted(photographs)
        else:
            small = shrink(photographs if self.compute.has_antialiased_resizing else images, size).to(self.device)
            pixels = DEVICE_STRIP_PIXELS if self.compute.has_own_memory else STRIP_PIXELS
            painted = enlarged(small, self._painted(small), photographs, pixels)
        with self.compute.exact_context():
            return finished(photographs, painted, options)

    def _painted(self, photographs: Tensor) -> Tensor:
        painted = self.painter.paint(photographs)
        return painted if self.refiner is None else self.refiner(photographs, painted.float())

    def bytes_for(self, size: tuple[int, int]) -> int:
        """Estimated device memory in bytes for painting one picture of this width and height as a whole."""
        return max(self.painter.bytes_for(size), 0 if self.refiner is None else self.refiner.bytes_for(size))

    def can_index(self, size: tuple[int, int]) -> bool:
        """Whether the device can index the maps of one picture of this width and height as a whole."""
        return not isinstance(self.painter, TorchPainter) or self.painter.indexable_pictures(size) != 0

    @property
    def torch_painter(self) -> TorchPainter:
        """The painter, if it can paint in strips.

        Raises:
            StylizeError: It cannot.
        """
        if isinstance(self.painter, TorchPainter):
            return self.painter
        raise StylizeError(
            "this picture does not fit into memory as a whole, and only PyTorch models can be painted in strips; "
            "--max-memory allows more, --max-size shrinks the picture"
        )

    @property
    def generator(self) -> Generator:
        """The PyTorch network; see `torch_painter`."""
        return self.torch_painter.generator

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.compute.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's maps."""
        return self.compute.dtype

    def context(self) -> AbstractContextManager[object]:
        """A context in which the network computes; see `Compute.context`."""
        return self.compute.context()


def finished(photographs: Tensor, painted: Tensor, options: PaintOptions) -> Tensor:
    """Apply colors and strength, pixel by pixel at full size: `(N, 3, H, W)` in [0, 1]."""
    if options.keep_colors:
        painted = with_colors_of(photographs, painted)
    if options.strength != 1:
        painted = torch.lerp(photographs, painted, options.strength)
    return painted.clamp(0, 1)


def limit_size(picture: Picture, max_size_px: int | None) -> Picture:
    """Shrink a picture whose longer side exceeds the limit, antialiased."""
    size = limited_size(picture.size, max_size_px)
    if size == picture.size:
        return picture
    alpha = None if picture.alpha is None else shrink(picture.alpha[None], size)[0]
    return Picture(shrink(picture.rgb[None], size)[0], alpha)


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `(N, C, H, W)` at a smaller width and height, antialiased."""
    resizable = images if has_antialiased_resizing(images.device) else images.cpu()
    resized = F.interpolate(resizable, size[::-1], mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(images.device)


def with_colors_of(photograph: Tensor, painted: Tensor) -> Tensor:
    """The luminance of `painted` with the colors of `photograph`, both `(N, 3, H, W)`, clipped to [0, 1]."""
    to_ycc, to_rgb = _color_matrices(painted.device, painted.dtype)
    luma = torch.einsum("c,nchw->nhw", to_ycc[0], painted)
    chroma = torch.einsum("kc,nchw->nkhw", to_ycc[1:], photograph)
    mixed = torch.cat([luma[:, None], chroma], dim=1)
    return torch.einsum("ck,nkhw->nchw", to_rgb, mixed).clamp(0, 1)


@lru_cache
def _color_matrices(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The matrix from RGB to luma and chroma, and its inverse; made once, since inverting waits for a device."""
    with torch.inference_mode(False):  # else nobody could use them while gradients are recorded
        to_ycc = torch.tensor(RGB_TO_YCC, dtype=dtype, device=CPU)
        return to_ycc.to(device), torch.linalg.inv(to_ycc).to(device)
