"""Measures of models and pictures, and Gatys' optimization as the reference."""
