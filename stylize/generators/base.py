"""The base class of all generators, their configuration and their stages."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stylize import ops
from stylize.errors import StylizeError, unknown_name
from stylize.norms import NORMS, Norm, ParameterGroup
from stylize.ops import Border, Geometry, Statistics, Upsampling, Window

MIN_SIZE_PX = 16


def _known_norm(name: str) -> str:
    if name not in NORMS:
        raise ValueError(unknown_name(name, NORMS, "").removeprefix(": "))
    return name


class NetworkConfig(BaseModel):
    """Settings of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    norm: Annotated[str, AfterValidator(_known_norm)] = Field(
        "instance", description="normalization after each convolution: a name of `stylize list norms`"
    )
    width: int = Field(32, ge=4, le=512, multiple_of=4, description="channels of the first convolution")
    padding: Literal["reflection", "replication", "zero"] = Field("reflection", description="padding of every map")
    margin: int = Field(
        16, ge=0, le=256, multiple_of=4, description="px of itself mirrored around a picture while it is painted"
    )
    noise_seed: int = Field(
        0, ge=0, lt=2**32, description="texture_network: seed of the noise in inference; another one, another picture"
    )


class RowConvolution(Protocol):
    """A convolution that can also be computed by rows: `PaddedConv2d`, or a module that behaves like one."""

    geometry: Geometry
    out_channels: int

    @property
    def multiplications(self) -> int:
        """Multiplications for each pixel of the result."""

    def __call__(self, x: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Convolve whole images; `geometry` is the layer's own with an upsampling before it."""

    def rows(self, window: Window, rows: tuple[int, int], geometry: Geometry, out: Tensor | None = None) -> Tensor:
        """Compute some rows of the result of one image; see `stylize.ops.conv2d_rows`."""


class Stage(NamedTuple):
    """A convolution and the operations between it and the next one.

    Attributes:
        conv: The convolution; its input is the result of the previous stage, or the image.
        size: Height and width of the result.
        norm: Normalization of the result, or None.
        relu: Whether ReLU follows the norm.
        activation: Pointwise function if there is no norm, called like `torch.sigmoid(x, out=…)`, or None.
        residual_of: Number of the stage whose result is added at the end, or None.
        upsampling: Filter with which the input is upsampled to `size` first, or None.
    """

    conv: RowConvolution
    size: tuple[int, int]
    norm: Norm | None = None
    relu: bool = False
    activation: Callable[..., Tensor] | None = None
    residual_of: int | None = None
    upsampling: Upsampling | None = None

    @property
    def geometry(self) -> Geometry:
        """Geometry of the convolution, with the upsampling."""
        if self.upsampling is None:
            return self.conv.geometry
        return self.conv.geometry._replace(size=self.size, upsampling=self.upsampling)

    @property
    def needs_images(self) -> bool:
        """Whether the norm uses statistics of the whole image."""
        return self.norm is not None and self.norm.needs_images

    def finished_(
        self,
        x: Tensor,
        out: Tensor | None = None,
        instance: Statistics | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Normalize and activate the convolution's result `(N, C, H, W)`, in inference in place or into `out`.

        Args:
            x: The result. Always use the returned tensor.
            out: Memory of its shape, or None.
            instance: Instance statistics of the whole image for the norm; None: use those of `x`.
            dtype: Type of the result; None: that of `x`.
        """
        if self.norm is not None:
            return self.norm.normalize_(x, relu=self.relu, out=out, instance=instance, dtype=dtype)
        result = (x if out is None else out.copy_(x)).to(dtype or x.dtype)
        if self.activation is None:
            return result
        return self.activation(result) if torch.is_grad_enabled() else self.activation(result, out=result)


def run_stages(stages: Sequence[Stage], x: Tensor, maps: torch.dtype | None = None) -> Tensor:
    """Run all stages on images `(N, 3, H, W)`; results for residual connections are kept until they are added.

    Args:
        stages: The network.
        x: The images.
        maps: Type of every result but the last; None: that of the images. The first and the last stage compute in the
            type of the images.

    Returns:
        The result of the last stage, in the type of the images.
    """
    wide, last = x.dtype, len(stages) - 1
    uses = Counter(stage.residual_of for stage in stages)
    kept: dict[int, Tensor] = {}
    for i, stage in enumerate(stages):
        if i == last:
            x = x.to(wide)
        x = stage.finished_(stage.conv(x, stage.geometry), dtype=maps if i < last else None)
        if stage.residual_of is not None:
            residual = kept[stage.residual_of]
            x = x + residual if torch.is_grad_enabled() else x.add_(residual)
            uses[stage.residual_of] -= 1
            if not uses[stage.residual_of]:
                del kept[stage.residual_of], residual
        if uses[i]:
            kept[i] = x
    return x


def check_size(height: int, width: int) -> None:
    """Check that an image is large enough for a generator.

    Raises:
        StylizeError: It is smaller than `MIN_SIZE_PX` in a direction.
    """
    if min(height, width) < MIN_SIZE_PX:
        raise StylizeError(f"got an image of {width}×{height} px, must be at least {MIN_SIZE_PX} px in each direction")


def with_margin(x: Tensor, margin_px: int) -> Tensor:
    """Return images `(N, C, H, W)` with so many px more of themselves mirrored at every edge.

    >>> with_margin(torch.arange(3.0).view(1, 1, 1, 3), 3)[0, 0, 3].tolist()
    [1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0]
    """
    if not margin_px:
        return x
    for dim in (2, 3):
        x = x.index_select(dim, mirrored_places(-margin_px, x.shape[dim] + margin_px, x.shape[dim], x.device))
    return x


def without_margin(x: Tensor, margin_px: int) -> Tensor:
    """Return images `(N, C, H, W)` without so many px at every edge."""
    return x[:, :, margin_px : x.shape[2] - margin_px, margin_px : x.shape[3] - margin_px] if margin_px else x


def mirrored_places(first: int, last: int, length: int, device: torch.device | None = None) -> Tensor:
    """Return where places `first` to before `last` are found in a row of `length` that is mirrored at its ends.

    >>> mirrored_places(-2, 5, 3).tolist()
    [2, 1, 0, 1, 2, 1, 0]
    """
    period = max(1, 2 * (length - 1))
    places = torch.arange(first, last, device=device).remainder(period)
    return torch.minimum(places, period - places).clamp_max(length - 1)


class Generator(nn.Module):
    """A feed-forward network that paints: RGB `(N, 3, H, W)` in [0, 1] → the same shape and range.

    The maps have the type `maps`, bfloat16 or float16, or that of the images. In float32 are always the first
    convolution until it is normalized, for the small contrasts of an even picture drown in the rounding of their mean;
    and the last convolution with what follows it: neighbouring bright values of bfloat16 are a grey level apart.

    A network describes itself once. Most override `stages`, which serves training, painting as a whole, and painting in
    strips of rows. A network that is not a chain of stages overrides `paint`.

    The output has the size of the input, for every height and width of at least `MIN_SIZE_PX`.

    Attributes:
        maps: Type of the maps; None: that of the images.
        draws_noise: Whether it paints the same image otherwise each time in `train()`.
        margin: Px by which an image is mirrored at its edges before it is painted; they are cut off again. So what is
            painted near an edge is not painted at the edge of the maps, where a network paints a frame.
    """

    maps: torch.dtype | None = None
    margin: int = 0
    draws_noise: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """Paint a batch of images; the result has their type.

        Raises:
            StylizeError: The images are smaller than `MIN_SIZE_PX` in a direction.
        """
        check_size(x.shape[-2], x.shape[-1])
        return without_margin(self.paint(with_margin(x, self.margin)), self.margin)

    def stages(self, height: int, width: int) -> list[Stage] | None:
        """Return the network for an image of this size as a chain of stages, or None if it is not a chain.

        The result of the last stage, cropped to the size, is the painted image.
        """
        return None

    def paint(self, x: Tensor) -> Tensor:
        """Paint images whose size was checked, `(N, 3, H, W)` → `(N, 3, H, W)`."""
        height, width = x.shape[-2], x.shape[-1]
        stages = self.stages(height, width)
        if stages is None:  # abstract: each network is one of the two
            raise NotImplementedError(f"{type(self).__name__} must override stages or paint")
        return run_stages(stages, x, self.maps)[..., :height, :width]

    def hold_in(self, dtype: torch.dtype) -> None:
        """Compute with maps of this type, and hold the weights of the convolutions between in it, for inference.

        Weights of another type than their maps are cast at every use: a training keeps them in float32.
        """
        self.maps = None if dtype == torch.float32 else dtype
        full = self.full_precision_layers()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in full:
                module.to(dtype)

    def full_precision_layers(self) -> set[nn.Module]:
        """Return the layers that compute in float32 whatever the type of the maps.

        Of a chain of stages those of the first and the last one; of another network all, unless it overrides this.
        """
        stages = self.stages(MIN_SIZE_PX, MIN_SIZE_PX)
        if stages is None:
            return set(self.modules())
        ends = [stage.conv for stage in (stages[0], stages[-1]) if isinstance(stage.conv, nn.Module)]
        return {module for conv in ends for module in conv.modules()}

    def seed_noise(self, seed: int) -> None:
        """Paint with other noise in `eval()`.

        Raises:
            StylizeError: The network has no noise.
        """
        raise StylizeError(f"seed: got {seed}, but this network paints without noise, so no seed changes its pictures")

    def norms(self) -> dict[str, Norm]:
        """Return the normalization layers by name."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Norm)}

    @property
    def style_count(self) -> int:
        """Number of styles that the network paints in; they differ in γ and β of the norms alone."""
        return max((norm.style_count for norm in self.norms().values()), default=1)

    def have_styles_(self, count: int) -> None:
        """Have γ and β for so many styles in every norm, all alike.

        Raises:
            StylizeError: The norms have neither γ nor β.
        """
        if count > 1 and not any(norm.bias is not None for norm in self.norms().values()):
            raise StylizeError(f"styles: got {count}, but this network's norms have no γ and β by which styles differ")
        for norm in self.norms().values():
            norm.have_styles_(count)

    def paint_in(self, mixture: Tensor | None) -> None:
        """Paint the next images in these styles.

        Args:
            mixture: Shares of the styles, `(N, S)` by image, or `(1, S)` for all alike.
        """
        for norm in self.norms().values():
            norm.mixture = mixture

    def blended(self, shares: Sequence[float]) -> Generator:
        """Return this network with one style, a blend of its own; all but γ and β is shared with this one.

        Args:
            shares: The share of each style; they sum to 1.
        """
        if self.style_count == 1:
            return self
        own = set(map(id, self.norm_parameters()))
        shared = {id(t): t for t in (*self.parameters(), *self.buffers()) if id(t) not in own}
        single = copy.deepcopy(self, shared)
        row = torch.tensor([shares])
        for norm in single.norms().values():
            norm.blend_(row)
        return single

    def norm_parameters(self) -> list[nn.Parameter]:
        """Return γ and β of all norms: with several styles, what each has of its own."""
        return [p for norm in self.norms().values() for p in (norm.weight, norm.bias) if p is not None]

    def param_groups(self) -> list[ParameterGroup]:
        """Return every parameter once, grouped by learning-rate factor; norms define the groups of their own."""
        groups = [group for norm in self.norms().values() for group in norm.param_groups()]
        owned = {id(p) for group in groups for p in group.parameters}
        rest = [p for p in self.parameters() if id(p) not in owned]
        merged: dict[float, list[nn.Parameter]] = {1.0: rest}
        for group in groups:
            merged.setdefault(group.learning_rate_factor, []).extend(group.parameters)
        return [ParameterGroup(p, factor) for factor, p in merged.items() if p]

    def project_(self) -> None:
        """Project all parameters to their valid ranges; called after every optimizer step."""
        for norm in self.norms().values():
            norm.project_()


PADDING_MODES: Mapping[str, Border] = {"reflection": "reflect", "replication": "replicate", "zero": "constant"}


class PaddedConv2d(nn.Conv2d):
    """A convolution that keeps the size, or divides it by the stride, rounded up.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        kernel_px: Side of the kernel, odd.
        config: Settings of the network, for the padding.
        stride: 1 or 2.
        depthwise: Whether to convolve each channel with its own kernel, without a bias.
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

    def forward(self, x: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Convolve `x`, `(N, C, H, W)`; `geometry` is the layer's own with an upsampling before it."""
        return ops.conv2d(x, self.weight, self.bias, geometry or self.geometry)

    def rows(self, window: Window, rows: tuple[int, int], geometry: Geometry, out: Tensor | None = None) -> Tensor:
        """Compute some rows of the result of one image; see `stylize.ops.conv2d_rows`."""
        return ops.conv2d_rows(window, self.weight, self.bias, geometry, rows, out)

    @property
    def multiplications(self) -> int:
        """Multiplications for each pixel of the result."""
        return self.weight.numel()
