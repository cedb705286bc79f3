"""The one error a user can mend, and the one way to look a name up."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class StylizeError(Exception):
    """Something that the user can mend; the command line prints it as one line and exits with 1.

    Names and values that come from outside may hold control characters; they are shown escaped.

    >>> str(StylizeError("bad\\rkey: no such file"))
    'bad\\\\rkey: no such file'
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint that names the allowed word closest to `word`, or nothing if none is close.

    >>> nearest("instnce", ["batch", "instance"])
    " Did you mean 'instance'?"
    >>> nearest("xyz", ["batch", "instance"])
    ''
    """
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(name: str, allowed: Iterable[str], key: str) -> str:
    """The message for a name that is not one of the allowed ones.

    Args:
        name: What came.
        allowed: What would have been right.
        key: Where it came, as the user typed it.

    >>> unknown_name("instnce", ["instance", "batch"], "generator.norm")
    "generator.norm: got 'instnce', must be one of 'batch', 'instance'. Did you mean 'instance'?"
    """
    allowed = sorted(allowed)
    listed = ", ".join(f"'{word}'" for word in allowed)
    return f"{key}: got '{name}', must be one of {listed}.{nearest(name, allowed)}"


def pick(table: Mapping[str, T], name: str, key: str) -> T:
    """Look `name` up in a table of named kinds.

    Args:
        table: Kinds by name.
        name: The name asked for.
        key: Where the name was given, for the message (`generator.norm`, `--style`).

    Raises:
        StylizeError: No such name; the message lists the right ones and the nearest.

    >>> pick({"batch": 1, "instance": 2}, "instance", "generator.norm")
    2
    """
    if name not in table:
        raise StylizeError(unknown_name(name, table, key))
    return table[name]
