"""Prepared weights that are kept from one call to the next, where the user has asked for it.

What ``prepare`` made of some weights holds while they rest. Torch counts the writes to a tensor, so the counters tell;
but some writes are not counted: through ``.data``, by a replayed CUDA graph, into the parameters that FSDP gathers
anew. So nothing is kept unless ``configure(keep_prepared=True)`` says that these weights rest.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmadapter_kernels.triton.devices import current_stream
from rmadapter_kernels.triton.options import options

# What was kept: the versions of the weights, the result, and what waits for an end of the weights' memory.
_kept: dict[tuple, tuple[tuple, Tensor, list[weakref.finalize]]] = {}


def forget() -> None:
    """Keep nothing of what was made until now."""
    for key in [*_kept]:
        _drop(key)


def _drop(key: tuple) -> None:
    found = _kept.pop(key, None)
    for end in [] if found is None else found[2]:  # those of the other weights, which may live on
        end.detach()


def _recording(tensor: Tensor) -> bool:
    """Whether launches are being recorded: what is allocated now belongs to the graph, and must be made in it."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def kept(kind: tuple, weights: Sequence[Tensor | None], make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` gives, or gave on this stream for the same ``weights`` at the same versions.

    Args:
        kind: what else the result depends on.
        weights: an absent one is None.
    """
    present = [weight for weight in weights if weight is not None]
    # Tensors made under inference mode count nothing; those made in a compiled graph are new at each call.
    if not options().keep_prepared or any(w.is_inference() for w in present) or _recording(present[0]):
        return make()
    # On another stream it may be asked for before the kernel that makes it on this one has run.
    stream = current_stream(present[0].device) if present[0].is_cuda else None
    key = (kind, stream, *((w.data_ptr(), w.stride()) for w in present))
    versions = tuple(w._version for w in present)
    found = _kept.get(key)
    if found is not None and found[0] == versions:
        return found[1]
    result = make()
    # Another tensor may come to lie where one of these did, and count from zero again.
    ends = [weakref.finalize(w.untyped_storage(), _drop, key) for w in present] if found is None else found[2]
    _kept[key] = (versions, result, ends)
    return result
