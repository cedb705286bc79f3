"""Show log messages on the terminal."""

from __future__ import annotations

import io
import logging
import sys

from stylize.errors import shown


class _AboveTheBar(logging.Handler):
    """Prints lines without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        message = shown(self.format(record))
        tqdm = sys.modules.get("tqdm")  # no bar can be there before tqdm is
        if tqdm is not None:
            tqdm.tqdm.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr)


def show_every_name() -> None:
    """Let stdout and stderr escape what they cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_log() -> None:
    """Print the messages of the library to stderr, one plain line each; what Pillow logs of damaged files is not."""
    logging.getLogger("PIL").handlers[:] = [logging.NullHandler()]
    logger = logging.getLogger("stylize")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [_AboveTheBar()]
    logger.propagate = False
