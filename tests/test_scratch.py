from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor

from stylize.system.scratch import SMALL_BYTES, ScratchPool, allocate, map_pages

LARGE = (SMALL_BYTES // 1024, 1024)  # of bytes


def filled(pool: ScratchPool, value: int, shape: tuple[int, ...] = LARGE) -> Tensor:
    return pool.take(shape, torch.uint8).fill_(value)


@pytest.mark.parametrize("shape", ((), (0,), (3, 5), LARGE, (2, *LARGE)))
@pytest.mark.parametrize("dtype", (torch.uint8, torch.float32, torch.bfloat16))
def test_tensors_have_the_shape_asked_for_and_can_be_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for taken in (allocate(shape, dtype), ScratchPool().take(shape, dtype)):
        assert taken.shape == shape
        assert taken.dtype == dtype
        assert taken.is_contiguous()
        assert torch.equal(taken.fill_(3), torch.full(shape, 3, dtype=dtype))


def test_large_tensors_begin_with_a_page() -> None:
    assert allocate(LARGE, torch.uint8).data_ptr() % 4096 == 0
    assert ScratchPool().take(LARGE, torch.uint8).data_ptr() % 4096 == 0
    assert len(map_pages(10_000)) == 10_000


def test_what_somebody_holds_is_not_given_to_another() -> None:
    pool = ScratchPool()
    held = [filled(pool, value) for value in range(8)]
    assert [int(tensor.max()) for tensor in held] == [int(tensor.min()) for tensor in held] == list(range(8))


@pytest.mark.parametrize("part", (lambda x: x[3:5], lambda x: x.numpy()[3:], lambda x: x.permute(1, 0), lambda x: x[0]))
def test_a_part_keeps_the_whole(part: object) -> None:
    pool = ScratchPool()
    kept = part(filled(pool, 1))  # type: ignore[operator]
    for _ in range(3):
        filled(pool, 2)
    assert kept.min() == kept.max() == 1


def test_the_smallest_that_suffices_is_taken() -> None:
    pool = ScratchPool()
    shapes = ((4, *LARGE), (2, *LARGE), (3, *LARGE))
    held = [filled(pool, 0, shape) for shape in shapes]
    places = [tensor.data_ptr() for tensor in held]
    del held
    assert filled(pool, 0, (2, *LARGE)).data_ptr() == places[1]
    assert filled(pool, 0, (3, *LARGE)).data_ptr() == places[2]
    assert filled(pool, 0).data_ptr() == places[1]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read what the process holds from")
def test_memory_goes_back_to_the_system() -> None:
    pool, sizes_mib = ScratchPool(), range(64, 96)
    before = resident_bytes()
    for size_mib in sizes_mib:  # every one too large for what is free
        filled(pool, 1, (size_mib, 2**20))
    assert resident_bytes() - before < 100 * 2**20
    pool.clear()
    assert resident_bytes() - before < 10 * 2**20
    held = [allocate((64, 2**20), torch.uint8).fill_(1) for _ in range(2)]
    assert resident_bytes() - before > 120 * 2**20
    del held
    assert resident_bytes() - before < 10 * 2**20


def test_threads_have_pieces_of_their_own() -> None:
    pool, wrong = ScratchPool(), []

    def use(value: int) -> None:
        for i in range(200):
            taken = filled(pool, value, (1 + i % 3, *LARGE))
            if not bool((taken == value).all()):
                wrong.append(value)
            if i % 50 == 0:
                pool.clear()

    threads = [Thread(target=use, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
