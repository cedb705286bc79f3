"""Files damaged by chance.

`STYLIZE_FUZZ=10` tries ten times as many mutations as the suite does.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

from stylize.errors import StylizeError

TIMES = int(os.environ.get("STYLIZE_FUZZ", "1"))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with some bytes changed, a piece cut out, doubled, or the end cut off."""
    changed = bytearray(content)
    kind = draw.choice(["bits", "bits", "bytes", "cut", "out", "double"])
    start = draw.randrange(min(len(changed), draw.choice([64, 2000, len(changed)])))
    length = draw.randrange(1, 50)
    if kind == "bits":
        for _ in range(draw.randrange(1, 8)):
            changed[draw.randrange(start, len(changed))] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        changed[start : start + length] = draw.randbytes(length)
    elif kind == "cut":
        del changed[start:]
    elif kind == "out":
        del changed[start : start + length]
    else:
        changed[start:start] = changed[start : start + length]
    return bytes(changed)


def outcome(path: Path, read: Callable[[Path], object]) -> str:
    """Whether a file is read or refused; anything else is an error of the program."""
    try:
        read(path)
    except StylizeError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return "refused"
    return "read"
