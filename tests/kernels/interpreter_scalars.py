"""Triton 3.6's interpreter on NumPy 2.4 and later; imported for its effect by what runs in the interpreter.

As the bound of a loop it takes ``int`` of an array of one element, which NumPy 2.4 refuses; later Tritons squeeze it.
"""

from __future__ import annotations

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patch_and_squeeze(tensor, scope) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


interpreter._patch_lang_tensor = _patch_and_squeeze
