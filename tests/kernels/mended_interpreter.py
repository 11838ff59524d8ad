"""Triton's interpreter mended and made faster; imported for its effect by what runs in the interpreter.

As the bound of a loop Triton 3.6 takes ``int`` of an array of one element, which NumPy 2.4 refuses; later Tritons
squeeze it. And every call of a device function replaces all of ``triton.language`` again, which the launch around it
has done: more than half of the whole time. A third of the rest goes to a check of every sum and product of int32 for
overflow, whose result is thrown away: the assertion that would take it is for debug=True.

bf16, for which NumPy has no type, is kept as the bits of its values. The interpreter multiplies those bits as integers
in a product of tiles, and cuts fp32 off where a GPU rounds to nearest. Both are mended here. Sums and products of bf16
tiles outside a product of tiles stay wrong: the kernels compute in fp32.

A product in tf32 is one of fp32 in the interpreter. Here it cuts the last 13 bits of its operands off, as a GPU does.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np
import torch
import triton.language as tl
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


def _to_fp32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


_dot, _cast = interpreter.InterpreterBuilder.create_dot, interpreter.InterpreterBuilder.cast_impl


def _dot_of_values(self, a, b, d, precision, *rest):
    tf32 = str(precision).rsplit(".", 1)[-1] == "TF32"

    def values(operand):
        if operand.dtype.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_to_fp32(operand.data), tl.float32)
        if tf32 and operand.dtype.scalar == tl.float32:
            bits = np.ascontiguousarray(operand.data).view(np.uint32) & np.uint32(0xFFFFE000)
            return interpreter.TensorHandle(bits.view(np.float32), tl.float32)
        return operand

    return _dot(self, values(a), values(b), d, precision, *rest)


def _cast_to_nearest(self, source, target):
    kinds = source.dtype.scalar, target.scalar
    if kinds == (tl.float32, tl.bfloat16):
        return interpreter.TensorHandle(_to_bf16(source.data), tl.bfloat16)
    if kinds == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle(_to_fp32(source.data), tl.float32)
    return _cast(self, source, target)


interpreter.InterpreterBuilder.create_dot = _dot_of_values
# Its casts between floats call this method.
interpreter.InterpreterBuilder.cast_impl = _cast_to_nearest
