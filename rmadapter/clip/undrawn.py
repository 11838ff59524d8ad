"""Models built for weights from a file: the random ones, whose place those take, are not drawn.

Drawing them is most of the time of building a model, on one thread 1.3 s of ViT-B/16's and 4.9 s of ViT-L/14's, where
the rest takes 0.1 s (``open_clip.create_model`` without weights; a processor with AVX-512).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_DRAWS = {_aten.normal_.default, _aten.uniform_.default}
# What trunc_normal_ makes of the uniform numbers.
_FOLLOWS = {_aten.erfinv_.default}


class _Undrawn(TorchDispatchMode):
    """Inside it a tensor that would be drawn in place stays as it was allocated, with a NaN as its first element."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS and _is_skipped(args[0]):
            args[0].view(-1)[0] = math.nan
            return args[0]
        if func in _FOLLOWS and _is_skipped(args[0]) and _is_marked(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` returns, which makes a model and loads weights into it.

    Weights that it does not load are drawn after all: the model is then built a second time.
    """
    with _Undrawn():
        model = build()
    tensors = itertools.chain(model.parameters(), model.buffers())
    return build() if any(_is_skipped(tensor) and _is_marked(tensor) for tensor in tensors) else model


def _is_skipped(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_floating_point() and tensor.is_contiguous() and tensor.numel() > 0


def _is_marked(tensor: Tensor) -> bool:
    return math.isnan(float(tensor.detach().view(-1)[0]))
