"""The Triton backend: its options. Kernels, and Triton itself, are imported at the first call.

rmadapter_kernels.triton.configure(fp32_precision="tf32x3", keep_prepared=True)
"""

from rmadapter_kernels.triton.options import Options, configure, options

__all__ = ["Options", "configure", "options"]
