"""Attention of a frozen block for the fast step: of all tokens, of prompts with a common beginning, of one token.

In all of them ``u`` is what the attention reads, laid out as ``layout`` says, ``mask`` is the additive mask [tokens,
tokens] of one row or None, ``linear`` computes products with frozen matrices as ``F.linear`` does, and ``update`` has
what is learned beside these matrices, or is None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.layout import Layout
from rmadapter.clip.low_rank import LowRank, Update, added
from rmadapter.clip.types import Block

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# On a CPU in bf16 PyTorch's fused attention takes 24 ms forward and 56 backward (16 images of 197 tokens, 12 heads, 2
# cores with AVX512_BF16), written out as two products 12 and 16; in fp32 it is the other way round. The weights of
# the softmax are then kept, which long sequences do not allow.
WRITTEN_OUT_TOKENS = 640


def longer_mask(mask: Tensor | None, count: int) -> Tensor | None:
    """The causal ``mask`` [tokens, tokens] for ``count`` tokens more; None stays."""
    if mask is None or not count:
        return mask
    return torch.full_like(mask[:1, :1], float("-inf")).expand(2 * (len(mask) + count,)).triu(1)


def is_plain(block: Block) -> bool:
    """Whether the block's attention has queries, keys and values and nothing else, so that parts can be taken alone."""
    attn = block.attn
    return (
        type(block) is ResidualAttentionBlock
        and attn.in_proj_weight is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and attn.dropout == 0
    )


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v for [n, heads, tokens, d]; ``causal`` says that ``mask`` is the causal one."""
    if q.device.type == "cpu" and q.dtype.itemsize == 2 and k.shape[-2] <= WRITTEN_OUT_TOKENS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if mask is None else scores + mask).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if causal else mask, is_causal=causal)


def attend(
    block: Block,
    u: Tensor,
    layout: Layout,
    mask: Tensor | None,
    causal: bool,
    linear: Linear,
    update: Update | None = None,
) -> Tensor:
    """The attention's output for every token of ``u``; ``causal`` says that ``mask`` is the causal one."""
    if not is_plain(block):
        assert update is None  # whoever makes updates has looked
        if type(block) is CustomResidualAttentionBlock:
            return block.ln_attn(block.attn(u, attn_mask=mask))
        return block.attention(u, attn_mask=mask)
    attn = block.attn
    qkv = linear(u, attn.in_proj_weight, attn.in_proj_bias)
    if update is not None:
        parts = zip((update.q, update.k, update.v), qkv.chunk(3, -1), strict=True)
        qkv = torch.cat([added(low, u, part) for low, part in parts], -1)
    mask = None if mask is None else mask.to(qkv.dtype)
    if layout.shared:
        assert mask is not None  # only prompts of a causal tower begin alike
        found = _with_shared_start(qkv, layout, attn.num_heads, mask)
    else:
        found = _joined(scaled_attention(*_heads(qkv, attn.num_heads), mask, causal))
    return _projected(block, found, linear, update)


def _projected(block: Block, found: Tensor, linear: Linear, update: Update | None) -> Tensor:
    """The output projection of what the heads have found."""
    product = linear(found, block.attn.out_proj.weight, block.attn.out_proj.bias)
    return product if update is None else added(update.out, found, product)


