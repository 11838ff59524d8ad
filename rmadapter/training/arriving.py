"""Values on their way from the GPU to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Arriving:
    """The values that a tensor has now, on their way to the host: the GPU is not held up, ``wait`` alone waits."""

    def __init__(self, tensor: Tensor):
        tensor = tensor.detach()
        self._event = None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._values = tensor.clone()

    def wait(self) -> Tensor:
        """The values, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
