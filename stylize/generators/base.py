"""What every generator is, and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stylize.errors import StylizeError, unknown_name
from stylize.norms import NORMS, Norm, ParameterGroup
from stylize.ops.convolution import (
    Border,
    Enlargement,
    Geometry,
    Window,
    convolve_rows,
    padded_conv2d,
    replicate_border,
    suits,
    upsample_to,
)

MIN_SIZE_PX = 16


def _known_norm(name: str) -> str:
    if name not in NORMS:
        raise ValueError(unknown_name(name, NORMS, "").removeprefix(": "))
    return name


class NetworkConfig(BaseModel):
    """What a network is built from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    norm: Annotated[str, AfterValidator(_known_norm)] = Field(
        "instance", description="normalization after each convolution: a name of `stylize list norms`"
    )
    width: int = Field(32, ge=4, le=512, multiple_of=4, description="channels of the first convolution")
    padding: Literal["reflection", "replication", "zero"] = Field(
        "reflection", description="what stands beyond the border of every map"
    )


class RowConvolution(Protocol):
    """A convolution that can be computed by rows: `PaddedConv2d`, or what behaves like one."""

    geometry: Geometry
    out_channels: int

    @property
    def multiplications(self) -> int:
        """For each pixel of the result."""

    def __call__(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Convolve the whole image, first enlarged to `size` if one is given."""

    def rows(self, window: Window, rows: tuple[int, int], geometry: Geometry, out: Tensor | None = None) -> Tensor:
        """Some rows of the result, `(1, K, rows, W)`, from those of the image that they need; see `convolve_rows`."""


class Stage(NamedTuple):
    """A convolution, and what follows it before the next one.

    Attributes:
        conv: The convolution; its input is the result of the stage before, the first one's the image.
        size: Height and width of its result.
        norm: What normalizes that, or None.
        relu: Whether the norm is followed by ReLU.
        activation: What is applied where there is no norm, in place, value by value; or None.
        added: The number of the stage whose result is added at the end, or None.
        enlargement: How its input is first enlarged to `size`, or None.
    """

    conv: RowConvolution
    size: tuple[int, int]
    norm: Norm | None = None
    relu: bool = False
    activation: Callable[[Tensor], Tensor] | None = None
    added: int | None = None
    enlargement: Enlargement | None = None

    @property
    def geometry(self) -> Geometry:
        """That of the convolution, with the enlargement."""
        if self.enlargement is None:
            return self.conv.geometry
        return self.conv.geometry._replace(size=self.size, enlargement=self.enlargement)

    def finished_(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """What norm, ReLU and activation make of what the convolution left `(N, C, H, W)`.

        It lies in `out`, or is written over `x` if none is given; see `Norm.normalize_`.
        """
        if self.norm is not None:
            return self.norm.normalize_(x, relu=self.relu, out=out)
        result = x if out is None else out.copy_(x)
        return result if self.activation is None else self.activation(result)


def check_size(height: int, width: int) -> None:
    """See that an image is large enough for a generator.

    Raises:
        StylizeError: It is smaller than `MIN_SIZE_PX` in a direction.
    """
    if min(height, width) < MIN_SIZE_PX:
        raise StylizeError(f"got an image of {width}×{height} px, must be at least {MIN_SIZE_PX} px in each direction")


class Generator(nn.Module):
    """A feed-forward network that paints: RGB `(N, 3, H, W)` in [0, 1] → the same shape and range.

    Output size is input size for every height and width from `MIN_SIZE_PX`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Paint a batch of images.

        Raises:
            StylizeError: The images are smaller than `MIN_SIZE_PX` in a direction.
        """
        check_size(*x.shape[-2:])
        return self.paint(x)

    def paint(self, x: Tensor) -> Tensor:
        """The network itself: `(N, 3, H, W)` → `(N, 3, H, W)`, of checked size."""
        raise NotImplementedError  # abstract: each network is this function

    def stages(self, height: int, width: int) -> list[Stage] | None:
        """What `paint` does to an image of this size in `eval()`, as a chain; None: it is none, or cannot be one.

        By such a chain a picture can be painted in strips of rows, with the statistics of the whole. The last stage's
        result, cropped to the size, is the painted picture.
        """
        return None

    @property
    def values_per_px(self) -> float:
        """How many values a pixel of the image `paint` has in memory at most."""
        raise NotImplementedError  # abstract: each network knows its maps

    def norms(self) -> dict[str, Norm]:
        """The normalization layers by their names in the network."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Norm)}

    def param_groups(self) -> list[ParameterGroup]:
        """Every parameter once, grouped by optimizer setting; norms say their own."""
        groups = [group for norm in self.norms().values() for group in norm.param_groups()]
        owned = {id(p) for group in groups for p in group.parameters}
        rest = [p for p in self.parameters() if id(p) not in owned]
        merged: dict[float, list[nn.Parameter]] = {1.0: rest}
        for group in groups:
            merged.setdefault(group.learning_rate_factor, []).extend(group.parameters)
        return [ParameterGroup(p, factor) for factor, p in merged.items() if p]

    def project_(self) -> None:
        """Put all parameters back into their ranges; called after every optimizer step."""
        for norm in self.norms().values():
            norm.project_()


PADDING_MODES: Mapping[str, Border] = {"reflection": "reflect", "replication": "replicate", "zero": "constant"}


class PaddedConv2d(nn.Conv2d):
    """A convolution that keeps the size, or divides it by the stride, rounded up.

    Args:
        kernel_px: Its side, odd.
        config: Says what stands beyond the border.
        stride: 1 or 2.
        depthwise: Each channel has a kernel of its own; nothing passes between channels, and there is no bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        config: NetworkConfig,
        *,
        stride: int = 1,
        depthwise: bool = False,
    ) -> None:
        groups = in_channels if depthwise else 1
        super().__init__(in_channels, out_channels, kernel_px, stride, groups=groups, bias=not depthwise)
        self.geometry = Geometry(kernel_px, stride, PADDING_MODES[config.padding])

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Convolve `x`, first enlarged to `size` if one is given (see `upsample_to`)."""
        if suits(x, self.weight):
            return padded_conv2d(x, self.weight, self.bias, self.geometry._replace(size=size))
        # In one expression: the enlarged maps are the largest of all, and must be gone before the convolution runs.
        padded = self._pad(x if size is None else upsample_to(x, *size))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)

    def rows(self, window: Window, rows: tuple[int, int], geometry: Geometry, out: Tensor | None = None) -> Tensor:
        """Some rows of the result (see `convolve_rows`); the geometry says whether the image is enlarged first."""
        return convolve_rows(window, self.weight, self.bias, geometry, rows, out)

    @property
    def multiplications(self) -> int:
        """For each pixel of the result."""
        return self.weight.numel()

    def _pad(self, x: Tensor) -> Tensor:
        border_px = self.geometry.border_px
        if self.geometry.border == "replicate" and torch.compiler.is_compiling():
            for _ in range(border_px):
                x = replicate_border(x)
            return x
        return nn.functional.pad(x, (border_px,) * 4, self.geometry.border) if border_px else x
