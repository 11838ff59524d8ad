"""Which backends there are, and which one a call takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rmadapter_kernels import cpu
from rmadapter_kernels.calls import BackendStatus, Call
from rmadapter_kernels.checks import check_x
from rmadapter_kernels.triton import availability as triton

AUTO = "auto"


class Explanation(NamedTuple):
    """The backend that a call takes, and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


@dataclass(frozen=True)
class Backend:
    """How one backend answers for itself.

    Attributes:
        status: whether it can be used on this machine, and why or why not.
        refusal: why it cannot take a call (a sentence that says what it takes), or None where it can.
        advantage: why ``auto`` prefers it for a call that it can take, or None where it does not.
    """

    status: Callable[[], BackendStatus]
    refusal: Callable[[Call], str | None]
    advantage: Callable[[Call], str | None]


def _why_eager(call: Call) -> str:
    """What keeps ``auto`` from the others."""
    if call.x.device.type == "cpu" and cpu.AVAILABLE and cpu.refusal(*call) is None:
        return cpu.judgement(call.x.dtype)[1]
    return f"no faster one takes {call.x.dtype} tensors on {call.x.device.type}"


# By name, the fastest first; the last one takes every call.
BACKENDS: dict[str, Backend] = {
    "triton": Backend(triton.status, triton.refusal, triton.advantage),
    "cpu": Backend(
        status=lambda: BackendStatus(cpu.AVAILABLE, cpu.reason()),
        refusal=lambda call: cpu.refusal(*call),
        advantage=lambda call: cpu.advantage(call.x.dtype),
    ),
    "eager": Backend(
        status=lambda: BackendStatus(True, "plain PyTorch, runs wherever torch does"),
        refusal=lambda call: None,
        advantage=lambda call: _why_eager(call),
    ),
}


def available_backends() -> dict[str, BackendStatus]:
    """Every backend by name, the fastest first, with whether and why it can be used."""
    return {name: backend.status() for name, backend in BACKENDS.items()}


def _auto(call: Call) -> Explanation:
    for name, backend in BACKENDS.items():
        # In this order: whether there is a CUDA device is not asked for a tensor on the CPU. Asking makes a context,
        # and fails in a forked process.
        if backend.refusal(call) is None and backend.status().available:
            reason = backend.advantage(call)
            if reason is not None:
                return Explanation(name, reason)
    raise RuntimeError("no backend takes this call, though eager takes every one")


def _named(call: Call, name: str) -> Explanation:
    if not isinstance(name, str):
        raise TypeError(f"backend is {type(name).__name__}; valid: {AUTO}, {', '.join(BACKENDS)}")
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}; valid: {AUTO}, {', '.join(BACKENDS)}")
    status = BACKENDS[name].status()
    if not status.available:
        raise ValueError(f"backend is {name!r}, which is not available here: {status.reason}")
    refusal = BACKENDS[name].refusal(call)
    if refusal is not None:
        raise ValueError(f"backend is {name!r}, which cannot take this call: {refusal}")
    return Explanation(name, "asked for by name")


def choose(call: Call, backend: str) -> Explanation:
    """The backend for ``call``: the named one or none, ``auto`` the fastest that takes it.

    Raises:
        ValueError: ``backend`` is unknown, not available here, or cannot take the call.
    """
    return _auto(call) if backend == AUTO else _named(call, backend)


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype that the operator takes ``x`` in: autocast's, where it is on; raises where ``x`` is no input of it."""
    check_x(x)
    kind = x.device.type
    # Of a meta tensor there are no values to cast, and torch knows no autocast for it.
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def explain(x: Tensor, *, bottleneck: int = 32, rec_hidden: int | None = None, backend: str = AUTO) -> Explanation:
    """Which backend ``rm_adapter(x, ..., backend=backend)`` takes, and why; raises as it does.

    Args:
        x: [..., D].
        bottleneck: r of the weights.
        rec_hidden: h of the weights, 0 without a reconstruction branch; default: the bottleneck.
        backend: auto or a backend's name.
    """
    x = x.to(dtype_of(x))
    return choose(Call(x, bottleneck, bottleneck if rec_hidden is None else rec_hidden), backend)
