"""The one choice of device, precision and layout, and what follows from it."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from stylize.errors import StylizeError
from stylize.system.compute import Compute

CPU, CUDA, MPS = (Compute(torch.device(kind)) for kind in ("cpu", "cuda", "mps"))


def test_a_choice_by_name_refuses_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Compute.choose("cpu") == CPU
    assert Compute.choose("cpu", "bf16").dtype == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StylizeError, match="--device: got 'cuda', which torch does not find here"):
        Compute.choose("cuda")


def test_only_an_eager_cpu_takes_images_one_by_one() -> None:
    assert CPU.image_by_image and Compute(CPU.device, "bf16").image_by_image
    for other in (CUDA, MPS, Compute(CPU.device, compiled=True)):
        assert not other.image_by_image


def test_a_module_is_placed_in_the_layout_of_the_device() -> None:
    module = nn.Conv2d(4, 4, 3)
    assert CPU.place(module) is module
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert MPS.memory_format == torch.contiguous_format


def test_a_network_gets_images_in_the_layout_of_the_device() -> None:
    images = torch.rand(2, 3, 4, 5)
    found = Compute(CPU.device, "bf16").network_input(images)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, images)


@pytest.fixture
def switches() -> Iterator[Callable[[], tuple[bool, ...]]]:
    """What torch's switches say; unchanged after the test."""

    def present() -> tuple[bool, ...]:
        return (
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
        )

    before = present()
    yield present
    assert present() == before


def test_float32_on_cuda_is_float32_and_a_rounded_precision_allows_rounded_products(
    switches: Callable[[], tuple[bool, ...]],
) -> None:
    with Compute(CUDA.device, "fp32").context():
        assert switches() == (False, False, False, False)
    with Compute(CUDA.device, "bf16", tuned=True).context():
        assert switches() == (True, True, False, True)
    with Compute(CUDA.device, "bf16", deterministic=True, tuned=True).context():
        assert switches() == (True, True, True, False)
    before = switches()
    with Compute(CPU.device, "bf16", deterministic=True).context():
        assert switches() == before


def test_of_overlapping_computations_the_strictest_wish_holds(switches: Callable[[], tuple[bool, ...]]) -> None:
    exact, fast = Compute(CUDA.device, "fp32").context(), Compute(CUDA.device, "bf16").context()
    fast.__enter__()
    exact.__enter__()
    assert not switches()[0]
    fast.__exit__(None, None, None)  # not in the order of entry, as threads leave
    assert not switches()[0]
    exact.__exit__(None, None, None)


def test_what_is_not_compiled_is_the_function_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "there")
    monkeypatch.setattr(torch, "compile", lambda function: (function, "compiled"))
    assert CPU.compile(abs) is abs
    assert Compute(CPU.device, compiled=True).compile(abs) == (abs, "compiled")


def test_random_generators_of_the_device_are_saved_only_where_it_has_its_own() -> None:
    assert CPU.random_states() == []
    before = torch.get_rng_state()
    CPU.set_random_states([])
    assert torch.equal(torch.get_rng_state(), before)
    assert (CPU.copies_in_background, CUDA.copies_in_background) == (False, True)


def test_the_random_state_is_that_of_this_processs_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {torch.device("cuda", 2): torch.tensor([2]), torch.device("cuda", 0): torch.tensor([7])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    third = Compute(torch.device("cuda", 2))
    assert [state.item() for state in third.random_states()] == [2]
    third.set_random_states([torch.tensor([3]), torch.tensor([4])])  # an older version kept those of all GPUs
    third.set_random_states([])  # of a run on a CPU
    assert {device.index: state.item() for device, state in states.items()} == {2: 3, 0: 7}


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str | None]:
    """What the variable says that makes cuBLAS deterministic."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    return lambda: os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_a_deterministic_training_prepares_cublas_and_any_on_cuda_is_tuned(
    workspace: Callable[[], str | None],
) -> None:
    fast = Compute.for_training(CUDA.device, "bf16", "never", 10)
    assert (fast.deterministic, fast.tuned, fast.graphs) == (False, True, False)
    assert workspace() is None
    exact = Compute.for_training(CUDA.device, "fp32", "never", 10, deterministic=True)
    assert (exact.deterministic, exact.tuned) == (True, True)
    assert workspace() == ":4096:8"
    assert not Compute.for_training(CPU.device, "auto", "never", 10).tuned


class FakeEvent:
    """An event of a stream whose device has done all that was recorded before `done_s`."""

    now_s, done_s = 0.0, 100.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at_s = FakeEvent.now_s

    def query(self) -> bool:
        return self.at_s <= FakeEvent.done_s

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1000 * (end.at_s - self.at_s)


def test_on_cuda_waiting_is_the_time_in_which_the_device_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    waits = CUDA.waits()
    for begin_s, end_s in ((0, 2), (5, 5), (8, 9), (200, 201)):
        FakeEvent.now_s = begin_s
        waits.begin()
        FakeEvent.now_s = end_s
        waits.end()
    waits.begin()  # no batch follows the last
    assert waits.taken_s() == 3
    assert waits.taken_s() == 0
    monkeypatch.setattr(FakeEvent, "done_s", 1000.0)
    assert waits.taken_s() == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_random_states_of_cuda_are_restored() -> None:
    states = CUDA.random_states()
    drawn = torch.rand(3, device="cuda")
    CUDA.set_random_states(states)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
