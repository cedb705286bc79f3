"""Comparisons under the same conditions, as in the papers."""
