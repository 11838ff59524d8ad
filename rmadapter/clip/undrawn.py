"""Models built for weights from a file: the random ones, whose place those take, are not drawn.

Drawing them is most of the time of building a model: on one thread of a busy Xeon ViT-B/16 took 1.3 s and ViT-L/14
3.0 s (``open_clip.create_model`` without weights), and so 0.3 and 0.7, in which memory is written to first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmadapter.clip.finite import has_nan

_DRAWS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


class _Undrawn(TorchDispatchMode):
    """Inside it what would be drawn in place is NaN.

    Not what the memory happened to hold: torch's ``trunc_normal_`` draws again for as long as a value is out of range.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS and args[0].is_floating_point():
            return args[0].fill_(math.nan)
        return func(*args, **(kwargs or {}))


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` returns, which makes a model and loads weights into it.

    Where weights are left that it does not load, it is built a second time, as it would have been at once.
    """
    state = torch.get_rng_state()
    with _Undrawn():
        model = build()
    if not any(has_nan(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())):
        return model
    del model
    torch.set_rng_state(state)
    return build()
