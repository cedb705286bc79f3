"""Measures of paintings that no training minimizes: grid, frame, texture of flats, distributions, structure."""
