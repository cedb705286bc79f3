"""Measures of models and pictures."""
