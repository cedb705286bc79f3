"""The one seam to fast kernels."""
