"""A tower as data: the record of a kind of tower, and one tower of one model.

A kind says where a tower keeps its things and has a function for whatever differs between kinds: how inputs become
tokens, how a block is taken apart, how tokens become features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.clip.parts import BlockParts
from rmadapter.clip.types import Block, ClipModel

# Under this name what is trained beside a block is a child of it, here so that a base model can be told from it.
CHILD = "rm_adapter"

# What modules call the switch that has their blocks recomputed in the backward pass.
RECOMPUTES = ("grad_checkpointing", "gradient_checkpointing")


def _no_mask(root: Any) -> Tensor | None:
    return None


def _all_keys(root: Any, tokens: Tensor) -> Tensor | None:
    return None


def _no_bias(root: Any, tokens: int) -> Tensor | None:
    return None


def _every_token(root: Any, tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool)


def _no_count(root: Any) -> int:
    return 0


def _no_grid(root: Any) -> tuple[int, int] | None:
    return None


@dataclass(frozen=True)
class TowerKind:
    """One kind of tower. ``root`` is the module that the path ``root`` leads to, ``x`` is [n, tokens, D].

    Args:
        name: what it is called in messages.
        modality: "vision" or "text".
        root: dotted path from the model to the module that all else is found in; "" for the model itself.
        fits: (root) -> whether the module there is of this kind.
        blocks: dotted path from the root to the list of blocks.
        norm: dotted path from a block to the norm that an adapter reads through, which stands in front of attention;
            None where there is none in front, and an adapter reads the block's input.
        parts: (block, root) -> the block taken apart.
        embed: (root, inputs) -> x in front of the first block: of images [n, 3, size, size] in the compute dtype, or of
            token ids [n, length].
        place: (root, token ids or None) -> the one token that features are made of: int64 [n], None where that hangs on
            token ids that are not given, or a number for all rows, from the end where it is negative; or a text that
            says why they are not those of one token.
        finish: (root, x, token ids or None, dtype) -> features [n, embed] of all tokens, not normalised.
        embed_width: (root) -> width of the features.
        size: (root) -> tokens of an image in front of the first block; of a text tower its context.
        grid: (root) -> rows and columns of an image's patches, which are its last tokens, row by row; None where they
            are none.
        embed_operations: (root) -> operations of ``embed`` a token; what is more than one product is left out.
        finish_operations: (root) -> operations of ``finish`` for a row beyond norms and one product: of attention that
            pools.
        added: (root) -> tokens of a prompt in front of the first block that are no token ids, behind them.
        mask: (root) -> additive mask [tokens, tokens] that all rows have, or None.
        finish_at: (root, [..., D], dtype) -> features [..., embed] of these tokens in ``dtype``, not normalised; None
            for towers whose last block runs at all tokens.
        keys: (root, token ids) -> bool [n, tokens], which tokens of each row are looked at; None for all.
        bias: (root, tokens) -> what every block adds to its attention's scores, [1, heads, tokens, tokens], beside
            ``keys``; None for nothing.
        counted: (root, token ids) -> bool [n, tokens], which tokens of a prompt are looked at by what its features are
            made of, and so count in the reconstruction. Padding that is attended to counts.
        trims: (root) -> whether leaving out what is behind the longest prompt's last counted token changes no feature.
        encode: (model, token ids) -> features, by the model's own forward pass, of trimmed prompts where it trims.
        words: dotted path from the root to the embedding of token ids, where learned tokens may enter: "" for none.
        enter: dotted path from the root to the norm between embedding and blocks that learned image tokens go through.
        leave: dotted path from the root to the norm behind the last block.
    """

    name: str
    modality: str
    root: str
    fits: Callable[[Any], bool]
    blocks: str
    norm: str | None
    parts: Callable[[Block, Any], BlockParts]
    embed: Callable[[Any, Tensor], Tensor]
    place: Callable[[Any, Tensor | None], Tensor | int | str | None]
    finish: Callable[[Any, Tensor, Tensor | None, torch.dtype], Tensor]
    embed_width: Callable[[Any], int]
    size: Callable[[Any], int]
    grid: Callable[[Any], tuple[int, int] | None] = _no_grid
    embed_operations: Callable[[Any], int] = _no_count
    finish_operations: Callable[[Any], int] = _no_count
    added: Callable[[Any], int] = _no_count
    mask: Callable[[Any], Tensor | None] = _no_mask
    finish_at: Callable[[Any, Tensor, torch.dtype], Tensor] | None = None
    keys: Callable[[Any, Tensor], Tensor | None] = _all_keys
    bias: Callable[[Any, int], Tensor | None] = _no_bias
    counted: Callable[[Any, Tensor], Tensor] = _every_token
    trims: Callable[[Any], bool] = lambda root: False
    encode: Callable[[ClipModel, Tensor], Tensor] = lambda model, tokens: model.encode_text(tokens, normalize=False)
    words: str = ""
    enter: str = ""
    leave: str = ""


def at_path(module: Any, path: str) -> Any:
    """The attribute at a dotted path, the module itself for "", or None where a part is missing."""
    found: Any = module
    for part in path.split(".") if path else ():
        found = found[int(part)] if part.isdigit() and isinstance(found, nn.ModuleList) else getattr(found, part, None)
    return found


class Tower:
    """One tower of one model.

    Attributes:
        kind: what it is.
        root: the module that the kind's functions take.
        blocks: its transformer blocks.
    """

    def __init__(self, kind: TowerKind, root: Any, blocks: Any):
        self.kind, self.root, self.blocks = kind, root, blocks

    @cached_property
    def parts(self) -> list[BlockParts]:
        """The blocks taken apart, with the weights that they have now."""
        return [self.kind.parts(block, self.root) for block in self.blocks]

    @property
    def width(self) -> int:
        """Width D of the tower's tokens."""
        norm: Any = self.norm(1)
        if norm is not None:
            return len(norm.weight)
        return next(p.shape[1] for p in self.blocks[0].parameters() if p.dim() == 2)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """That of the blocks' matrices, which they compute in."""
        return next(p.dtype for p in self.blocks[0].parameters() if p.dim() == 2)

    @property
    def mask(self) -> Tensor | None:
        """The additive mask [tokens, tokens] of all rows, where the model has it now."""
        return self.kind.mask(self.root)

    @property
    def recomputes(self) -> bool:
        """Whether the model's own forward pass recomputes blocks in the backward pass."""
        return bool(self.recomputing())

    def recomputing(self) -> list[tuple[nn.Module, str]]:
        """The switches that have it do so and are on: a module of the tower, and the name of its attribute."""
        inner = ("visual", "text") if self.kind.root == "" else ()
        parts = [self.root, *(child for name, child in self.root.named_children() if name not in inner)]
        modules = {module for part in parts[1:] for module in part.modules()} | {self.root}
        return [(module, name) for module in modules for name in RECOMPUTES if vars(module).get(name)]

    def norm(self, layer: int) -> nn.Module | None:
        """The norm in front of the attention of block ``layer``, counted from 1; None where there is none."""
        return None if self.kind.norm is None else at_path(self.blocks[layer - 1], self.kind.norm)

    def place(self, tokens: Tensor | None = None) -> Tensor | int | str | None:
        """``TowerKind.place``; of prompts a place that all have is counted from the first token."""
        found = self.kind.place(self.root, tokens)
        if isinstance(found, int) and found < 0 and tokens is not None:
            return tokens.shape[1] + self.kind.added(self.root) + found
        return found
