"""Class prompts in chunks: by length, so that none is padded to the longest of all, and by memory.

A chunk that fits keeps its activations for the backward pass; one that does not is computed again there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rmadapter.errors import InputError

# What one more chunk costs, in tokens: launches on a GPU, smaller matrix products on a CPU.
CHUNK_TOKENS = {"cpu": 256, "cuda": 8192}
FREE_SHARE = 0.25


@dataclass(frozen=True)
class Chunk:
    """Some classes, by their places in the order of length.

    Attributes:
        start, stop: places in that order.
        length: tokens that each prompt is cut to.
        recompute: whether its activations are computed again in the backward pass.
    """

    start: int
    stop: int
    length: int
    recompute: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in it, padding counted."""
        return (self.stop - self.start) * self.length


def by_length(lengths: Sequence[int], chunk_tokens: int) -> list[Chunk]:
    """The chunks of sorted prompt ``lengths`` with the fewest tokens, where each chunk counts ``chunk_tokens`` more."""
    ends = [i + 1 for i in range(len(lengths)) if i + 1 == len(lengths) or lengths[i] != lengths[i + 1]]
    best: dict[int, tuple[int, list[Chunk]]] = {0: (0, [])}
    for end in ends:
        candidates = []
        for start, (cost, chunks) in best.items():
            chunk = Chunk(start, end, lengths[end - 1])
            candidates.append((cost + chunk.tokens + chunk_tokens, [*chunks, chunk]))
        best[end] = min(candidates, key=lambda candidate: candidate[0])
    return best[len(lengths)][1]


def by_memory(chunks: Sequence[Chunk], token_bytes: int, budget: int) -> list[Chunk]:
    """The same classes in chunks whose activations, ``token_bytes`` a token, stay within ``budget`` bytes.

    If not all fit, none is larger than half of the budget: one half for chunks that are kept, the other for the one
    that is being computed again.

    Raises:
        InputError: one class alone does not fit.
    """
    if sum(chunk.tokens for chunk in chunks) * token_bytes <= budget:
        return list(chunks)
    pieces = []
    for chunk in chunks:
        most = budget // 2 // (token_bytes * chunk.length)
        if most < 1:
            needed = 2 * token_bytes * chunk.length
            raise InputError(f"text_memory is {budget} bytes, but a class takes {needed}; valid: {needed} or more")
        count = math.ceil((chunk.stop - chunk.start) / most)
        size = math.ceil((chunk.stop - chunk.start) / count)
        for start in range(chunk.start, chunk.stop, size):
            pieces.append(Chunk(start, min(start + size, chunk.stop), chunk.length, True))
    room = budget - max(piece.tokens for piece in pieces) * token_bytes
    planned = []
    # The last ones are kept: the backward pass begins with them, so their memory is free when recomputation begins.
    for piece in reversed(pieces):
        saved = piece.tokens * token_bytes
        planned.append(Chunk(piece.start, piece.stop, piece.length, recompute=saved > room))
        room -= saved if saved <= room else 0
    return planned[::-1]
