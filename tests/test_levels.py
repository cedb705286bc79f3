"""Pixels travel between host and device as integers, from and to pinned memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stylize.pictures.picture import Picture
from stylize.pictures.raster import Metadata, Raster, raster_of
from stylize.system import levels
from stylize.system.levels import levels_to_device, levels_to_host, pinned, to_device
from stylize.system.row_store import RowStore

CPU, DEVICE = torch.device("cpu"), torch.device("meta")  # a device with memory of its own that every machine has
TYPES = pytest.mark.parametrize(("dtype", "white"), ((torch.uint8, 255), (torch.uint16, 65535)))


class Uploads(TorchDispatchMode):
    """Notes the types in which tensors leave the host."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sources = [value for value in args if isinstance(value, Tensor) and value.device == CPU]
        if isinstance(result, Tensor) and result.device == DEVICE:
            self.types += [source.dtype for source in sources]
        return result


@pytest.fixture
def cpu_as_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels in the host's memory are handled as in a device's."""
    monkeypatch.setattr(levels, "has_own_memory", lambda device: True)


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of values that were copied to pinned memory, on a machine that may have none."""
    places: set[int] = set()
    sizes: list[int] = []

    empty = torch.empty

    def room(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        if pin_memory:
            places.add(made.data_ptr())
            sizes.append(made.numel())
        return made

    monkeypatch.setattr(levels, "pins_memory", lambda device: device == DEVICE)
    monkeypatch.setattr(torch, "empty", room)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda values: values.data_ptr() in places)
    yield sizes


def raster(dtype: torch.dtype, white: int, channels: int = 3) -> Raster:
    return Raster(RowStore.holding(torch.randint(0, white + 1, (20, 30, channels)).to(dtype)))


@TYPES
def test_every_level_survives_the_way_to_a_device_and_back(dtype: torch.dtype, white: int, cpu_as_device: None) -> None:
    every = torch.arange(white + 1).to(dtype)
    there = levels_to_device(every, CPU)
    assert there.dtype in (torch.uint8, torch.int32)
    assert torch.equal(there.int(), torch.arange(white + 1, dtype=torch.int32))
    back = levels_to_host(there.float(), dtype)
    assert back.dtype == dtype
    assert torch.equal(back.int(), there.int())


@TYPES
@pytest.mark.parametrize("channels", (3, 4))
def test_a_photograph_goes_to_the_device_as_it_stands_in_its_file(
    dtype: torch.dtype, white: int, channels: int
) -> None:
    with Uploads() as uploads:
        picture = raster(dtype, white, channels).picture(device=DEVICE)
    assert uploads.types == [torch.uint8 if white == 255 else torch.int16]
    assert (picture.rgb.device, picture.rgb.dtype, picture.rgb.shape) == (DEVICE, torch.float32, (3, 20, 30))
    assert (picture.alpha is None) == (channels == 3)


@TYPES
@pytest.mark.parametrize("channels", (3, 4))
def test_on_a_device_pictures_have_the_levels_that_they_have_on_a_cpu(
    dtype: torch.dtype, white: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, notes = raster(dtype, white, channels), Metadata(bits=8 * dtype.itemsize)
    here = source.picture()
    painted = [Picture(torch.rand(3, 20, 30), here.alpha), Picture(torch.rand(3, 20, 30))]
    expected = [raster_of(pictures, notes) for pictures in (painted[:1], painted)]
    monkeypatch.setattr(levels, "has_own_memory", lambda device: True)
    there = source.picture()
    assert torch.equal(there.rgb, here.rgb)
    for pictures, one in zip((painted[:1], painted), expected, strict=True):
        found = raster_of(pictures, notes)
        assert found.rows.shape == one.rows.shape
        assert torch.equal(found.rows.read(0, 20).int(), one.rows.read(0, 20).int())


def test_copies_to_the_device_are_from_pinned_memory_and_nobody_waits_for_them(
    pins: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []
    to = torch.Tensor.to

    def noted(values: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if arguments[0] == DEVICE:
            waits.append(not options["non_blocking"])
        return to(values, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    to_device(torch.rand(6), DEVICE)
    assert (pins, waits) == ([6], [False])
    monkeypatch.setattr(levels, "PINNED_BYTES", 8)
    to_device(torch.rand(6), DEVICE)  # too large to be pinned: the next to come there must not overtake the copy
    assert (pins, waits) == ([6], [False, True])


def test_a_photograph_is_pinned_once_and_what_needs_no_pinning_stays_where_it_is(pins: list[int]) -> None:
    source = raster(torch.uint8, 255)
    expected = source.rows.read(0, 20).clone()
    assert source.ready_for(CPU) is source
    ready = source.ready_for(DEVICE)
    assert torch.equal(ready.rows.read(0, 20), expected)
    ready.picture(device=DEVICE)
    assert ready.ready_for(DEVICE) is ready
    assert pins == [20 * 30 * 3]


def test_a_cpu_gets_the_tensor_itself() -> None:
    values = torch.zeros(3, dtype=torch.uint16)
    assert levels_to_device(values, CPU) is values
    assert pinned(values, CPU) is values


def test_where_the_system_pins_no_memory_copies_go_on_without_and_that_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    empty = torch.empty

    def without(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: OS call failed\nand much about it")
        return empty(*shape, **options)

    levels._tell_without_pinning.cache_clear()
    monkeypatch.setattr(levels, "pins_memory", lambda device: True)
    monkeypatch.setattr(levels, "has_own_memory", lambda device: True)
    monkeypatch.setattr(torch, "empty", without)
    values = torch.arange(6, dtype=torch.uint8)
    assert pinned(values, DEVICE) is values
    assert torch.equal(levels_to_host(values.float(), torch.uint8), values)
    assert caplog.messages == [
        "no memory can be pinned (CUDA error: OS call failed): copies to and from the device take longer"
    ]
