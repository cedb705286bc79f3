"""The styles of a model, and blends of them, as users name them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stylize.errors import StylizeError, nearest, unknown_name

SHOWN_NAMES = 20


class Blend(NamedTuple):
    """A convex blend of a model's styles.

    Attributes:
        label: Its name in file names: that of the style, or the names with their shares in percent.
        shares: The share of each of the model's styles; they sum to 1.
    """

    label: str
    shares: tuple[float, ...]


def blend_of(wanted: str | Mapping[str, float] | None, styles: Sequence[str], place: str = "style") -> Blend:
    """Return the blend that a user asks for.

    Args:
        wanted: A name, names with weights (`"wave:0.6,mosaic:0.4"`, or a mapping), or None: the only style.
        styles: The names of the model's styles.
        place: The option or argument that it came from, for messages.

    Raises:
        StylizeError: A name is unknown, a weight is no number above 0, or None and there are several styles.

    >>> blend_of("wave:3, mosaic:1", ["mosaic", "wave", "night"])
    Blend(label='wave-75-mosaic-25', shares=(0.25, 0.75, 0.0))
    >>> blend_of({"night": 2}, ["mosaic", "wave", "night"]).label
    'night'
    """
    if wanted is None:
        if len(styles) > 1:
            raise StylizeError(
                f"{place}: this model has {len(styles)} styles, must be one of {_listed(styles)}, or a blend such as "
                f"'{styles[0]}:0.6,{styles[1]}:0.4'"
            )
        return Blend(styles[0], (1.0,))
    weights = _weights(wanted, place)
    for name in weights:
        if name not in styles:
            few = unknown_name(name, styles, place)
            many = f"{place}: got '{name}', must be one of {_listed(styles)}.{nearest(name, styles)}"
            raise StylizeError(few if len(styles) <= SHOWN_NAMES else many)
    total = math.fsum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    if len(weights) == 1:
        return Blend(next(iter(weights)), tuple(float(name in weights) for name in styles))
    label = "-".join(f"{name}-{100 * share:.0f}" for name, share in shares.items())
    return Blend(label, tuple(shares.get(name, 0.0) for name in styles))


def _weights(wanted: str | Mapping[str, float], place: str) -> dict[str, float]:
    if not isinstance(wanted, str):
        pairs: list[tuple[str, object]] = list(wanted.items())
    else:
        parts = [part.rpartition(":") if ":" in part else (part, ":", "1") for part in wanted.split(",")]
        pairs = [(name.strip(), weight.strip()) for name, _, weight in parts]
    weights: dict[str, float] = {}
    for name, weight in pairs:
        try:
            number = float(weight)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise StylizeError(f"{place}: got the weight {str(weight)[:20]!r} for '{name}', must be a number above 0")
        if name in weights:
            raise StylizeError(f"{place}: got '{name}' twice")
        weights[name] = number
    if not weights:
        raise StylizeError(f"{place}: got no style, must name at least one")
    return weights


def _listed(styles: Sequence[str]) -> str:
    more = f" and {len(styles) - SHOWN_NAMES} more" if len(styles) > SHOWN_NAMES else ""
    return ", ".join(f"'{name}'" for name in styles[:SHOWN_NAMES]) + more
