"""Which backends there are, and which one a call takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rmadapter_kernels.ops import OPERATORS

AUTO = "auto"


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and why or why not."""

    available: bool
    reason: str


class Explanation(NamedTuple):
    """The backend that a call takes, and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


def available_backends() -> dict[str, BackendStatus]:
    """Every backend by name, the fastest first, with whether and why it can be used."""
    return {"eager": BackendStatus(True, "plain PyTorch, runs wherever torch does")}


def choose(x: Tensor, backend: str) -> str:
    """The backend for ``x``: a named one or none, ``auto`` by device.

    Raises:
        ValueError: ``backend`` is not one of those that are here.
    """
    if backend == AUTO:
        return "eager"
    if backend not in OPERATORS:
        raise ValueError(f"backend is {backend!r}; valid: auto, {', '.join(OPERATORS)}")
    return backend


def explain(x: Tensor, *, backend: str = AUTO) -> Explanation:
    """Which backend ``rm_adapter(x, ..., backend=backend)`` takes, and why; raises as it does."""
    chosen = choose(x, backend)
    why = "asked for by name" if backend != AUTO else f"the only one so far for {x.device.type} tensors"
    return Explanation(chosen, why)
