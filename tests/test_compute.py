"""The one choice of device, precision and layout, and what follows from it."""

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


def test_only_an_eager_cpu_in_float32_takes_images_one_by_one() -> None:
    assert CPU.image_by_image
    for other in (CUDA, MPS, Compute(CPU.device, "bf16"), Compute(CPU.device, compiled=True)):
        assert not other.image_by_image


def test_a_module_is_placed_in_the_layout_of_the_device() -> None:
    module = nn.Conv2d(4, 4, 3)
    assert CPU.place(module) is module
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert MPS.memory_format == torch.contiguous_format


def test_autocast_follows_the_precision() -> None:
    a = torch.ones(2, 2)
    with CPU.autocast():
        assert (a @ a).dtype == torch.float32
    with Compute(CPU.device, "bf16").autocast():
        assert (a @ a).dtype == torch.bfloat16


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_random_states_of_cuda_are_restored() -> None:
    states = CUDA.random_states()
    drawn = torch.rand(3, device="cuda")
    CUDA.set_random_states(states)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
