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
        max_autotune: measure every launch configuration at the first call with new shapes and keep the fastest, in
            memory and on disk (``RMADAPTER_CACHE``, default ~/.cache/rmadapter); never during graph capture.
    """

    fp32_precision: str | None = None
    max_autotune: bool = False

    def __post_init__(self) -> None:
        if self.fp32_precision is not None and self.fp32_precision not in PRECISIONS:
            raise ValueError(f"fp32_precision is {self.fp32_precision!r}; valid: None, {', '.join(PRECISIONS)}")
        if not isinstance(self.max_autotune, bool):
            raise TypeError(f"max_autotune is {self.max_autotune!r}; valid: True, False")


_current = Options()
_generation = 0


def options() -> Options:
    """The options in force."""
    return _current


def generation() -> int:
    """Changes with every change of options; cheaper to compare than they are."""
    return _generation


def _set(chosen: Options) -> None:
    global _current, _generation
    _current, _generation = chosen, _generation + 1


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
