"""Batches come in their order, one ahead of the work on them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.system.compute import Compute
from stylize.training.prefetch import one_ahead, prefetched

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def counted(count: int, taken: list[int]) -> Iterator[int]:
    for i in range(count):
        taken.append(i)
        yield i
    raise StylizeError("no more")


def test_the_next_item_is_there_before_it_is_asked_for() -> None:
    taken: list[int] = []
    items = one_ahead(counted(3, taken))
    assert next(items) == 0
    assert taken == [0, 1]


def test_what_is_wrong_with_an_item_is_told_after_the_one_before_it_is_used() -> None:
    items, used = one_ahead(counted(3, [])), []
    with pytest.raises(StylizeError, match="no more"):
        used.extend(items)
    assert used == [0, 1, 2]
    assert list(one_ahead(iter(()))) == []


def test_on_the_cpu_batches_pass_through() -> None:
    batches = iter([torch.zeros(1)])
    assert prefetched(batches, Compute(torch.device("cpu"))) is batches


@cuda
def test_on_cuda_batches_arrive_whole_while_others_are_worked_on() -> None:
    def pinned() -> Iterator[Tensor]:
        for i in range(50):
            yield torch.full((4, 3, 256, 256), i, dtype=torch.uint8).pin_memory()

    sums = []
    for batch in prefetched(pinned(), Compute(torch.device("cuda", 0))):
        work = torch.randn(2048, 2048, device=batch.device)
        for _ in range(5):
            work = work @ work
        sums.append(batch.float().mean())
    assert torch.stack(sums).tolist() == list(range(50))
