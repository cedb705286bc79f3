"""The terms of the perceptual loss, one class each, and the configuration that follows from them.

To add a term: write its class and its `Keys`, and add its line to `TERMS`. Its weight and layers are then keys of the
config, and it appears in training, in validation, and in the tables of `evaluate` and `study`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from torch import Tensor, nn

from stylize.errors import unknown_name
from stylize.losses.vgg import TAPS, Pooling, VGGPadding
from stylize.ops import gram_matrix

TOTAL = "total"


def _known_taps(weights: Mapping[str, float]) -> Mapping[str, float]:
    for tap, weight in weights.items():
        if tap not in TAPS:
            raise ValueError(unknown_name(tap, TAPS, "").removeprefix(": "))
        if not 0 < weight < math.inf:
            raise ValueError(f"got {tap}: {weight}, must be a finite weight above 0")
    if not weights:
        raise ValueError("got no layers, must name at least one")
    return weights


LayerWeights = Annotated[dict[str, float], AfterValidator(_known_taps)]
TermWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Batch(NamedTuple):
    """What a term is computed from.

    Attributes:
        stylized: `(N, 3, H, W)` in [0, 1].
        content: The photographs, the same shape.
        features: Feature maps of the stylized pictures, by layer.
        content_features: Those of the photographs, at the layers of terms that compare with them.
        styles: The number of each picture's style, `(N,)`; None if there is one style.
    """

    stylized: Tensor
    content: Tensor
    features: Mapping[str, Tensor]
    content_features: Mapping[str, Tensor]
    styles: Tensor | None = None


class TermValue(NamedTuple):
    """A term of a batch, averaged over its pictures and before its weight; scalars.

    Attributes:
        value: The term, as it is reported.
        by_layer: Its layers, by name; empty for a term of pixels.
        minimized: What enters the total in its place; None: the term itself.
    """

    value: Tensor
    by_layer: Mapping[str, Tensor] = {}  # immutable
    minimized: Tensor | None = None

    @property
    def in_total(self) -> Tensor:
        """What enters the total, before its weight."""
        return self.value if self.minimized is None else self.minimized


class Term(nn.Module):
    """A term of the perceptual loss; called with a `Batch`, it returns a `TermValue`.

    Every value is a mean over the pictures of the batch: so batches can be computed in parts.

    Attributes:
        name: The key of its value, and of its weight in the config: `<name>_weight`.
        label: Its name in reports.
        order: Its place in tables, ascending.
        digits: Digits after the point in one-line summaries; None: they leave it out.
        measures: Values that `measure` adds in evaluation, with the words for them in one-line summaries.
        features_of_content: Whether its layers are also needed of the photographs.
        Keys: Its part of the configuration: `<name>_weight`, for a term of features `<name>_layers`, and its own.

    Args:
        config: The whole configuration of the loss.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    order: ClassVar[int]
    digits: ClassVar[int | None] = None
    measures: ClassVar[Mapping[str, str]] = {}
    features_of_content: ClassVar[bool] = False
    Keys: ClassVar[type[BaseModel]]

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def style_targets(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what to remember of a style image; with several images it is averaged by their weights.

        Args:
            features: Feature maps of the image, `(1, C, H, W)`, by layer.
        """
        return {}

    def remember(self, targets: Mapping[str, Tensor]) -> None:
        """Keep the averaged style targets as buffers; of several styles they are stacked, one a row."""
        for name, target in targets.items():
            self.register_buffer(name, target)

    def target(self, name: str, batch: Batch) -> Tensor:
        """Return what was remembered of the style; of several styles that of each picture, `(N, …)`."""
        kept = self.get_buffer(name)
        return kept if batch.styles is None else kept[batch.styles]

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalars named in `measures`."""
        return {}


class LayerTerm(Term):
    """A term of feature maps, summed over the layers of its config key with their weights.

    In the relative scale the layers are averaged by their weights.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__(config)
        self.layers = dict(config.layers_of(self.name))

    def at_layer(self, layer: str, batch: Batch) -> Tensor:
        """Return the term at one layer, a scalar."""
        raise NotImplementedError  # abstract: each term of features is this function

    def forward(self, batch: Batch) -> TermValue:
        """Return the term of a batch, and its layers."""
        by_layer = {layer: self.at_layer(layer, batch) for layer in self.layers}
        return TermValue(self.over_layers(by_layer), by_layer)

    def over_layers(self, by_layer: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of values at all layers; in the relative scale their mean."""
        total = torch.stack([weight * by_layer[layer] for layer, weight in self.layers.items()]).sum()
        return total / sum(self.layers.values()) if self.config.scale == "relative" else total


class ContentKeys(BaseModel):
    """Configuration of the content term."""

    content_layers: LayerWeights = Field(
        {"relu4_2": 1.0}, description="layers whose features keep the content, with weights"
    )
    content_weight: TermWeight = Field(1.0, description="factor of the content term")


class ContentTerm(LayerTerm):
    """Mean squared difference of the stylized picture's features from the photograph's.

    In the relative scale it is divided by the energy of the photograph's features and the style's together,
    `‖F − F*‖² / (‖F*‖² + ‖F_style‖²)`, each per value. Over the photograph's energy alone a style of strong contrast
    would drive the term far above 1, whatever the network does: a painting in that style has the style's energy.

    Source: Gatys et al. 2016, equation 1; Johnson et al. 2016, arXiv:1603.08155, equation 2.
    Differs: relative to an energy, unless `scale` is raw.
    """

    name = label = "content"
    order = 1
    digits = 3
    measures: ClassVar[Mapping[str, str]] = {"content_correlation": "correlation"}
    features_of_content = True
    Keys = ContentKeys

    def style_targets(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean square of the style's features at every layer."""
        return {_energy(layer): features[layer].float().square().mean() for layer in self.layers}

    def at_layer(self, layer: str, batch: Batch) -> Tensor:
        """Return the squared difference at one layer."""
        features, target = batch.features[layer].float(), batch.content_features[layer].float()
        if self.config.scale == "raw":
            return squared_error(features, target)
        energy = target.square().flatten(1).mean(1) + self.energy_of_style(layer, batch)
        return squared_error(features, target, energy)

    def energy_of_style(self, layer: str, batch: Batch) -> Tensor:
        """Return the mean square of the style's features at a layer; of several styles that of each picture, `(N,)`."""
        return self.target(_energy(layer), batch)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Return the correlation of the features with the photograph's, averaged over the layers.

        It is 1 where all structure is kept, whatever its contrast, and 0 where none is.
        """
        found = [correlation(batch.features[layer], batch.content_features[layer]) for layer in self.layers]
        return {"content_correlation": torch.stack(found).mean()}


def _energy(layer: str) -> str:
    return f"energy_{layer}"


class StyleKeys(BaseModel):
    """Configuration of the style term."""

    style_layers: LayerWeights = Field(
        {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0, "relu4_1": 1.0},
        description="layers whose Gram matrices carry the style, with weights",
    )
    channel_balance: float = Field(
        0.5, ge=0, le=1, description="relative: 0: strong channels count most in Gram matrices; 1: all alike"
    )
    style_energy: Literal["both", "style"] = Field(
        "both",
        description="relative: whose energy divides the difference in training: both pictures', or the style's",
    )
    style_weight: TermWeight = Field(3.0, description="factor of the style term")


class StyleTerm(LayerTerm):
    """Mean squared difference of the Gram matrices from the style's.

    In the relative scale it is divided by the energy of the style's Gram matrix, `‖G − G*‖² / ‖G*‖²`. With
    `channel_balance` b the entry of channels i and j is first divided by `(G*_ii G*_jj)^(b/2)`: at 0 it is the plain
    Gram matrix, in which a few channels that see brightness and edges outweigh all that see colour, and pale styles
    lose theirs; at 1 every channel counts alike.

    What is minimized is the difference over the mean of both energies, `2 ‖G − G*‖² / (‖G‖² + ‖G*‖²)`, unless
    `style_energy` is `style`. Near the style both are equal. Far from it, where a picture has many times the contrast
    of a pale or dark style, the other grows without bound and the picture is driven to one even colour before it shows
    anything of the photograph; this one is at most 2, and 2 for an even picture, too.

    Source: Gatys et al. 2016, equations 3 to 5; Johnson et al. 2016, arXiv:1603.08155, equations 3 and 4.
    Differs: in the raw scale it is the mean over C×C of the squared Gram difference, as both authors' released code
        has it, not the sum.
    """

    name = label = "style"
    order = 0
    digits = 4
    Keys = StyleKeys

    def style_targets(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the Gram matrix of every layer."""
        return {_gram(layer): gram_matrix(features[layer])[0] for layer in self.layers}

    def remember(self, targets: Mapping[str, Tensor]) -> None:
        """Keep the Gram matrices, and their balanced form."""
        super().remember(targets)
        for layer in self.layers:
            gram = self.get_buffer(_gram(layer))
            balance = channel_balance(gram, self.config.channel_balance)
            self.register_buffer(f"balance_{layer}", balance)
            self.register_buffer(f"balanced_gram_{layer}", balance * gram)

    def target_gram(self, layer: str, style: int = 0) -> Tensor:
        """Return a style's Gram matrix at a layer, `(C, C)`, averaged over its images."""
        gram = self.get_buffer(_gram(layer))
        return gram if gram.dim() == 2 else gram[style]

    def forward(self, batch: Batch) -> TermValue:
        """Return the term of a batch, its layers, and what of it is minimized."""
        return self.of_grams({layer: gram_matrix(batch.features[layer]) for layer in self.layers}, batch)

    def of_grams(self, grams: Mapping[str, Tensor], batch: Batch) -> TermValue:
        """Return the same from a batch's Gram matrices, `(N, C, C)` by layer; of the batch only its styles count."""
        by_layer = {layer: self._difference(layer, gram, batch, "style") for layer, gram in grams.items()}
        value = self.over_layers(by_layer)
        if self.config.scale == "raw" or self.config.style_energy == "style":
            return TermValue(value, by_layer)
        by_both = {layer: self._difference(layer, gram, batch, "both") for layer, gram in grams.items()}
        return TermValue(value, by_layer, self.over_layers(by_both))

    def _difference(self, layer: str, gram: Tensor, batch: Batch, energy_of: str) -> Tensor:
        """The squared Gram difference at one layer; in the relative scale over an energy."""
        if self.config.scale == "raw":
            return squared_error(gram, self.target(_gram(layer), batch).expand_as(gram))
        target = self.target(f"balanced_gram_{layer}", batch)
        balanced = self.target(f"balance_{layer}", batch) * gram
        energy = target.square().mean((-2, -1))
        if energy_of == "both":
            energy = (energy + balanced.square().mean((-2, -1))) / 2
        return squared_error(balanced, target.expand_as(gram), energy)


def _gram(layer: str) -> str:
    return f"gram_{layer}"


class TotalVariationKeys(BaseModel):
    """Configuration of the total variation."""

    tv_weight: TermWeight = Field(0.0, description="factor of the total variation")


class TotalVariationTerm(Term):
    """Mean difference of neighbouring pixels: absolute, or squared in the raw scale.

    Source: Johnson et al. 2016, arXiv:1603.08155, section 3.2; Mahendran & Vedaldi 2015, arXiv:1412.0035.
    """

    name = "tv"
    label = "total variation"
    order = 2
    Keys = TotalVariationKeys

    def forward(self, batch: Batch) -> TermValue:
        """Return the total variation of the stylized pictures."""
        return TermValue(total_variation(batch.stylized, squared=self.config.scale == "raw"))


TERMS: dict[str, type[Term]] = {
    "content": ContentTerm,
    "style": StyleTerm,
    "tv": TotalVariationTerm,
}


class LossKeys(BaseModel):
    """The keys of the loss that no single term owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vgg: str = Field(
        "imagenet", description="VGG-19 weights: imagenet, compact, random, a file, or a-or-b: the first to be had"
    )
    pooling: Pooling = Field("max", description="pooling in VGG-19")
    padding: VGGPadding = Field("replication", description="what VGG-19 sees beyond the border")

    def weight_of(self, term: str) -> float:
        """Return the factor of a term."""
        return cast(float, getattr(self, f"{term}_weight"))

    def layers_of(self, term: str) -> Mapping[str, float]:
        """Return the layers of a term with their weights; empty for a term of pixels."""
        return cast(Mapping[str, float], getattr(self, f"{term}_layers", {}))

    def content_taps(self) -> tuple[str, ...]:
        """Return every layer at which the photographs' features are needed."""
        return self._taps(name for name, term in TERMS.items() if term.features_of_content)

    def taps(self) -> tuple[str, ...]:
        """Return every layer that the loss reads."""
        return self._taps(in_order(TERMS))

    def _taps(self, terms: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer for term in terms for layer in self.layers_of(term)))


class ScaleKeys(BaseModel):
    """How all terms are scaled."""

    scale: Literal["relative", "raw"] = Field(
        "relative",
        description="relative: each term over the energy of what it compares; raw: mean squares, as in the papers",
    )


def _keys() -> dict[str, Any]:
    """The keys of all terms: layers, what is a term's own, weights; then the scale."""
    fields = {key: field for term in TERMS.values() for key, field in term.Keys.model_fields.items()}
    ordered = sorted(fields, key=lambda key: (key.endswith("_weight"), not key.endswith("_layers")))
    return {key: (fields[key].annotation, fields[key]) for key in ordered} | {
        key: (field.annotation, field) for key, field in ScaleKeys.model_fields.items()
    }


if TYPE_CHECKING:  # the keys that are known by name; those of other terms are read with `weight_of` and `layers_of`

    class LossConfig(LossKeys, ContentKeys, StyleKeys, TotalVariationKeys, ScaleKeys):
        """What a generator is trained against: the keys of all terms."""

else:
    LossConfig = create_model("LossConfig", __base__=LossKeys, __module__=__name__, **_keys())
    LossConfig.__doc__ = "What a generator is trained against: the keys of all terms."


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of values as tables list them: the total, then every term, its layers, its measures.

    >>> in_order(["content/relu2_2", "style/relu1_1", "content", "content_correlation", "style", "tv", "total"])
    ['total', 'style', 'style/relu1_1', 'content', 'content/relu2_2', 'content_correlation', 'tv']
    """
    owners = {measure: term for term in TERMS.values() for measure in term.measures}

    def place(name: str) -> tuple[float, str, str]:
        if name == TOTAL:
            return -math.inf, "", name
        term = owners.get(name) or TERMS[name.partition("/")[0]]
        return term.order, term.name, name

    return sorted(names, key=place)


def layer_keys() -> list[str]:
    """Return the config keys that name layers of VGG-19, in the order of tables."""
    return [f"{name}_layers" for name in in_order(TERMS) if f"{name}_layers" in TERMS[name].Keys.model_fields]


def channel_balance(gram: Tensor, balance: float) -> Tensor:
    """Return factors `(g_i g_j)^(−balance/2)` for a Gram matrix's entries, g its diagonal over the diagonal's mean.

    Several matrices `(S, C, C)` give as many of factors.

    Channels below a thousandth of the mean count as that: otherwise those that the style lacks would dominate.

    >>> gram = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    >>> (gram * channel_balance(gram, 1.0)).tolist()
    [[2.5, 1.25], [1.25, 2.5]]
    """
    energy = gram.diagonal(dim1=-2, dim2=-1)
    factor = (energy / energy.mean(-1, keepdim=True).clamp_min(1e-12)).clamp_min(1e-3) ** (-balance / 2)
    return factor[..., :, None] * factor[..., None, :]


def squared_error(value: Tensor, target: Tensor, energy: Tensor | None = None) -> Tensor:
    """Return the mean squared difference, image by image, over an energy (a mean square) if given, then averaged.

    >>> a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    >>> float(squared_error(a, b)), float(squared_error(a, b, energy=torch.tensor(8.0)))
    (2.0, 0.25)
    """
    error = (value - target).square().flatten(1).mean(1)
    if energy is not None:
        error = error / energy.clamp_min(1e-12)
    return error.mean()


def correlation(value: Tensor, target: Tensor) -> Tensor:
    """Return the correlation of feature maps `(N, C, H, W)`, each channel centred, image by image, then averaged.

    >>> maps = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    >>> round(float(correlation(3 * maps + 7, maps)), 6), round(float(correlation(-maps, maps)), 6)
    (1.0, -1.0)
    """
    a, b = (maps.float() - maps.float().mean((2, 3), keepdim=True) for maps in (value, target))
    product = (a * b).flatten(1).sum(1)
    norms = a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)
    return torch.mean(product / norms.clamp_min(1e-12))


def total_variation(image: Tensor, squared: bool = False) -> Tensor:
    """Return the mean absolute (or squared) difference of neighbouring pixels, vertical plus horizontal.

    >>> float(total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])))
    1.0
    """
    down, across = image.diff(dim=-2), image.diff(dim=-1)
    if squared:
        return down.square().mean() + across.square().mean()
    return down.abs().mean() + across.abs().mean()
