"""Attention of a frozen block for the fast step: of all tokens, of prompts with a common beginning, of one token.

In all of them ``u`` is what the attention reads, laid out as ``layout`` says, ``mask`` is the additive mask [tokens,
tokens] of one row or None, ``linear`` computes products with frozen matrices as ``F.linear`` does, and ``update`` has
what is learned beside these matrices, or is None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.layout import Layout
from rmadapter.clip.low_rank import LowRank, Update, added
from rmadapter.clip.parts import Attention, Linear
from rmadapter.runtime import cpu_has_amx

# On a CPU in bf16 PyTorch's fused attention takes 24 ms forward and 56 backward (16 images of 197 tokens, 12 heads, 2
# cores with AVX512_BF16), written out as two products 12 and 16; in fp32 it is the other way round. The weights of
# the softmax are then kept, which long sequences do not allow. With AMX the fused one is faster where there is no
# backward: 4.4 ms for 6.6 (8 images).
WRITTEN_OUT_TOKENS = 640


def longer_mask(mask: Tensor | None, count: int) -> Tensor | None:
    """The causal ``mask`` [tokens, tokens] for ``count`` tokens more; None stays."""
    if mask is None or not count:
        return mask
    return torch.full_like(mask[:1, :1], float("-inf")).expand(2 * (len(mask) + count,)).triu(1)


def _written_out(q: Tensor, tokens: int, mask: Tensor | None) -> bool:
    if q.device.type != "cpu" or q.dtype.itemsize != 2 or tokens > WRITTEN_OUT_TOKENS:
        return False
    # A graph that is compiled or exported is the same on every machine.
    fused = q.dtype == torch.bfloat16 and mask is None and not torch.is_grad_enabled()
    return not fused or torch.compiler.is_compiling() or not cpu_has_amx()


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v for [n, heads, tokens, d]; ``causal`` says that ``mask`` is the causal one."""
    if _written_out(q, k.shape[-2], mask):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if mask is None else scores + mask).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if causal else mask, is_causal=causal)


def attend(
    attention: Attention,
    u: Tensor,
    layout: Layout,
    mask: Tensor | None,
    causal: bool,
    linear: Linear,
    update: Update | None = None,
) -> Tensor:
    """The attention's output for every token of ``u``; ``causal`` says that ``mask`` is the causal one."""
    qkv = [linear(u, *matrix) for matrix in attention.projections]
    parts = list(qkv[0].chunk(3, -1)) if len(qkv) == 1 else qkv
    if update is not None:
        parts = [added(low, u, part) for low, part in zip(update[:3], parts, strict=True)]
    mask = None if mask is None else mask.to(u.dtype)
    if layout.shared:
        assert mask is not None  # only prompts of a causal tower begin alike
        found = _with_shared_start(parts, layout, attention.heads, mask)
    else:
        found = _joined(scaled_attention(*_ready(attention, parts), mask, causal))
    return _projected(attention, found, linear, update)


def _projected(attention: Attention, found: Tensor, linear: Linear, update: Update | None) -> Tensor:
    """The output projection of what the heads have found."""
    found = found if attention.inner is None else attention.inner(found)
    product = linear(found, attention.out.weight, attention.out.bias)
    return product if update is None else added(update.out, found, product)


def _heads(x: Tensor, count: int) -> Tensor:
    """[n, tokens, D] -> [n, heads, tokens, D / heads]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _ready(attention: Attention, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, with what is done to them before they meet."""
    q, k, v = (_heads(part, attention.heads) for part in parts)
    q = q if attention.q_norm is None else attention.q_norm(q)
    k = k if attention.k_norm is None else attention.k_norm(k)
    if attention.rotate is not None:
        q, k = attention.rotate(q), attention.rotate(k)
    return q.to(v.dtype), k.to(v.dtype), v


def _joined(found: Tensor) -> Tensor:
    """[n, heads, tokens, D / heads] -> [n, tokens, D]."""
    return found.transpose(1, 2).flatten(2)


def _with_shared_start(parts: Sequence[Tensor], layout: Layout, heads: int, mask: Tensor) -> Tensor:
    """Causal attention where the rows' own tokens look at their group's shared ones too, laid out as each part."""
    first_q, *first = (_heads(layout.start(part), heads) for part in parts)
    q, *own = (_heads(layout.own(part), heads) for part in parts)
    k, v = (torch.cat([layout.of_rows(x), y], 2) for x, y in zip(first, own, strict=True))
    start = scaled_attention(first_q, first[0], first[1], mask[: layout.shared, : layout.shared], causal=True)
    found = scaled_attention(q, k, v, mask[layout.shared :], causal=False)
    return layout.joined(_joined(start), _joined(found))


