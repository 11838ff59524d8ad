"""Transformer blocks as functions of their parts, for the fast step: values in, values out, no hooks.

``parts`` has the formula. ``u`` is what attention reads, in the compute dtype, that of the block's weights; ``x`` is
the residual stream, which may be fp32 over 16-bit weights, and so is the output.

The last block of a tower that is pooled at one token needs its output there alone, and at tokens that are read beside
it: the queries are u at those, which all tokens answer, and the projections and the MLP have no other tokens left.
"""

from __future__ import annotations

from torch import Tensor

from rmadapter.clip.attention import attend, attend_at
from rmadapter.clip.layout import Layout
from rmadapter.clip.low_rank import Update
from rmadapter.clip.parts import BlockParts, Linear, normed


def block_output(
    parts: BlockParts,
    x: Tensor,
    u: Tensor,
    layout: Layout,
    mask: Tensor | None,
    causal: bool,
    linear: Linear,
    update: Update | None = None,
) -> Tensor:
    """The block's output without what stands beside it, shape and dtype of ``x``; ``u`` is its ``norm1(x)``."""
    if parts.mlp is None or not parts.apart:
        assert update is None  # whoever makes updates has looked
        return parts.whole(x.to(u.dtype), mask).to(x.dtype)
    if parts.attention is not None:
        found = attend(parts.attention, u, layout, mask, causal, linear, update)
    else:
        assert parts.attend is not None  # or it is not apart
        found = parts.attend(u, mask)
    x = x + parts.scale1(found)
    return x + parts.scale2(parts.mlp(normed(parts.norm2, x, u.dtype), linear))


def block_output_at(
    parts: BlockParts,
    x: Tensor,
    u: Tensor,
    layout: Layout,
    mask: Tensor | None,
    linear: Linear,
    update: Update | None = None,
) -> Tensor:
    """``block_output`` at the tokens of each row that are taken, [rows, taken, D]; ``last_block_obstacle`` is None."""
    assert parts.attention is not None
    assert parts.mlp is not None
    x = layout.take(x) + parts.scale1(attend_at(parts.attention, u, layout, mask, linear, update))
    return x + parts.scale2(parts.mlp(normed(parts.norm2, x, u.dtype), linear))
