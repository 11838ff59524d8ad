"""What a user may choose for the Triton backend beyond the operator's arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

PRECISIONS = ("ieee", "tf32", "tf32x3")


@dataclass(frozen=True)
class Options:
    """Options of the Triton backend; they hold for the whole process, all its threads (backward runs in its own).

    Attributes:
        fp32_precision: products of fp32 inputs: ieee, tf32 (10-bit mantissas), tf32x3 (three tf32 products, nearly
            ieee's accuracy); None: as ``torch.backends.cuda.matmul.fp32_precision`` says, tf32 or ieee.
        keep_prepared: prepared weights are kept from one call to the next while torch's version counters of the
            weights stand. For inference with weights that rest: a write which the counters do not see (through
            ``.data``, in a replayed CUDA graph, in what FSDP gathers) is not seen here either. False: they are kept
            from a forward call to its own backward alone.
    """

    fp32_precision: str | None = None
    keep_prepared: bool = False

    def __post_init__(self) -> None:
        if self.fp32_precision is not None and self.fp32_precision not in PRECISIONS:
            raise ValueError(f"fp32_precision is {self.fp32_precision!r}; valid: None, {', '.join(PRECISIONS)}")
        if not isinstance(self.keep_prepared, bool):
            raise TypeError(f"keep_prepared is {self.keep_prepared!r}; valid: True, False")


_current = Options()


def options() -> Options:
    """The options in force."""
    return _current


def _set(chosen: Options) -> None:
    global _current
    _current = chosen


@contextmanager
def _restoring(previous: Options) -> Iterator[Options]:
    try:
        yield _current
    finally:
        _set(previous)


def configure(**changes: Any) -> Any:
    """Change options from now on; used as a context manager, until it ends.

    Raises:
        TypeError, ValueError: an unknown option or value.
    """
    previous = _current
    _set(replace(previous, **changes))
    return _restoring(previous)
