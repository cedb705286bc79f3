"""When torch.compile is possible, when it pays, and where its code is kept."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from stylize.errors import StylizeError
from stylize.system import distributed

logger = logging.getLogger("stylize")

OLDEST_OF_TRITON = (7, 0)  # compute capability
PAYS_FROM_STEPS = 2000
GRAPHS = "graphs"  # of `train.compile`: compiled, and replayed as CUDA graphs


def choose_compile(name: str, device: torch.device, steps: int) -> bool:
    """Whether to compile the training step; the choice of `auto` is logged with its reason.

    Args:
        name: `always`, `never`, `graphs` or `auto`: where it is faster and the run is long enough.
        device: The device to train on.
        steps: Number of training steps.

    Raises:
        StylizeError: `always` or `graphs`, but no compiler is found; or `graphs` where there are no CUDA graphs.
    """
    if name == GRAPHS:
        _check_graphs(device)
    if name in ("always", GRAPHS):
        check_compiler(device, "train.compile", name)
    if name != "auto":
        return name in ("always", GRAPHS)
    obstacle = why_not_compile(device)
    if obstacle is None and steps < PAYS_FROM_STEPS:
        obstacle = f"{steps} steps on {device.type}, fewer than the {PAYS_FROM_STEPS} that repay it"
    if obstacle is not None:
        logger.info("train.compile: auto is off: %s", obstacle)
        return False
    reason = f"{device.type}, a compiler is found, {steps} steps, at least the {PAYS_FROM_STEPS} that repay it"
    logger.info("train.compile: auto is on: %s", reason)
    return True


def _check_graphs(device: torch.device) -> None:
    """Refuse CUDA graphs where there are none, and with several processes, whose exchange they would have to record."""
    processes = distributed.count()
    if device.type == "cuda" and processes == 1:
        return
    where = f"{processes} processes" if processes > 1 else device.type
    raise StylizeError(
        f"train.compile: got '{GRAPHS}' with {where}, must be auto, always or never: it needs cuda, one process"
    )


def check_compiler(device: torch.device, place: str, asked: str = "always") -> None:
    """Check that compilation is possible where it was asked for.

    Args:
        device: The device to compute on.
        place: The option that asked, for the message (`train.compile`, `--compile`).
        asked: Its value.

    Raises:
        StylizeError: No compiler is found.
    """
    if not has_compiler(device):
        raise StylizeError(f"{place}: got '{asked}', but no compiler for {device.type} is found")


def has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` finds what it needs: Python's headers and a compiler, on CUDA Triton and a GPU for it.

    Triton compiles its kernels itself, but their launcher is C.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None or not _supports_triton(device):
            return False
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++", "cl"]
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return headers and any(shutil.which(name) for name in names)


def _supports_triton(device: torch.device) -> bool:
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= OLDEST_OF_TRITON


def why_not_compile(device: torch.device) -> str | None:
    """The reason why compiled networks would not pay, however long they compute; None where they may."""
    if device.type == "cpu":
        return "on cpu the kernels of the eager networks, which it would turn off, are faster"
    if device.type != "cuda":
        return f"it pays on cuda, not on {device.type}"
    return None if has_compiler(device) else f"no compiler for {device.type} is found"


def keep_compiled_code() -> None:
    """Let `torch.compile` keep compiled code for the next run, in the user's own cache folder.

    torch's default is a folder of guessable name among the temporary files: gone after a restart, and code that is run
    should not come from where others may write. torch reads the variable when it compiles, and keeps Triton's kernels
    below the same folder. A variable that the user has set stays.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "stylize", "compiled")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("%s: cannot be created (%s); compiled code is not kept there", folder, error.strerror)
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
