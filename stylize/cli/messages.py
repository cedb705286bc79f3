"""How the command line shows what the library logs."""

from __future__ import annotations

import logging
import sys


class _BelowTheBar(logging.Handler):
    """Writes lines without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        tqdm = sys.modules.get("tqdm")  # no bar can be there before tqdm is
        if tqdm is not None:
            tqdm.tqdm.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr)


def show_log() -> None:
    """Show what the library logs, one plain line a message, on stderr."""
    logger = logging.getLogger("stylize")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [_BelowTheBar()]
    logger.propagate = False