def _heads(qkv: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [n, heads, tokens, D / heads], of [n, tokens, 3 D]."""
    q, k, v = (x.unflatten(-1, (count, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
    return q, k, v


def _joined(found: Tensor) -> Tensor:
    """[n, heads, tokens, D / heads] -> [n, tokens, D]."""
    return found.transpose(1, 2).flatten(2)


def _with_shared_start(qkv: Tensor, layout: Layout, heads: int, mask: Tensor) -> Tensor:
    """Causal attention where the rows' own tokens look at their group's shared ones too, laid out as ``qkv``."""
    first = _heads(layout.start(qkv), heads)
    q, *own = _heads(layout.own(qkv), heads)
    k, v = (torch.cat([layout.of_rows(x), y], 2) for x, y in zip(first[1:], own, strict=True))
    start = scaled_attention(*first, mask[: layout.shared, : layout.shared], causal=True)
    found = scaled_attention(q, k, v, mask[layout.shared :], causal=False)
    return layout.joined(_joined(start), _joined(found))


def attend_at(
    block: Block, u: Tensor, layout: Layout, mask: Tensor | None, linear: Linear, update: Update | None = None
) -> Tensor:
    """The attention's output at the tokens of each row that ``layout`` takes, [rows, taken, D], without others' keys.

    A few queries are less than all keys: with ``k_t = w_k u_t + b_k`` and softmax weights ``a_t`` of the tokens,

        q . k_t          = (w_k^T q) . u_t + q . b_k    the second term is the same for all tokens and cancels
        sum_t a_t v_t    = w_v (sum_t a_t u_t) + b_v    the weights sum to one

    so both projections are those of the tokens taken alone. For one of each row, 16 images of 197 tokens of width 768,
    forward and backward on two cores: 7 to 8 ms for 44 in bf16, 11 for 87 in fp32, with the same errors against fp64.
    """
    attn = block.attn
    w_q, w_k, w_v = _with_updates(attn.in_proj_weight.chunk(3), update)
    b_q, _, b_v = (None,) * 3 if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)
    taken = layout.take(u)
    each = taken.shape[:2]  # rows, and tokens of a row
    q = F.linear(taken.flatten(0, 1), w_q, b_q) * attn.head_dim**-0.5
    q = q.unflatten(-1, (attn.num_heads, -1)).transpose(0, 1)  # [heads, rows * taken, D / heads]
    looked_for = (q @ w_k.unflatten(0, (attn.num_heads, -1))).transpose(0, 1)
    looked_for = looked_for.unflatten(0, each).flatten(1, 2)  # [rows, taken * heads, D]
    parts = [layout.own(u)]
    if layout.shared:
        parts.insert(0, _start_of_rows(u, layout))
    # In fp32, as fused attention has them: rounded to bf16 they double the output's error and save a tenth of the time.
    scores = torch.cat([looked_for.float() @ part.float().mT for part in parts], -1)  # [rows, taken * heads, tokens]
    if mask is not None:
        # The row of each query: [tokens] for all, or [rows, 1, tokens]; where there is a mask one token is taken.
        assert layout.token is not None  # the caller asks for this one alone
        assert not layout.also
        row = mask[layout.shared + layout.token]
        scores = scores + (row if isinstance(layout.token, int) else layout.of_groups(row)[:, None])
    weights = scores.softmax(-1).to(q.dtype).split([part.shape[-2] for part in parts], -1)
    mixed = sum(weight @ part for weight, part in zip(weights, parts, strict=True))
    mixed = mixed.unflatten(1, (-1, attn.num_heads)).flatten(0, 1).transpose(0, 1)  # [heads, rows * taken, D]
    found = (mixed @ w_v.unflatten(0, (attn.num_heads, -1)).mT).transpose(0, 1).flatten(1)
    return _projected(block, found if b_v is None else found + b_v, linear, update).unflatten(0, each)


def _with_updates(matrices: tuple[Tensor, ...], update: Update | None) -> list[Tensor]:
    """Those of queries, keys and values with what is learned beside them."""
    lows: tuple[LowRank | None, ...] = (None,) * 3 if update is None else update[:3]
    return [matrix if low is None else low.added_to(matrix) for matrix, low in zip(matrices, lows, strict=True)]


def _start_of_rows(u: Tensor, layout: Layout) -> Tensor:
    """The shared tokens of each row: [shared, D] for all, or [groups * rows, shared, D]."""
    start = layout.start(u)
    return start.squeeze(0) if layout.groups == 1 else layout.of_rows(start)
