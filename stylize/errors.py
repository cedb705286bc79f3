"""The one error a user can mend, its words, and the one way to look a name up."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

LISTED = 10


def shown(text: object) -> str:
    """Text of one line that a console can show and will not act on: everything else in it is escaped.

    A file's name may hold line breaks, escape codes, characters that turn the direction of writing, and bytes that are
    no text (lone surrogates).

    >>> shown("caf\\udce9\\n\\x1b[31m.png")
    'caf\\\\udce9\\\\n\\\\x1b[31m.png'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def reason_of(error: OSError) -> str:
    """What the system says about a failure, without the number and the name of the file.

    >>> reason_of(PermissionError(13, "Permission denied", "a.png")), reason_of(OSError("gone"))
    ('Permission denied', 'gone')
    """
    return error.strerror or str(error) or type(error).__name__


def listed(messages: Sequence[str]) -> str:
    """The first ten of many messages in one line, and the number of the others.

    >>> listed(["a: lost", "b: lost"])
    'a: lost; b: lost'
    >>> listed([str(i) for i in range(500)])
    '0; 1; 2; 3; 4; 5; 6; 7; 8; 9; and 490 more'
    """
    more = [f"and {len(messages) - LISTED} more"] if len(messages) > LISTED else []
    return "; ".join([*messages[:LISTED], *more])


class StylizeError(Exception):
    """Something that the user can mend; the command line prints it as one line and exits with 1.

    Names and values that come from outside may hold control characters; they are shown escaped.

    >>> str(StylizeError("bad\\rkey: no such file"))
    'bad\\\\rkey: no such file'
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


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
