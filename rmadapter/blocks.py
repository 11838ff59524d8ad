"""Transformer blocks as functions of their submodules, for the fast step: values in, values out, no hooks.

    u  = ln_1(x)                        in the compute dtype, that of the block's weights
    x' = x + attn(u)
    block(x) = x' + mlp(ln_2(x'))       in the dtype of x, which may be fp32 over 16-bit weights

The last block of a tower that is pooled at one token needs its output there alone: the query is u at that token, which
all tokens answer, and the projections and the MLP have one token left.
"""

from __future__ import annotations

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.injection import CHILD
from rmadapter_kernels import FusedRMAdapter, rm_adapter

# On a CPU in bf16 PyTorch's fused attention takes 24 ms forward and 56 backward (16 images of 197 tokens, 12 heads, 2
# cores with AVX512_BF16), written out as two products 12 and 16; in fp32 it is the other way round. The weights of
# the softmax are then kept, which long sequences do not allow.
WRITTEN_OUT_TOKENS = 640


def is_known(block: nn.Module) -> bool:
    """Whether ``block`` is of a class whose forward pass is written out here."""
    return type(block) in (ResidualAttentionBlock, CustomResidualAttentionBlock) and not hasattr(block, "ln_1_kv")


def attends_by_token(block: nn.Module) -> bool:
    """Whether the block's attention is the plain one, of which one query can be taken alone."""
    attn = block.attn
    return (
        type(block) is ResidualAttentionBlock
        and attn.in_proj_weight is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and attn.dropout == 0
    )


def adapter_of(block: nn.Module) -> nn.Module | None:
    """The adapter proper of ``block``, or None."""
    found = getattr(block, CHILD, None)
    return None if found is None else found.branch


def normed(norm: nn.LayerNorm, x: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm of ``x`` in the dtype of its own weights (fp32 over 16-bit blocks), rounded to ``dtype``."""
    wide = x if norm.weight is None else x.to(norm.weight.dtype)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def take(x: Tensor, index: Tensor | int) -> Tensor:
    """One token of each row: [n, tokens, D] -> [n, 1, D]; ``index`` is the same for all rows or int64 [n]."""
    if isinstance(index, int):
        return x[:, index : index + 1]
    return x.gather(1, index[:, None, None].expand(-1, 1, x.shape[-1]))


def _heads(x: Tensor, count: int) -> Tensor:
    """[n, tokens, D] -> [n, heads, tokens, D / heads]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v for [n, heads, tokens, d]; ``causal`` says that ``mask`` is the causal one."""
    if q.device.type == "cpu" and q.dtype.itemsize == 2 and k.shape[-2] <= WRITTEN_OUT_TOKENS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if mask is None else scores + mask).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if causal else mask, is_causal=causal)


def _attend(block: nn.Module, u: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The attention's output for every token; ``causal`` says that ``mask`` is the causal one."""
    if not attends_by_token(block):
        if type(block) is CustomResidualAttentionBlock:
            return block.ln_attn(block.attn(u, attn_mask=mask))
        return block.attention(u, attn_mask=mask)
    attn = block.attn
    q, k, v = (_heads(t, attn.num_heads) for t in F.linear(u, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1))
    found = scaled_attention(q, k, v, None if mask is None else mask.to(q.dtype), causal)
    return attn.out_proj(found.transpose(1, 2).flatten(2))


def _attend_at(block: nn.Module, u: Tensor, index: Tensor | int, mask: Tensor | None) -> Tensor:
    """The attention's output at one token, [n, 1, D], without keys and values of the others.

    One query is less than all keys: with ``k_t = w_k u_t + b_k`` and softmax weights ``a_t`` of the tokens,

        q . k_t          = (w_k^T q) . u_t + q . b_k    the second term is the same for all tokens and cancels
        sum_t a_t v_t    = w_v (sum_t a_t u_t) + b_v    the weights sum to one

    so both projections are those of one token a row. 16 images of 197 tokens of width 768, forward and backward on two
    cores: 7 ms for 44 in bf16, 11 for 87 in fp32, with the same errors against fp64.
    """
    attn = block.attn
    w_q, w_k, w_v = attn.in_proj_weight.chunk(3)
    b_q, _, b_v = (None,) * 3 if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)
    q = F.linear(take(u, index).squeeze(1), w_q, b_q) * attn.head_dim**-0.5
    q = q.unflatten(-1, (attn.num_heads, -1)).transpose(0, 1)  # [heads, n, D / heads]
    looked_for = (q @ w_k.unflatten(0, (attn.num_heads, -1))).transpose(0, 1)
    scores = looked_for @ u.mT  # [n, heads, tokens]
    if mask is not None:
        # The row of each query: [tokens] for all, or [n, 1, tokens].
        scores = scores + (mask[index] if isinstance(index, int) else mask[index][:, None]).to(q.dtype)
    mixed = (scores.softmax(-1) @ u).transpose(0, 1)  # [heads, n, D]
    found = (mixed @ w_v.unflatten(0, (attn.num_heads, -1)).mT).transpose(0, 1).flatten(1)
    return attn.out_proj(found if b_v is None else found + b_v)[:, None]


def frozen_part(block: nn.Module, x: Tensor, u: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The block's output without its adapter, [n, tokens, D] in the dtype of ``x``; ``u`` is its ``ln_1(x)``."""
    x = x + block.ls_1(_attend(block, u, mask, causal))
    return x + block.ls_2(block.mlp(normed(block.ln_2, x, u.dtype)))


def frozen_part_at(block: nn.Module, x: Tensor, u: Tensor, index: Tensor | int, mask: Tensor | None) -> Tensor:
    """``frozen_part`` at one token of each row, [n, 1, D]; for blocks that ``attends_by_token`` knows."""
    x = take(x, index) + block.ls_1(_attend_at(block, u, index, mask))
    return x + block.ls_2(block.mlp(normed(block.ln_2, x, u.dtype)))


def adapter_term(branch: nn.Module, x: Tensor, residual: Tensor | None, reconstruct: bool) -> tuple[Tensor, Tensor]:
    """``residual`` plus the adapter's term, and the reconstruction's loss of each token (empty if not wanted).

    What is computed is an argument and no flag of the module, so that recomputation cannot meet another state.
    """
    if not isinstance(branch, FusedRMAdapter):
        return branch(x, residual, reconstruct=reconstruct)
    rec = (branch.w_rec1, branch.b_rec1, branch.w_rec2, branch.b_rec2) if reconstruct else (None,) * 4
    return rm_adapter(
        x,
        branch.w_down,
        branch.b_down,
        branch.w_up,
        branch.b_up,
        *rec,
        residual=residual,
        scale=branch.scale,
        activation=branch.activation,
        objective=branch.objective,
        local_reconstruction=branch.local_reconstruction,
        branch_grad_scale=branch.branch_grad_scale,
        backend=branch.backend,
    )
