"""Time normalization layers, forward and backward.

stylize's layers, torch's, and batch-instance norm as the sum of two layers, in turns in one process, on maps in float32
and bfloat16; the parameters are float32. The times of a row are those of one call in `train()`, the totals those of one
call for each shape.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import click
import numpy as np
import torch
from benchmarks import remote
from benchmarks.compare import check_differences, relative_differences
from benchmarks.counts import NORM_PASSES, map_bytes
from benchmarks.floor import Floor
from benchmarks.measuring import number, ratios, spread, timed
from benchmarks.report import Finding, Table, share
from benchmarks.settings import Settings
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stylize.norms import BatchInstanceNorm, BatchNorm, InstanceNorm
from stylize.system.compute import MAP_TYPES
from stylize.system.memory import keep_freed_memory

SHAPES = ((4, 32, 256, 256), (4, 64, 128, 128), (4, 128, 64, 64), (1, 32, 256, 256))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
REPEATS = 5  # repeats of each step in a turn: a call takes milliseconds
GATE = 0.3
TOLERANCE = 1e-3
COARSE_TOLERANCE = 1e-2  # on CUDA the order of sums varies
ROUNDED_TOLERANCE = 5e-2  # of maps of 8 or 11 bits

TOTAL = "all shapes"
HEADER = (
    "layout",
    "shape",
    "precision",
    "layer",
    "forward ms",
    "backward ms",
    "sum ms (median, min..max)",
    "share of the floor, forward / backward / sum",
)
RATIO_HEADER = ("ratio of the sums (median, min..max)", *LAYOUTS)
RATIOS = (
    ("InstanceNorm", "nn.InstanceNorm2d"),
    ("BatchInstanceNorm", "InstanceNorm"),
    ("BatchInstanceNorm", "BatchNorm"),
    ("BatchInstanceNorm", "two layers"),
)
SAME = {"InstanceNorm": "nn.InstanceNorm2d", "BatchInstanceNorm": "two layers"}


class TwoLayers(nn.Module):
    """Batch-instance norm as in its authors' code: the sum of two layers with the gates in their factors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.gate = nn.Parameter(torch.full((channels,), GATE))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        running = self.get_buffer("running_mean"), self.get_buffer("running_var")
        of_batch = F.batch_norm(x, *running, self.weight * self.gate, self.bias, training=True)
        return of_batch + F.instance_norm(x, weight=self.weight * (1 - self.gate))


def layers(channels: int) -> dict[str, nn.Module]:
    """Return the layers by their names in the tables."""
    gated = BatchInstanceNorm(channels)
    nn.init.constant_(gated.gate, GATE)
    return {
        "InstanceNorm": InstanceNorm(channels),
        "nn.InstanceNorm2d": nn.InstanceNorm2d(channels, affine=True),
        "BatchNorm": BatchNorm(channels),
        "BatchInstanceNorm": gated,
        "two layers": TwoLayers(channels),
    }


class Case(NamedTuple):
    """A layer on maps of a shape and layout.

    Attributes:
        layout: A name of `LAYOUTS`.
        shape: Shape of the maps, `(N, C, H, W)`.
        layer: Name of the layer.
        precision: Type of the maps.
    """

    layout: str
    shape: tuple[int, ...]
    layer: str
    precision: str = "fp32"


class Seconds(NamedTuple):
    """Seconds of a call: medians of a turn."""

    forward: float
    backward: float


def cases(precisions: Sequence[str] = ("fp32",)) -> Iterator[Case]:
    """Return all cases, layers innermost, so that layers are compared right after each other."""
    for layout in LAYOUTS:
        for shape in SHAPES:
            for precision in precisions:
                for layer in layers(1):
                    yield Case(layout, shape, layer, precision)


