"""Several tensors in one allocation: what lies between the kernels, and the prepared weights."""

from __future__ import annotations

import torch
from torch import Tensor


class Part:
    """A tensor in a buffer of bytes, which a launch gets under the buffer's name."""

    __slots__ = ("buffer", "dtype", "offset", "shape", "size")

    def __init__(self, buffer: str, offset: int, shape: tuple[int, ...], dtype: torch.dtype):
        self.buffer, self.offset, self.shape, self.dtype = buffer, offset, shape, dtype
        self.size = torch.Size(shape).numel() * dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """The part of ``buffer`` [bytes] as a tensor."""
        return buffer[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


class Buffer:
    """The parts of one buffer, each at a multiple of 256 bytes."""

    def __init__(self, name: str) -> None:
        self.name, self.size = name, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Part:
        """Room for a tensor."""
        part = Part(self.name, self.size, shape, dtype)
        self.size += -(-part.size // 256) * 256
        return part


def padded(width: int) -> int:
    """A bottleneck as the matrix units take it: a power of two from 16 on."""
    return max(16, 1 << (width - 1).bit_length())


def prepared_parts(dtype: torch.dtype, d: int, r: int, h: int) -> tuple[dict[str, Part], int]:
    """Where the prepared weights lie (``prepare.py`` says what they are), by name, and the bytes of all.

    Args:
        dtype: of x, in which products are formed.
        d, r, h: widths of x, of the bottleneck and of the reconstruction, 0 without one.
    """
    buffer = Buffer("prepared")
    rows, columns = padded(r), padded(h or 1)
    parts = {
        "w_down": buffer.take((d, rows), dtype),
        "b_down": buffer.take((rows,), torch.float32),
        "column_sum": buffer.take((rows,), torch.float32),
        "w_up": buffer.take((rows, d), dtype),
    }
    if h:
        parts["w_rec1"] = buffer.take((rows, columns), dtype)
        parts["w_rec2"] = buffer.take((columns, d), dtype)
    return parts, buffer.size
