import os
import subprocess
import sys
import time
import weakref
from functools import partial
from threading import Barrier

import pytest
import torch

from stylize.system.threads import SHORT_SPINS, in_threads, let_waiting_threads_sleep, single_core_threads

ASK = """
import os, sys
sys.argv = ["stylize", "--version"]
from stylize.cli import main
try:
    main()
finally:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""


def test_each_thread_uses_one_core_and_the_others_keep_theirs() -> None:
    before = torch.get_num_threads()
    with single_core_threads(3) as threads:
        assert list(threads.map(lambda _: torch.get_num_threads(), range(9))) == [1] * 9
    assert torch.get_num_threads() == before
    with single_core_threads(1) as other:
        assert other.submit(torch.get_num_threads).result() == 1


@pytest.mark.parametrize("count", [1, 4, 2])
def test_work_is_done_at_the_same_time_once_for_each_number(count: int) -> None:
    all_there, numbers = Barrier(count, timeout=60), list[int]()

    def work(number: int) -> None:
        all_there.wait()
        numbers.append(number)

    in_threads(work, count)
    assert sorted(numbers) == list(range(count))


@pytest.mark.parametrize("failing", range(3))
def test_what_goes_wrong_in_a_thread_is_raised_when_all_have_ended(failing: int) -> None:
    ended = list[int]()

    def work(number: int) -> None:
        ended.append(number)
        if number == failing:
            raise ArithmeticError(f"number {number}")

    with pytest.raises(ArithmeticError, match=f"number {failing}"):
        in_threads(work, 3)
    assert sorted(ended) == [0, 1, 2]
    in_threads(ended.append, 3)
    assert sorted(ended) == [0, 0, 1, 1, 2, 2]


NESTED = """
from threading import Barrier
from stylize.system.threads import in_threads
ended = []
all_there = Barrier(4, timeout=30)  # all four at once
def inner(number):
    all_there.wait()
    ended.append(number)
in_threads(lambda number: in_threads(inner, 2), 2)
print(sorted(ended))
"""


def test_threads_may_be_started_in_threads() -> None:
    run = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout == "[0, 0, 1, 1]\n", run.stderr


def test_nothing_of_the_work_is_held_afterwards() -> None:
    def work(maps: torch.Tensor, number: int) -> None:
        maps[number] = 1

    maps = torch.zeros(2)
    in_threads(partial(work, maps), 2)
    assert maps.tolist() == [1, 1]
    reference, end = weakref.ref(maps), time.monotonic() + 60
    del maps
    while reference() is not None and time.monotonic() < end:
        time.sleep(0.001)  # who helped may not have come to it yet
    assert reference() is None


@pytest.mark.parametrize("chosen", [None, "70"])
def test_the_command_line_lets_waiting_threads_sleep_before_torch_is_there(chosen: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SHORT_SPINS}
    if chosen is not None:
        environment["GOMP_SPINCOUNT"] = chosen
    run = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1] == f"{chosen or SHORT_SPINS['GOMP_SPINCOUNT']} False", run.stderr


def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "70")
    let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "70"