class NormPlayer:
    """Times the layers."""

    def __init__(self, settings: Settings) -> None:
        keep_freed_memory()  # like `stylize train`
        self.device = settings.torch_device()
        self.seed = settings.seed
        self.precisions = settings.precisions()

    def play(self, steps: int) -> dict[Case, Seconds]:
        """Time one turn of every layer at every shape."""
        return {case: self._time(case, REPEATS * steps) for case in cases(self.precisions)}

    def differences(self, precision: str) -> dict[str, float]:
        """Return the largest differences of layers with the same mathematics, over all shapes and layouts.

        torch's layers run in the contiguous layout: `F.instance_norm` gives wrong gradients for a single image
        that is channels-last (torch 2.15, CPU).
        """
        found: dict[str, list[float]] = {}
        for case in cases((precision,)):
            if case.layer in SAME:
                plain = self._results(Case("contiguous", case.shape, SAME[case.layer], precision))
                for value, difference in relative_differences(plain, self._results(case)).items():
                    found.setdefault(f"{value} of {case.layer}", []).append(difference)
        return {name: float(np.max(differences)) for name, differences in found.items()}

    def _results(self, case: Case) -> dict[str, NDArray[np.float32]]:
        layer, x, output_gradient = self._prepare(case)
        output = layer(x)
        gradient, *of_parameters = torch.autograd.grad(output, [x, *layer.parameters()], output_gradient)
        # Together: a gate's gradient is a difference of sums as large as those of weight and bias, and may be 0.
        found = {"output": output, "gradient": gradient, "parameters' gradient": torch.cat(of_parameters)}
        return {name: value.detach().cpu().float().numpy() for name, value in found.items()}

    def _time(self, case: Case, repeats: int) -> Seconds:
        layer, x, output_gradient = self._prepare(case)
        inputs = [x, *layer.parameters()]

        def turn() -> tuple[float, float]:
            outputs: list[Tensor] = []
            forward = timed(lambda: outputs.append(layer(x)), self.device)
            return forward, timed(partial(torch.autograd.grad, outputs[0], inputs, output_gradient), self.device)

        turns = [turn() for _ in range(repeats + 1)]
        return Seconds(*map(statistics.median, zip(*turns[1:], strict=True)))

    def _prepare(self, case: Case) -> tuple[nn.Module, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        x, output_gradient = (
            torch.randn(case.shape, generator=generator).to(
                self.device, MAP_TYPES[case.precision], memory_format=LAYOUTS[case.layout]
            )
            for _ in range(2)
        )
        layer = layers(case.shape[1])[case.layer].to(self.device).train()
        return layer, x.requires_grad_(), output_gradient


def run(settings: Settings, floor: Floor) -> Finding:
    """Time the layers.

    Raises:
        click.ClickException: Layers of the same mathematics differ.
    """
    with remote.Remote("norms", NormPlayer, settings) as player:
        differences: dict[str, dict[str, float]] = {}
        for precision in settings.precisions():
            differences[precision] = player.call("differences", precision)
            check_differences(f"norms, {precision}", differences[precision], _tolerance(settings, precision))
        turns: list[dict[Case, Seconds]] = []
        for turn in range(settings.rounds):
            click.echo(f"norms: round {turn + 1} of {settings.rounds}", err=True)
            turns.append(player.call("play", settings.steps))
    rows = {case: [one[case] for one in turns] for case in turns[0]}
    found = {
        precision: {layout: layout_ratios(rows, layout, precision) for layout in LAYOUTS}
        for precision in settings.precisions()
    }
    names = [f"{a} / {b}" for a, b in RATIOS]
    ratio_rows = [
        (f"{name}, {precision}", *(str(spread(of_layouts[layout][name])) for layout in LAYOUTS))
        for precision, of_layouts in found.items()
        for name in names
    ]
    largest = ", ".join(f"{max(of_values.values()):.1g} in {name}" for name, of_values in differences.items())
    note = f"largest difference between layers of the same mathematics: {largest}"
    return Finding(
        [note],
        [Table(HEADER, list(_table_rows(rows, floor))), Table(RATIO_HEADER, ratio_rows)],
        {
            "rows": [{**case._asdict(), "seconds": [s._asdict() for s in seconds]} for case, seconds in rows.items()],
            "ratios": found,
            "differences": differences,
        },
    )


def _tolerance(settings: Settings, precision: str) -> float:
    if precision != "fp32":
        return ROUNDED_TOLERANCE
    return TOLERANCE if settings.torch_device().type == "cpu" else COARSE_TOLERANCE


def totals(rows: Mapping[Case, Sequence[Seconds]], layout: str, layer: str, precision: str = "fp32") -> list[Seconds]:
    """Return the sums of a layer over all shapes of a layout, by round."""
    wanted = layout, layer, precision
    of_shapes = [seconds for case, seconds in rows.items() if (case.layout, case.layer, case.precision) == wanted]
    return [
        Seconds(sum(s.forward for s in of_round), sum(s.backward for s in of_round))
        for of_round in zip(*of_shapes, strict=True)
    ]


def layout_ratios(
    rows: Mapping[Case, Sequence[Seconds]], layout: str, precision: str = "fp32"
) -> dict[str, list[float]]:
    """Return the ratios of two layers' times, forward and backward over all shapes, by round."""
    sums = {layer: [sum(seconds) for seconds in totals(rows, layout, layer, precision)] for layer in layers(1)}
    return {f"{a} / {b}": ratios(sums[a], sums[b]) for a, b in RATIOS}


def _table_rows(rows: Mapping[Case, Sequence[Seconds]], floor: Floor) -> Iterator[tuple[str, ...]]:
    for layout in LAYOUTS:
        of_layout = [case for case in rows if case.layout == layout]
        for case in of_layout:
            shape, cells = "×".join(map(str, case.shape)), _cells(rows[case], [case.shape], case.precision, floor)
            yield (layout, shape, case.precision, case.layer, *cells)
        for precision in dict.fromkeys(case.precision for case in of_layout):
            for layer in layers(1):
                cells = _cells(totals(rows, layout, layer, precision), SHAPES, precision, floor)
                yield (layout, TOTAL, precision, layer, *cells)


def _cells(
    seconds: Sequence[Seconds], shapes: Sequence[tuple[int, ...]], precision: str, floor: Floor
) -> Iterator[str]:
    sums = [sum(of_round) for of_round in seconds]
    medians = {name: statistics.median(getattr(of_round, name) for of_round in seconds) for name in Seconds._fields}
    yield from (number(1e3 * median) for median in medians.values())
    yield str(spread([1e3 * both for both in sums]))
    value_bytes = MAP_TYPES[precision].itemsize
    moved = {name: sum(map_bytes(shape, NORM_PASSES[name], value_bytes) for shape in shapes) for name in medians}
    reached = [floor.copy_share(moved[name], median) for name, median in medians.items()]
    yield " / ".join(map(share, [*reached, floor.copy_share(sum(moved.values()), statistics.median(sums))]))
