"""The networks that paint. To add one: its file, and its line in `GENERATORS`."""

from __future__ import annotations

from collections.abc import Mapping

from stylize.errors import pick
from stylize.generators.base import MIN_SIZE_PX, Generator, GeneratorConfig
from stylize.generators.fast_neural_style import FastNeuralStyle
from stylize.generators.johnson import JohnsonGenerator
from stylize.generators.johnson_lite import JohnsonLiteGenerator
from stylize.generators.texture_network import TextureNetwork

__all__ = ["GENERATORS", "MIN_SIZE_PX", "Generator", "GeneratorConfig", "build_generator"]

GENERATORS: Mapping[str, type[Generator]] = {
    "fast_neural_style": FastNeuralStyle,
    "johnson": JohnsonGenerator,
    "johnson_lite": JohnsonLiteGenerator,
    "texture_network": TextureNetwork,
}


def build_generator(config: GeneratorConfig) -> Generator:
    """The generator that the config names, freshly initialized.

    Raises:
        StylizeError: No network of that name.
    """
    cls = pick(GENERATORS, config.name, "generator.name")
    return cls(config)
