"""Load the kernels ahead of their first use."""

from __future__ import annotations

from stylize.ops.dispatch import cpu_kernels


def load_kernels() -> None:
    """Load the kernels that paint, or compile them: their time and memory are then not part of the first picture's."""
    if cpu_kernels():
        from stylize.ops.cpu import norm, winograd

        norm.load_kernels()
        winograd.load_kernels()
