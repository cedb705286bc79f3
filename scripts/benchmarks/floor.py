"""The floor: the rates at which the machine multiplies matrices and copies memory.

A large matrix product and a large copy are timed in turns. A share of the floor says more than seconds: it is
comparable between machines, and shows how much could be gained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from benchmarks import remote
from benchmarks.counts import product_flop
from benchmarks.measuring import environment, spread, timed
from benchmarks.report import Finding, Table
from benchmarks.settings import Settings

from stylize.system.compute import MAP_TYPES
from stylize.system.devices import multiplies_bf16

PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
REPEATS = 3
COPY = "copy"

HEADER = ("the machine", "rate (median, min..max)", "unit")


@dataclass(frozen=True)
class Floor:
    """The rates of the machine; shares refer to the best round, which was disturbed least.

    Attributes:
        environment: Environment of the measuring process.
        product_flops: FLOP/s of the product of each round, by data type.
        copy_bytes: Bytes read and written per second by the copy of each round.
    """

    environment: Mapping[str, str]
    product_flops: Mapping[str, list[float]]
    copy_bytes: list[float]

    def compute_share(self, flop: int, seconds: float, precision: str) -> float:
        """Return the rate of a computation relative to the matrix product of its type."""
        return flop / seconds / max(self.product_flops[self._kind(precision)])

    def copy_share(self, moved_bytes: int, seconds: float) -> float:
        """Return the rate of a pass over memory relative to the copy."""
        return moved_bytes / seconds / max(self.copy_bytes)

    def _kind(self, precision: str) -> str:
        # In which the plain side computes convolutions on CUDA, by torch's default.
        return "tf32" if precision == "fp32" and "tf32" in self.product_flops else precision


class FloorPlayer:
    """Times the product and the copy."""

    def __init__(self, settings: Settings) -> None:
        self.device = settings.torch_device()
        on_cuda = self.device.type == "cuda"
        kinds = ["fp32", *(["tf32"] if on_cuda else [])]
        if on_cuda or settings.precision == "bf16" or multiplies_bf16(self.device):
            kinds.append("bf16")
        if settings.precision == "fp16":
            kinds.append("fp16")
        self.kinds = kinds

    def environment(self) -> dict[str, str]:
        return environment(self.device)

    def play(self) -> dict[str, float]:
        """Return the rates of each product and of the copy, the best of a few repeats."""
        return {**{kind: self._product(kind) for kind in self.kinds}, COPY: self._copy()}

    def _product(self, kind: str) -> float:
        side = PRODUCT_SIDE[self.device.type]
        a, b, c = (
            torch.randn(side, side, device=self.device, dtype=MAP_TYPES.get(kind, torch.float32)) for _ in range(3)
        )
        with _matmul_precision("high" if kind == "tf32" else "highest"):
            return product_flop(side) / self._seconds(partial(torch.mm, a, b, out=c))

    def _copy(self) -> float:
        size = COPY_BYTES[self.device.type]
        source = torch.ones(size // 4, device=self.device)  # for zeros the system may map a single page many times
        target = torch.empty_like(source)
        return 2 * size / self._seconds(partial(target.copy_, source))

    def _seconds(self, function: partial[torch.Tensor]) -> float:
        timed(function, self.device)
        return min(timed(function, self.device) for _ in range(REPEATS))


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    yield
    torch.set_float32_matmul_precision(before)


def measure_floor(settings: Settings) -> Floor:
    """Measure the machine in a process of its own."""
    with remote.Remote("floor", FloorPlayer, settings) as player:
        told: dict[str, str] = player.call("environment")
        turns: list[dict[str, float]] = [player.call("play") for _ in range(settings.rounds)]
    products = {kind: [turn[kind] for turn in turns] for kind in turns[0] if kind != COPY}
    return Floor(told, products, [turn[COPY] for turn in turns])


def finding(floor: Floor) -> Finding:
    """Return the rates as a table."""
    rows = [
        (f"product of matrices, {kind}", str(spread([rate / 1e12 for rate in rates])), "TFLOP/s")
        for kind, rates in floor.product_flops.items()
    ]
    rows.append(("copy, read and written", str(spread([rate / 1e9 for rate in floor.copy_bytes])), "GB/s"))
    numbers = {"product_flops": floor.product_flops, "copy_bytes_per_second": floor.copy_bytes}
    return Finding([], [Table(HEADER, rows)], numbers)
