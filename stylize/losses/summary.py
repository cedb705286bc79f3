"""The terms of a loss in one line: which are named, in what order, with how many digits."""

from __future__ import annotations

from collections.abc import Mapping

from stylize.losses.terms import TERMS, in_order


def headline_terms() -> list[str]:
    """Return the terms that one-line summaries name, in the order of tables."""
    return [name for name in in_order(TERMS) if TERMS[name].digits is not None]


def headline_measures() -> list[str]:
    """Return the measures of these terms."""
    return [measure for name in headline_terms() for measure in TERMS[name].measures]


def label_of(name: str) -> str:
    """Return the name of a term, total or measure for people.

    >>> label_of("tv"), label_of("content_correlation")
    ('total variation', 'content correlation')
    """
    return TERMS[name].label if name in TERMS else name.replace("_", " ")


def progress_text(values: Mapping[str, float]) -> str:
    """Return the headline terms in a few words, for a progress bar.

    >>> progress_text({"content": 0.51234, "style": 0.12345, "tv": 0.1})
    'style 0.1235, content 0.512'
    """
    return ", ".join(f"{name} {values[name]:.{TERMS[name].digits}f}" for name in headline_terms())


def held_out_text(values: Mapping[str, float]) -> str:
    """Return the headline terms of a validation, each with what it is to be compared with.

    >>> values = {"style": 0.1, "style_of_photographs": 0.8, "content": 0.5, "content_correlation": 0.6}
    >>> held_out_text(values)
    'style 0.1000 (photographs: 0.8000), content 0.5000 (correlation 0.600)'
    """
    return ", ".join(_beside(name, values) for name in headline_terms())


def of_photographs(term: str) -> str:
    """Return the name of a term's value for photographs that are not stylized."""
    return f"{term}_of_photographs"


def _beside(term: str, values: Mapping[str, float]) -> str:
    unstylized = values.get(of_photographs(term))
    beside = [] if unstylized is None else [f"photographs: {unstylized:.4f}"]
    beside += [f"{words} {values[measure]:.3f}" for measure, words in TERMS[term].measures.items()]
    return f"{term} {values[term]:.4f}" + (f" ({', '.join(beside)})" if beside else "")


def headline_values() -> list[str]:
    """Return the names of all values in `held_out_text`, in its order."""
    return [name for term in headline_terms() for name in (term, of_photographs(term), *TERMS[term].measures)]
