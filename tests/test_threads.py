import os
import subprocess
import sys

import pytest
import torch

from stylize.threads import SHORT_SPINS, let_waiting_threads_sleep, single_core_threads

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
