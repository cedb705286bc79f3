"""What the program's log shows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("stylize")


@contextmanager
def only_warnings(asked: bool = True) -> Iterator[None]:
    """Within the block this thread logs warnings only, if asked; other threads log as before."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != thread

    if asked:
        logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
