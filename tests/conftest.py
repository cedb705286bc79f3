import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def log_anew() -> None:
    """Commands set up the log for a process of their own, those of fixtures too."""
    logger = logging.getLogger("stylize")
    logger.setLevel(logging.NOTSET)
    logger.handlers[:], logger.propagate = [], True
