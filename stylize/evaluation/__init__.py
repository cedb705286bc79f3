"""Measures of models and pictures, and the slow reference."""
