"""Optimization of a picture's pixels: Gatys' method, from a photograph, from noise, or from a painting; in tiles."""
