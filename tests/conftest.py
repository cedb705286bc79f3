import logging
import os

import pytest
import torch

# Commands compute on the CPU in float32, also on a machine with a GPU or with matrix units.
os.environ.setdefault("STYLIZE_DEVICE", "cpu")
os.environ.setdefault("STYLIZE_PRECISION", "fp32")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def log_anew() -> None:
    """Commands set up the log for a process of their own, those of fixtures too."""
    logger = logging.getLogger("stylize")
    logger.setLevel(logging.NOTSET)
    logger.handlers[:], logger.propagate = [], True
