"""Mistakes in a config in one line each: key, what came, what must hold, and the nearest right word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from stylize.errors import nearest, unknown_name

BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "none_required": "null",
    "finite_number": "a finite number",
}
UNKNOWN_KEY = ("extra_forbidden", "invalid_key")


def first_mistake(root: type[BaseModel], errors: Sequence[ErrorDetails], place: str) -> str:
    """The first of pydantic's errors as one line, and the number of the others.

    Args:
        root: The model that was validated.
        errors: pydantic's errors.
        place: Where the values came from, as the user typed it: a file, or an option.

    Returns:
        Place, key, what came and what must hold.
    """
    errors = sorted(errors, key=lambda error: error["type"] not in UNKNOWN_KEY)
    first = errors[0]
    path = _key_path(root, first)
    same = [e for e in errors if _key_path(root, e)[: len(path)] == path]
    key = ".".join(path)
    more = len({tuple(_key_path(root, e)) for e in errors}) - 1
    tail = f" (and {more} more)" if more else ""
    text = _mistake(root, first, same)
    return f"{place}: {key}: {text}{tail}" if key else f"{place}: {text}{tail}"


def _key_path(root: type[BaseModel], error: ErrorDetails) -> list[str]:
    """The keys down to the mistake, without pydantic's names for the members of a union."""
    path: list[str] = []
    model: Any = root
    for part in error["loc"]:
        fields = getattr(model, "model_fields", None)
        if get_origin(model) is dict:
            path.append(str(part))  # a name in a dict of models
            model = get_args(model)[1]
        elif isinstance(part, int) and fields is not None and path:
            path.append(str(part))  # the place in a list of models
        elif fields is not None:
            path.append(str(part))
            model = _inside(fields[part].annotation) if part in fields else None
        elif isinstance(part, int) or (path and path[-1].endswith("_layers")):
            path.append(str(part))
    return path


def _inside(annotation: Any) -> Any:
    """The type of a list's items, or of an optional value; a dict of models stays as it is."""
    held = get_args(annotation)
    return held[0] if held and not (get_origin(annotation) is dict and hasattr(held[1], "model_fields")) else annotation


def _mistake(root: type[BaseModel], error: ErrorDetails, same_key: Sequence[ErrorDetails]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in UNKNOWN_KEY:
        allowed = _fields_beside(root, error["loc"])
        name = str(error["loc"][-1])
        listed = ", ".join(f"'{key}'" for key in allowed)
        return f"unknown key, must be one of {listed}.{nearest(name, allowed)}"
    if kind == "missing":
        return "missing, must be given"
    if kind == "literal_error" and len(same_key) == 1:
        words = re.findall(r"'([^']*)'", str(context["expected"]))
        return unknown_name(str(value), words, "").removeprefix(": ")
    if kind in BOUNDS:
        bound, relation = BOUNDS[kind]
        return f"got {_shown(value)}, must be {relation} {context[bound]:.15g}"
    if kind == "string_pattern_mismatch":
        return f"got {_shown(value)}, must be letters, digits, '.', '_' and '-', starting with a letter or digit"
    expected = dict.fromkeys(_expected(other) for other in same_key)
    return f"got {_shown(value)}, must be {' or '.join(expected)}"


def _expected(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error.get("ctx", {}).get("expected"))
    if error["type"] in BOUNDS:
        name, words = BOUNDS[error["type"]]
        return f"{words} {error.get('ctx', {})[name]:.15g}"
    return TYPES.get(error["type"], error["msg"])


def _fields_beside(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed in the place of an unknown one."""
    model: Any = root
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        model = get_args(model)[1] if get_origin(model) is dict else _inside(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return kind_of(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return {"None": "nothing", "True": "true", "False": "false"}.get(text, text[:80])


def kind_of(value: Any) -> str:
    """The kind of a YAML value in words.

    >>> kind_of([1, 2]), kind_of(None)
    ('a list', 'nothing')
    """
    names = {dict: "keys with values", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), "a single value")
