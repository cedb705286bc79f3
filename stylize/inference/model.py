"""A trained model for programs: images in, images of the same kind out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stylize.errors import StylizeError, pick
from stylize.generators import Generator
from stylize.generators.base import check_size
from stylize.inference.file_painter import FileOptions
from stylize.inference.jobs import Job, paint_files, plan_jobs
from stylize.inference.options import PaintOptions, color_of
from stylize.inference.pixels import pixels_of
from stylize.inference.plans import find_budget
from stylize.inference.stylizer import Stylizer, shrink
from stylize.models.blends import Blend, blend_of
from stylize.models.file import ModelCard, make_generator
from stylize.pictures.picture import limited_size
from stylize.system.compute import Compute
from stylize.system.devices import choose_device, choose_precision
from stylize.system.places import temporary_folder

Precision = Literal["auto", "fp32", "bf16", "fp16"]
KEPT_BLENDS = 64
NAMED_DEVICES = ("auto", "cpu", "cuda", "mps")
ImageT = TypeVar("ImageT", Image.Image, NDArray[np.uint8], Tensor)


def choose_compute(device: str | torch.device, precision: str) -> Compute:
    """Return the device and precision for a model.

    Raises:
        StylizeError: There is no such precision or device, or PyTorch does not find the device.
    """
    pick(dict.fromkeys(get_args(Precision)), str(precision), "precision")
    found = _device_by_name(device) if device in NAMED_DEVICES else _exact_device(device)
    return Compute(found, choose_precision(precision, found, inference=True))


def _device_by_name(name: str | torch.device) -> torch.device:
    try:
        return choose_device(str(name))
    except StylizeError as error:
        raise StylizeError(str(error).removeprefix("--")) from error  # here it is no option of a command


def _exact_device(device: str | torch.device) -> torch.device:
    try:
        exact = torch.device(device)
        torch.empty(0, device=exact)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises, by kind of device
        reason = str(error).strip().partition("\n")[0]
        raise StylizeError(f"device: got '{device}', which PyTorch cannot use here ({reason})") from error
    return exact


class Model:
    """A trained model that paints.

    `stylize.load` makes it. Several threads can use one model at once. A model can be pickled; in another process it
    needs neither its file nor anything else of this one.

    Args:
        generator: The network; its weights are frozen.
        card: Description of the model.
        compute: Device and precision.
    """

    def __init__(self, generator: Generator, card: ModelCard, compute: Compute) -> None:
        self._card = card
        self._generator = generator
        self._compute = compute
        self._lock = threading.Lock()
        self._stylizers: dict[tuple[float, ...], Stylizer] = {}
        if not card.styles:
            self._stylizer_for(blend_of(None, card.all_styles))

    @property
    def styles(self) -> tuple[str, ...]:
        """The names of the model's styles."""
        return self._card.all_styles

    @property
    def card(self) -> ModelCard:
        """Description of the model: its style, its generator, and how it was trained."""
        return self._card

    def __call__(
        self,
        image: ImageT,
        *,
        style: str | Mapping[str, float] | None = None,
        strength: float = 1.0,
        keep_colors: bool = False,
        stroke_scale: float = 1.0,
        max_size: int | None = None,
        refine: int = 0,
        refine_vgg: str = "compact",
    ) -> ImageT:
        """Paint an image that fits into memory; `apply_file` paints files of any size.

        Args:
            image: A PIL image of any mode; a NumPy array `(H, W, 3)` of uint8; or a tensor `(3, H, W)` or
                `(N, 3, H, W)` of floating point in [0, 1], whose images are painted each by itself.
            style: Of a model with several styles the name of one, or names with weights for a blend:
                `{"wave": 0.6, "mosaic": 0.4}`, or the same as text, `"wave:0.6,mosaic:0.4"`.
            strength: Mixture of photograph (0) and stylized picture (1).
            keep_colors: Keep the colors of the photograph; only its luminance is painted.
            stroke_scale: Paint strokes this many times as large, 1 to 8.
            max_size: Shrink a larger image to this longer side in px first.
            refine: Refine the painting by so many iterations of L-BFGS on its pixels: slow, and finer.
            refine_vgg: Loss network for it: compact, imagenet or a file.

        Returns:
            An image of the same kind and size. A PIL image is upright, in sRGB, of mode RGBA where there is
            transparency and else of mode RGB. A tensor is of the same type, on the same device, without a gradient.

        Raises:
            TypeError: The image is of another kind.
            StylizeError: The image has another shape, type or values, or is smaller than 16 px in a direction; an
                option is out of range; or the model has no such style, or several and none is named.

        >>> import stylize
        >>> model = stylize.load("stained_glass", device="cpu")
        >>> model(Image.new("RGBA", (64, 48), "teal"), strength=0.8, keep_colors=True)  # doctest: +ELLIPSIS
        <PIL.Image.Image image mode=RGBA size=64x48 at 0x...>
        >>> model(torch.rand(2, 3, 48, 64), max_size=32).shape
        torch.Size([2, 3, 24, 32])
        """
        options = PaintOptions(strength, keep_colors, max_size, stroke_scale)
        stylizer = self._refining(blend_of(style, self.styles), refine, refine_vgg)
        pixels = pixels_of(image, stylizer.device)
        height, width = pixels.rgb.shape[-2:]
        size = limited_size((width, height), max_size)
        check_size(size[1], size[0])
        rgb, alpha = (
            maps if maps is None or size == (width, height) else shrink(maps, size)
            for maps in (pixels.rgb, pixels.alpha)
        )
        assert rgb is not None
        together = stylizer.compute.pictures_together(size)
        batches = (rgb[first : first + together] for first in range(0, len(rgb), together))
        painted = [stylizer.paint_batch(batch, options) for batch in batches]
        restored: ImageT = pixels.restore(torch.cat(painted), alpha)  # `cat` leaves the inference mode behind
        return restored

    def apply_file(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str] | None = None,
        *,
        style: str | Mapping[str, float] | None = None,
        strength: float = 1.0,
        keep_colors: bool = False,
        stroke_scale: float = 1.0,
        max_size: int | None = None,
        refine: int = 0,
        refine_vgg: str = "compact",
        max_memory_gib: float | None = None,
        max_pixels: int | None = None,
        quality: int = 95,
        background: str | None = None,
        overwrite: bool = False,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> Path:
        """Paint a file, as `stylize apply` does: of any size, in strips where needed; metadata are kept.

        Args:
            source: File of the photograph.
            target: Output file, or output folder; None: `<image>.<style>.<suffix>` beside the photograph.
            style: Of a model with several styles one, or a blend; see the call.
            strength: Mixture of photograph (0) and stylized picture (1).
            keep_colors: Keep the colors of the photograph; only its luminance is painted.
            stroke_scale: Paint strokes this many times as large, 1 to 8.
            max_size: Shrink a larger picture to this longer side in px first.
            refine: Refine the painting by so many iterations of L-BFGS on its pixels: slow, and finer.
            refine_vgg: Loss network for it: compact, imagenet or a file.
            max_memory_gib: Memory budget of the whole process on the compute device; None: half of the free memory.
            max_pixels: Accept photographs of up to this many pixels; None: 179 million.
            quality: Encoder quality for JPEG, WebP and AVIF, 1 to 100.
            background: Colour, as CSS names it or "#rrggbb", on which transparency is laid before painting; None: it
                stays, or is laid on white where the format of the output has none.
            overwrite: Replace an existing file.
            on_progress: Called with each share of a picture that was painted in strips; the shares add up to 1.

        Returns:
            The written file.

        Raises:
            StylizeError: The photograph cannot be read or painted, the file cannot be written, an option is out of
                range, or the model has no such style.
        """
        if not 1 <= quality <= 100:
            raise StylizeError(f"quality: got {quality}, must be from 1 to 100")
        if max_memory_gib is not None and not max_memory_gib > 0:
            raise StylizeError(f"max_memory_gib: got {max_memory_gib:g}, must be above 0")
        color = None if background is None else color_of("background", background)
        paint = PaintOptions(strength, keep_colors, max_size, stroke_scale)
        blend = blend_of(style, self.styles)
        stylizer = self._refining(blend, refine, refine_vgg)
        job = self._plan(Path(source), None if target is None else Path(target), blend.label)
        budget = find_budget(stylizer.device, temporary_folder(job.target), max_memory_gib)
        options = FileOptions(budget, paint, max_pixels, quality, overwrite, style=blend.label, background=color)
        (item,) = paint_files([job], stylizer, options, on_progress)
        if item.error is not None:
            raise item.error
        return item.target

    def _stylizer_for(self, blend: Blend) -> Stylizer:
        with self._lock:
            stylizer = self._stylizers.get(blend.shares)
            if stylizer is None:
                while len(self._stylizers) >= KEPT_BLENDS:
                    del self._stylizers[next(iter(self._stylizers))]
                stylizer = Stylizer(self._generator.blended(blend.shares), self._compute)
                self._stylizers[blend.shares] = stylizer
            return stylizer

    def _refining(self, blend: Blend, iterations: int, vgg: str) -> Stylizer:
        """The stylizer of a blend, which refines what it paints if that is asked for."""
        stylizer = self._stylizer_for(blend)
        if not isinstance(iterations, int) or iterations < 0:
            raise StylizeError(f"refine: got {iterations!r}, must be a whole number of at least 0")
        if not iterations:
            return stylizer
        from stylize.refining import refiner_of

        refiner = refiner_of(self.card, blend, iterations, vgg, self._compute.device)
        return Stylizer(stylizer.painter, self._compute, refiner=refiner)

    def _plan(self, source: Path, target: Path | None, style: str) -> Job:
        if source.is_dir():
            raise StylizeError(f"{source}: is a folder, must be an image file")
        (job,) = plan_jobs([source], target, style, recursive=False)
        return job

    def __repr__(self) -> str:
        generator, compute = self.card.generator, self._compute
        styles = f" of {len(self.styles)} styles" if self.card.styles else ""
        return (
            f"<stylize.Model {self.card.style!r}{styles}: {generator.name}, {generator.norm} norm, "
            f"width {generator.width}, on {compute.device} in {compute.precision}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: value.cpu() for name, value in self._generator.state_dict().items()}
        return {"card": self.card, "compute": self._compute, "weights": weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        card: ModelCard = state["card"]
        compute: Compute = state["compute"]
        self.__init__(make_generator(card.generator, state["weights"], len(card.all_styles)), card, compute)  # type: ignore[misc]
