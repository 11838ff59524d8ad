"""Class prompts in chunks: by length, so that none is padded to the longest of all, and by memory.

A chunk that fits keeps its activations for the backward pass; one that does not is computed again there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rmadapter.errors import InputError

# What one more chunk costs, in tokens: launches on a GPU, smaller matrix products on a CPU.
CHUNK_TOKENS = {"cpu": 256, "cuda": 8192}


@dataclass(frozen=True)
class Chunk:
    """Some classes, by their places in the order of length.

    Attributes:
        start, stop: places in that order.
        length: tokens that each prompt is cut to.
        shared: how many of them all prompts begin with; these are computed once.
        recompute: whether its activations are computed again in the backward pass.
    """

    start: int
    stop: int
    length: int
    shared: int = 0
    recompute: bool = False

    @property
    def rows(self) -> int:
        """Number of classes."""
        return self.stop - self.start

    def longer(self, count: int) -> Chunk:
        """With ``count`` tokens more at the beginning of each prompt, among those that all begin with."""
        return replace(self, length=self.length + count, shared=self.shared + count if self.shared else 0)

    @property
    def tokens(self) -> int:
        """Tokens in it, padding counted."""
        return self.shared + self.rows * (self.length - self.shared)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key, a block's attention."""
        return self.shared**2 + self.rows * (self.length - self.shared) * self.length


def by_length(lengths: Sequence[int], chunk_tokens: int, shared: int = 0) -> list[Chunk]:
    """The chunks of sorted prompt ``lengths`` with the fewest tokens, where each chunk counts ``chunk_tokens`` more.

    All prompts begin with the same ``shared`` tokens.
    """
    ends = [i + 1 for i in range(len(lengths)) if i + 1 == len(lengths) or lengths[i] != lengths[i + 1]]
    best: dict[int, tuple[int, list[Chunk]]] = {0: (0, [])}
    for end in ends:
        candidates = []
        for start, (cost, chunks) in best.items():
            chunk = Chunk(start, end, lengths[end - 1], shared)
            candidates.append((cost + chunk.tokens + chunk_tokens, [*chunks, chunk]))
        best[end] = min(candidates, key=lambda candidate: candidate[0])
    return best[len(lengths)][1]


def by_memory(chunks: Sequence[Chunk], saved_bytes: Callable[[Chunk], int], budget: int) -> list[Chunk]:
    """The same classes in chunks whose activations, ``saved_bytes`` of a chunk, stay within ``budget`` bytes.

    If not all fit, none is larger than half of the budget: one half for chunks that are kept, the other for the one
    that is being computed again.

    Raises:
        InputError: one class alone does not fit.
    """
    if sum(map(saved_bytes, chunks)) <= budget:
        return list(chunks)
    pieces = []
    for chunk in chunks:
        none, one = (saved_bytes(replace(chunk, start=0, stop=rows)) for rows in (0, 1))
        most = (budget // 2 - none) // (one - none)
        if most < 1:
            raise InputError(f"text_memory is {budget} bytes, but a class takes {2 * one}; valid: {2 * one} or more")
        size = math.ceil(chunk.rows / math.ceil(chunk.rows / most))
        for start in range(chunk.start, chunk.stop, size):
            pieces.append(replace(chunk, start=start, stop=min(start + size, chunk.stop), recompute=True))
    room = budget - max(map(saved_bytes, pieces))
    planned = []
    # The last ones are kept: the backward pass begins with them, so their memory is free when recomputation begins.
    for piece in reversed(pieces):
        saved = saved_bytes(piece)
        planned.append(replace(piece, recompute=saved > room))
        room -= saved if saved <= room else 0
    return planned[::-1]
