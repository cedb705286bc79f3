"""The one seam to fast kernels.

Each operation reads: if the compiled kernels serve these tensors, call them; else plain PyTorch, which every device,
autocast and `torch.compile` take. `reference()` turns all kernels off. The kernels and the compiler behind them are
imported when they are first needed.
"""

from stylize.ops.convolution import conv2d, conv2d_rows
from stylize.ops.dispatch import cpu_kernels, kernel_calls, preferred_layout, reference, widened
from stylize.ops.geometry import Border, Geometry, Upsampling, Window
from stylize.ops.gram import gram_matrix
from stylize.ops.loading import load_kernels
from stylize.ops.moments import Statistics, batch_statistics, layer_statistics
from stylize.ops.normalization import MergedStatistics, affine, fuses_norms, instance_statistics, normalize
from stylize.ops.padding import pad, upsample_to
from stylize.ops.pooling import max_pool2x2
from stylize.ops.rows import strip_rows

__all__ = [
    "Border",
    "Geometry",
    "MergedStatistics",
    "Statistics",
    "Upsampling",
    "Window",
    "affine",
    "batch_statistics",
    "conv2d",
    "conv2d_rows",
    "cpu_kernels",
    "fuses_norms",
    "gram_matrix",
    "instance_statistics",
    "kernel_calls",
    "layer_statistics",
    "load_kernels",
    "max_pool2x2",
    "normalize",
    "pad",
    "preferred_layout",
    "reference",
    "strip_rows",
    "upsample_to",
    "widened",
]
