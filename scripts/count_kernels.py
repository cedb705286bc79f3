"""Count the kernels that a compiled training step starts on a GPU, without one.

The step is traced on fake tensors and lowered by torch's compiler for an H200; the programs that it writes are counted,
not run. Passes over the graph that need a driver are left out: the real number is somewhat smaller. What this uses of
torch is internal, and was written for torch 2.14::

    python scripts/count_kernels.py [--generator johnson] [--norm instance] [--precision bf16]
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import click
import torch
import triton
from torch import Tensor, fx, nn
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget

from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import VGG19, tap_depth
from stylize.norms import NORMS
from stylize.system.compute import MAP_TYPES

GPU = torch.device("cuda", 0)
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, L2_cache_size=60 << 20, total_memory=140 << 30, gcnArchName="", uuid="",
)  # fmt: skip
ANSWERS: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "current_device": lambda: 0,
    "device_count": lambda: 1,
    "get_device_properties": lambda device=None: H200,
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_rng_state": lambda: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda state: None,
    "get_device_capability": lambda device=None: (H200.major, H200.minor),
}


class Driver:
    """What the compiler asks Triton's driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * H200.major + H200.minor, H200.warp_size)

    def get_device_interface(self) -> Any:
        return torch.cuda


class Step(nn.Module):
    """From photographs to the total loss."""

    def __init__(self, generator: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.loss = loss

    def forward(self, content: Tensor) -> Tensor:
        total: Tensor = self.loss(self.generator(content), content)["total"]
        return total


class Lowering:
    """Lowers graphs for the GPU.

    Attributes:
        programs: The programs of the forward and the backward pass.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.programs: list[str] = []

    def forward(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return self._lower(gm, example_inputs, backward=False)

    def backward(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return self._lower(gm, example_inputs, backward=True)

    def _lower(self, graph: fx.GraphModule, inputs: Sequence[Any], *, backward: bool) -> Callable[..., Any]:
        original = copy.deepcopy(graph)
        with torch.no_grad(), V.set_fake_mode(self.mode):
            moved = [_on_gpu(value) for value in inputs]
            for node in graph.graph.nodes:
                node.args, node.kwargs = tree_map(_device, node.args), tree_map(_device, node.kwargs)
                node.meta = {**node.meta, "val": tree_map(_on_gpu, node.meta.get("val"))}
            with suppress(RuntimeError):  # some passes ask the driver
                post_grad_passes(graph, False)
            lowering = GraphLowering(graph, example_inputs=moved, is_backward=backward)
            with V.set_debug_handler(DebugContext()), V.set_graph_handler(lowering):
                lowering.run(*moved)
                program, _ = lowering.codegen()
        self.programs.append(getattr(program, "value", str(program)))
        compiled: Callable[..., Any] = original.forward
        return compiled


def _on_gpu(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)


def _device(value: Any) -> Any:
    return GPU if isinstance(value, torch.device) else value


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let the compiler believe that there is an H200, and operations that they are being compiled."""
    with ExitStack() as stack:
        for name, answer in ANSWERS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
            if hasattr(CudaInterface, name):  # which keeps the functions as they were when it was imported
                stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(answer)))
        stack.enter_context(mock.patch.object(torch.compiler, "is_compiling", lambda: True))
        triton.runtime.driver.set_active(Driver())  # for the rest of the process: the real one cannot be asked for
        yield


def build_step(generator: str, norm: str, precision: str, width: int, loss: LossConfig, crop_px: int) -> Step:
    """Return a step as a trainer sets it up."""
    network = build_generator(GeneratorConfig(name=generator, norm=norm, width=width)).train()
    maps = MAP_TYPES[precision]
    network.maps = None if maps == torch.float32 else maps
    criterion = PerceptualLoss(VGG19(tap_depth(loss.taps())), loss, [torch.rand(3, crop_px, crop_px)])
    criterion.hold_in(maps)
    return Step(network, criterion).to(memory_format=torch.channels_last)


def count_kernels(step: Step, batch: int, crop_px: int) -> list[Counter[str]]:
    """Return how many kernels the forward and the backward pass start, by kind."""
    mode = FakeTensorMode()
    lowering = Lowering(mode)
    with mode, pretended_gpu():
        state = {name: _fake(t) for name, t in (*step.named_parameters(), *step.named_buffers())}
        content = torch.empty(batch, 3, crop_px, crop_px).contiguous(memory_format=torch.channels_last)
        compiled = aot_function(
            lambda values, x: torch.func.functional_call(step, dict(zip(state, values, strict=True)), (x,)),
            fw_compiler=lowering.forward,
            bw_compiler=lowering.backward,
            decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
        compiled(list(state.values()), content).backward()
    return [kernels_of(program) for program in lowering.programs]


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return fake.requires_grad_(tensor.requires_grad)


def kernels_of(program: str) -> Counter[str]:
    """Count the kernels that a program starts.

    >>> dict(kernels_of("def call(args):\\n    triton_poi_fused_add_0.run(a)\\n    b = extern_kernels.bmm(c, d)\\n"))
    {'fused by Triton': 1, 'bmm': 1}
    """
    body = program[program.index("def call(") :]
    found = Counter({"fused by Triton": len(re.findall(r"triton_\w+\.run\(", body))})
    found.update(re.findall(r"(?:= |^ +)(?:torch\.ops\.aten|extern_kernels)\.(\w+)", body, re.MULTILINE))
    return found


@click.command()
@click.option("--generator", type=click.Choice(list(GENERATORS)), default="johnson", show_default=True)
@click.option("--norm", type=click.Choice(list(NORMS)), default="instance", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--width", type=int, default=32, show_default=True, help="Channels of the first convolution.")
@click.option("--batch", type=int, default=4, show_default=True, help="Number of crops.")
@click.option("--crop", type=int, default=256, show_default=True, help="Side of a crop, px.")
def main(generator: str, norm: str, precision: str, width: int, batch: int, crop: int) -> None:
    """Count the kernels that a compiled training step starts on a GPU, without one."""
    step = build_step(generator, norm, precision, width, LossConfig(vgg="random"), crop)
    counts = count_kernels(step, batch, crop)
    for name, kinds in zip(("forward", "backward"), counts, strict=True):
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        click.echo(f"{name}: {sum(kinds.values())} kernels: {listed}")
    click.echo(f"a step: {sum(sum(kinds.values()) for kinds in counts)} kernels, and those of the optimizer")


if __name__ == "__main__":
    main()
