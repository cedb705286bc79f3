"""Record the statistics that the norms of a network use, or freeze them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from stylize.errors import pick
from stylize.norms import Norm
from stylize.ops import Statistics


@contextmanager
def recorded_statistics(module: nn.Module) -> Iterator[dict[str, Statistics]]:
    """Let every norm in `module` record its instance statistics within the block.

    Afterwards the dict holds those of the last forward pass, by the norms' names.
    """
    layers = {n: m for n, m in module.named_modules() if isinstance(m, Norm)}
    statistics: dict[str, Statistics] = {}
    for layer in layers.values():
        layer.recording = True
    try:
        yield statistics
        statistics.update({n: m.recorded for n, m in layers.items() if m.recorded is not None})
    finally:
        for layer in layers.values():
            layer.recording, layer.recorded = False, None


@contextmanager
def frozen_statistics(module: nn.Module, statistics: Mapping[str, Statistics]) -> Iterator[None]:
    """Let the norms named in `statistics` use these in place of the images' own within the block.

    Raises:
        StylizeError: A name is not a norm of `module`.
    """
    layers = {n: m for n, m in module.named_modules() if isinstance(m, Norm)}
    chosen = [(pick(layers, name, "frozen statistics"), given) for name, given in statistics.items()]
    for layer, given in chosen:
        layer.frozen = given
    try:
        yield
    finally:
        for layer, _ in chosen:
            layer.frozen = None
