"""Kernels compiled for the processor at hand."""
