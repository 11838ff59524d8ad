"""Kernels of RMAdapter: one operator with its backends, usable without the rest.

from rmadapter_kernels import FusedRMAdapter, draw_weight
adapter = FusedRMAdapter(768, bottleneck=32, scale=0.001)
out, rec_loss = adapter(tokens, residual=block_out)
"""

from rmadapter_kernels.backends import AUTO, Explanation, available_backends, explain
from rmadapter_kernels.functional import rm_adapter, rm_adapter_
from rmadapter_kernels.module import FusedRMAdapter, draw_weight
from rmadapter_kernels.reference import ACTIVATIONS, OBJECTIVES, activation, reconstruction_loss, scale_gradient

__all__ = [
    "ACTIVATIONS",
    "AUTO",
    "OBJECTIVES",
    "Explanation",
    "FusedRMAdapter",
    "activation",
    "available_backends",
    "draw_weight",
    "explain",
    "reconstruction_loss",
    "rm_adapter",
    "rm_adapter_",
    "scale_gradient",
]
