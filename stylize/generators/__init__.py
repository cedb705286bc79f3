"""The generators. To add one, write its file and add its line to `GENERATORS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from stylize.errors import pick, unknown_name
from stylize.generators.base import MIN_SIZE_PX, Generator, NetworkConfig
from stylize.generators.fast_neural_style import FastNeuralStyle
from stylize.generators.johnson import JohnsonGenerator
from stylize.generators.johnson_lite import JohnsonLiteGenerator
from stylize.generators.texture_network import TextureNetwork

__all__ = ["GENERATORS", "MIN_SIZE_PX", "Generator", "GeneratorConfig", "NetworkConfig", "build_generator"]

GENERATORS: Mapping[str, type[Generator]] = {
    "fast_neural_style": FastNeuralStyle,
    "johnson": JohnsonGenerator,
    "johnson_lite": JohnsonLiteGenerator,
    "texture_network": TextureNetwork,
}


def _known(name: str) -> str:
    if name not in GENERATORS:
        raise ValueError(unknown_name(name, GENERATORS, "").removeprefix(": "))
    return name


class _Name(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, AfterValidator(_known)] = Field(
        "johnson", description="the network: a name of `stylize list generators`"
    )


class GeneratorConfig(NetworkConfig, _Name):  # pydantic lists the fields of the last base first
    """Name and settings of a generator."""


def build_generator(config: GeneratorConfig, styles: int = 1) -> Generator:
    """Return a newly initialized generator.

    Args:
        config: Its name and settings.
        styles: Number of styles.

    Raises:
        StylizeError: No generator has the name, or its norms have nothing by which styles could differ.
    """
    generator = pick(GENERATORS, config.name, "generator.name")(config)
    generator.margin = config.margin
    generator.have_styles_(styles)
    return generator