def attend_at(
    attention: Attention, u: Tensor, layout: Layout, mask: Tensor | None, linear: Linear, update: Update | None = None
) -> Tensor:
    """The attention's output at the tokens of each row that ``layout`` takes, [rows, taken, D], without others' keys.

    A few queries are less than all keys: with ``k_t = w_k u_t + b_k`` and softmax weights ``a_t`` of the tokens,

        q . k_t          = (w_k^T q) . u_t + q . b_k    the second term is the same for all tokens and cancels
        sum_t a_t v_t    = w_v (sum_t a_t u_t) + b_v    the weights sum to one

    so both projections are those of the tokens taken alone. For one of each row, 16 images of 197 tokens of width 768,
    forward and backward on two cores: 7 to 8 ms for 44 in bf16, 11 for 87 in fp32, with the same errors against fp64.
    Where queries and keys go through more, keys and values are those of all tokens.
    """
    if not attention.plain:
        assert update is None  # whoever makes updates has looked
        return _attend_at_keys(attention, u, layout, mask, linear)
    weight, bias = attention.projections[0]
    w_q, w_k, w_v = _with_updates(weight.chunk(3), update)
    b_q, _, b_v = (None,) * 3 if bias is None else bias.chunk(3)
    heads, taken = attention.heads, layout.take(u)
    each = taken.shape[:2]  # rows, and tokens of a row
    q = F.linear(taken.flatten(0, 1), w_q, b_q) * (len(w_q) // heads) ** -0.5
    q = q.unflatten(-1, (heads, -1)).transpose(0, 1)  # [heads, rows * taken, D / heads]
    looked_for = (q @ w_k.unflatten(0, (heads, -1))).transpose(0, 1)
    looked_for = looked_for.unflatten(0, each).flatten(1, 2)  # [rows, taken * heads, D]
    parts = [layout.own(u)]
    if layout.shared:
        parts.insert(0, _start_of_rows(u, layout))
    # In fp32, as fused attention has them: rounded to bf16 they double the output's error and save a tenth of the time.
    scores = torch.cat([looked_for.float() @ part.float().mT for part in parts], -1)  # [rows, taken * heads, tokens]
    if mask is not None:
        scores = scores + _row_of(mask, layout)
    weights = scores.softmax(-1).to(q.dtype).split([part.shape[-2] for part in parts], -1)
    mixed = sum(weight @ part for weight, part in zip(weights, parts, strict=True))
    mixed = mixed.unflatten(1, (-1, heads)).flatten(0, 1).transpose(0, 1)  # [heads, rows * taken, D]
    found = (mixed @ w_v.unflatten(0, (heads, -1)).mT).transpose(0, 1).flatten(1)
    return _projected(attention, found if b_v is None else found + b_v, linear, update).unflatten(0, each)


def _attend_at_keys(attention: Attention, u: Tensor, layout: Layout, mask: Tensor | None, linear: Linear) -> Tensor:
    """``attend_at`` with keys and values of all tokens; the tokens taken are among those that are not rotated."""
    (w_q, b_q), *others = attention.projections
    q = _heads(F.linear(layout.take(u), w_q, b_q), attention.heads)
    k, v = (_heads(linear(u, *matrix), attention.heads) for matrix in others)
    q = q if attention.q_norm is None else attention.q_norm(q)
    k = k if attention.k_norm is None else attention.k_norm(k)
    k = k if attention.rotate is None else attention.rotate(k)
    row = None if mask is None else _row_of(mask.to(v.dtype), layout)[..., None, :, :]
    found = scaled_attention(q.to(v.dtype), k.to(v.dtype), v, row, causal=False)
    return _projected(attention, _joined(found), linear, None)


def _row_of(mask: Tensor, layout: Layout) -> Tensor:
    """Of an additive ``mask`` what the token taken of each row sees: [1, tokens], or [rows, 1, tokens]."""
    assert layout.token is not None  # the caller asks for this one alone
    assert not layout.also  # where there is a mask one token is taken
    token = layout.token
    if mask.dim() == 4:  # [rows, 1, tokens, tokens]: rows differ in what they see
        assert not layout.shared
        if isinstance(token, int):
            return mask[:, 0, token : token + 1]
        return mask[:, 0].gather(1, token[:, None, None].expand(-1, 1, mask.shape[-1]))
    if isinstance(token, int):
        return mask[layout.shared + token][None]
    return layout.of_groups(mask[layout.shared + token])[:, None]


def _with_updates(matrices: tuple[Tensor, ...], update: Update | None) -> list[Tensor]:
    """Those of queries, keys and values with what is learned beside them."""
    lows: tuple[LowRank | None, ...] = (None,) * 3 if update is None else update[:3]
    return [matrix if low is None else low.added_to(matrix) for matrix, low in zip(matrices, lows, strict=True)]


def _start_of_rows(u: Tensor, layout: Layout) -> Tensor:
    """The shared tokens of each row: [shared, D] for all, or [groups * rows, shared, D]."""
    start = layout.start(u)
    return start.squeeze(0) if layout.groups == 1 else layout.of_rows(start)
