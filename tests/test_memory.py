import subprocess
import sys

import pytest

FREE_SMALL_THINGS = """
import torch
from stylize.system.memory import own_bytes, return_freed_memory
things = [torch.ones(5000) for _ in range(10_000)]  # 200 MB
last = torch.ones(5000)  # above all of them, so that nothing is returned by itself
del things
before = own_bytes()
return_freed_memory()
print(before - own_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's C library is asked")
def test_what_small_things_leave_is_returned() -> None:
    run = subprocess.run([sys.executable, "-c", FREE_SMALL_THINGS], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 150e6
