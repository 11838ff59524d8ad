"""Triton's interpreter mended and made faster; imported for its effect by what runs in the interpreter.

As the bound of a loop Triton 3.6 takes ``int`` of an array of one element, which NumPy 2.4 refuses; later Tritons
squeeze it. And every call of a device function replaces all of ``triton.language`` again, which the launch around it
has done: more than half of the whole time. A third of the rest goes to a check of every sum and product of int32 for
overflow, whose result is thrown away: the assertion that would take it is for debug=True.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor
_patch_modules = interpreter._patch_lang


def _patch_and_squeeze(tensor, scope) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


@functools.cache
def _modules_of(function) -> frozenset[int]:
    """The modules of Triton's language that ``function`` sees, which are those that the interpreter replaces."""
    seen = {id(value) for value in function.__globals__.values() if inspect.ismodule(value)}
    return frozenset(seen & {id(interpreter.tl), id(interpreter.tl.core)})


class _Launch:
    """Replaces each module once a launch; the launch, which comes first, puts them back at its end."""

    def __init__(self) -> None:
        self.scope: Any = None
        self.replaced: frozenset[int] = frozenset()

    def begin_or_call(self, function) -> _Launch:
        modules = _modules_of(function)
        if not modules <= self.replaced:
            scope = _patch_modules(function)
            self.scope = self.scope or scope
            self.replaced |= modules
        return self

    def restore(self) -> None:
        scope, self.scope, self.replaced = self.scope, None, frozenset()
        scope.restore()


interpreter._patch_lang_tensor = _patch_and_squeeze
interpreter._patch_lang = _Launch().begin_or_call

_builder = interpreter.interpreter_builder
_builder.options = dataclasses.replace(_builder.options, sanitize_overflow=False)
