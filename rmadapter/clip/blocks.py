"""Transformer blocks as functions of their submodules, for the fast step: values in, values out, no hooks.

    u  = ln_1(x)                        in the compute dtype, that of the block's weights
    x' = x + attn(u)                    with low-rank updates of its matrices, where there are any
    block(x) = x' + mlp(ln_2(x'))       in the dtype of x, which may be fp32 over 16-bit weights

The last block of a tower that is pooled at one token needs its output there alone, and at tokens that are read beside
it: the queries are u at those, which all tokens answer, and the projections and the MLP have no other tokens left.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.attention import Linear, attend, attend_at, is_plain
from rmadapter.clip.layout import Layout
from rmadapter.clip.low_rank import Update
from rmadapter.clip.types import Block


def is_known(block: Block) -> bool:
    """Whether ``block`` is of a class whose forward pass is written out here."""
    return type(block) in (ResidualAttentionBlock, CustomResidualAttentionBlock) and not hasattr(block, "ln_1_kv")


def normed(norm: nn.LayerNorm, x: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm of ``x`` in the dtype of its own weights (fp32 over 16-bit blocks), rounded to ``dtype``."""
    wide = x if norm.weight is None else x.to(norm.weight.dtype)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def frozen_matrices(block: Block, at_token: bool) -> Iterator[Tensor]:
    """Those that ``block_output`` multiplies with by ``linear``, or with ``at_token`` ``block_output_at``."""
    if is_plain(block):
        yield from (() if at_token else (block.attn.in_proj_weight,))
        yield block.attn.out_proj.weight
    yield from (module.weight for module in block.mlp if type(module) is nn.Linear)


def _mlp(block: Block, x: Tensor, linear: Linear) -> Tensor:
    for module in block.mlp:
        x = linear(x, module.weight, module.bias) if type(module) is nn.Linear else module(x)
    return x


def block_output(
    block: Block,
    x: Tensor,
    u: Tensor,
    layout: Layout,
    mask: Tensor | None,
    causal: bool,
    linear: Linear,
    update: Update | None = None,
) -> Tensor:
    """The block's output without what stands beside it, shape and dtype of ``x``; ``u`` is its ``ln_1(x)``."""
    x = x + block.ls_1(attend(block, u, layout, mask, causal, linear, update))
    return x + block.ls_2(_mlp(block, normed(block.ln_2, x, u.dtype), linear))


def block_output_at(
    block: Block,
    x: Tensor,
    u: Tensor,
    layout: Layout,
    mask: Tensor | None,
    linear: Linear,
    update: Update | None = None,
) -> Tensor:
    """``block_output`` at the tokens of each row that are taken, [rows, taken, D]; its attention ``is_plain``."""
    x = layout.take(x) + block.ls_1(attend_at(block, u, layout, mask, linear, update))
    return x + block.ls_2(_mlp(block, normed(block.ln_2, x, u.dtype), linear))
