import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Commands set up the log for a process of their own."""
    logger = logging.getLogger("stylize")
    before = logger.level, logger.handlers[:], logger.propagate
    yield
    logger.setLevel(before[0])  # forgets what it held for enabled
    logger.handlers[:], logger.propagate = before[1:]
