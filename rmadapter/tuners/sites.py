"""Where a tuner enters a tower: static, known before any step, so that shortcuts, costs and caches follow from it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from rmadapter.errors import InputError

ALL, CLASS, IMAGE = "all", "class", "image"
REPLACE, APPEND, INSERT = "replace", "append", "insert"


@dataclass(frozen=True)
class TokenEdit:
    """Learned tokens that enter a tower before one of its blocks.

    Attributes:
        block: the block's place from 0. Before the first one a text token that is not inserted takes the place of a
            word's embedding and gets its position, and an image token goes through the norm in front of the blocks.
        count: number of tokens.
        place: REPLACE tokens that are there, APPEND behind the last one, or INSERT behind the first one.
        last: of REPLACE, whether the last tokens are meant and not those behind the first one.
        per: whether the values are the same for ALL rows, or of each CLASS, or of each IMAGE.
    """

    block: int
    count: int
    place: str = REPLACE
    last: bool = False
    per: str = ALL

    @property
    def embedded(self) -> bool:
        """Whether they enter in front of the tower, with the embeddings, and not right before a block."""
        return self.block == 0 and self.place != INSERT


@dataclass(frozen=True)
class Sites:
    """All places at which a tower is entered, beside the branches that stand beside its blocks.

    Attributes:
        edits: of its tokens, by block.
        updates: places of the blocks whose matrices get low-rank updates.
        random: whether a training pass draws random numbers in the tower (dropout).
        read: how many of the inserted tokens are read behind the last block, beside the token that the tower is pooled
            at: their outputs are a part of the features (``Tuner.head``).
    """

    edits: tuple[TokenEdit, ...] = ()
    updates: frozenset[int] = frozenset()
    random: bool = False
    read: int = 0

    @property
    def first(self) -> int | None:
        """The first block before or in which something is trained; None for none."""
        return min((*(edit.block for edit in self.edits), *self.updates), default=None)

    @property
    def per_image(self) -> bool:
        """Whether what enters depends on the image."""
        return any(edit.per == IMAGE for edit in self.edits)

    @property
    def added(self) -> int:
        """How many tokens the tower has more after them than before."""
        return sum(edit.count for edit in self.edits if edit.place != REPLACE)

    def added_before(self, blocks: int) -> int:
        """How many tokens more the last of the first ``blocks`` blocks has than the untouched tower's."""
        return sum(edit.count for edit in self.edits if edit.place != REPLACE and edit.block < blocks)

    def inserted(self, blocks: int) -> int:
        """How many tokens stand behind the first one that the first ``blocks`` blocks, or fewer, have had inserted."""
        return sum(edit.count for edit in self.edits if edit.place == INSERT and edit.block < blocks)

    def before(self, block: int) -> TokenEdit | None:
        """What enters before ``block``, if anything."""
        return next((edit for edit in self.edits if edit.block == block), None)

    @classmethod
    def joined(cls, several: list[Sites]) -> Sites:
        """Those of several tuners.

        Raises:
            InputError: two that enter before one block.
        """
        edits = sorted((edit for sites in several for edit in sites.edits), key=lambda edit: edit.block)
        for one, other in itertools.pairwise(edits):
            if one.block == other.block:
                raise InputError(f"two tuners put tokens in front of block {one.block + 1} of one tower; valid: one")
        updates = frozenset(block for sites in several for block in sites.updates)
        random, read = any(sites.random for sites in several), sum(sites.read for sites in several)
        return cls(tuple(edits), updates, random, read)
