"""timm's Eva: EVA01, EVA02 (rotated positions, SwiGLU, norms inside) and Perception Encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from rmadapter.clip.kinds.timm_trunks import known, mlp_of, timm_kind
from rmadapter.clip.parts import Attention, BlockParts, Matrix, Scaled
from rmadapter.clip.types import Block


def _positions(trunk: Any) -> Tensor | None:
    """What is rotated into queries and keys; None where positions are added to the tokens alone."""
    rope = trunk.rope
    if rope is None:
        return None
    return rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=trunk.patch_embed.grid_size)


def _embed(root: Any, images: Tensor) -> Tensor:
    trunk = root.trunk
    x = trunk._pos_embed(trunk.patch_embed(images))[0]
    return trunk.norm_pre(x) if hasattr(trunk, "norm_pre") else x


def _rotation(attn: Any, trunk: Any) -> Callable[[Tensor], Tensor] | None:
    positions = _positions(trunk)
    if positions is None:
        return None
    first, half = attn.num_prefix_tokens, {"half": True} if getattr(attn, "rotate_half", False) else {}

    def rotate(x: Tensor) -> Tensor:
        rotated = apply_rot_embed_cat(x[:, :, first:], positions.to(x.device), **half)
        return torch.cat([x[:, :, :first], rotated.to(x.dtype)], 2)

    return rotate


def _qkv(attn: Any) -> tuple[Matrix, ...]:
    if attn.qkv is None:
        return tuple((linear.weight, linear.bias) for linear in (attn.q_proj, attn.k_proj, attn.v_proj))
    if getattr(attn, "q_bias", None) is None:
        return ((attn.qkv.weight, attn.qkv.bias),)
    return ((attn.qkv.weight, None),)


def _qkv_bias(attn: Any) -> Callable[[], Tensor] | None:
    """Of keys there is none that is trained, and timm keeps zeros in its place."""
    if attn.qkv is None or getattr(attn, "q_bias", None) is None:
        return None
    return lambda: torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))


def _attention(attn: Any, trunk: Any) -> Attention | None:
    if type(attn) not in (EvaAttention, AttentionRope) or getattr(attn, "gate", None) is not None:
        return None
    if getattr(attn, "num_kv_groups", 1) != 1:
        return None
    return Attention(
        attn.num_heads,
        _qkv(attn),
        attn.proj,
        q_norm=known(attn.q_norm),
        k_norm=known(attn.k_norm),
        rotate=_rotation(attn, trunk),
        fixed=attn.num_prefix_tokens,
        inner=known(getattr(attn, "norm", None)),
        qkv_bias=_qkv_bias(attn),
    )


def _parts(block: Block, root: Any) -> BlockParts:
    trunk = root.trunk

    def whole(x: Tensor, mask: Tensor | None) -> Tensor:
        return block.forward(x, rope=_positions(trunk), attn_mask=mask)

    norm1 = block.norm1 if type(block) is EvaBlock else None
    attention, mlp = _attention(block.attn, trunk), mlp_of(block.mlp)
    if attention is None or mlp is None:
        return BlockParts(whole, norm1)
    if type(block) is EvaBlockPostNorm:
        return BlockParts(whole, None, None, attention, None, mlp, scale1=block.norm1, scale2=block.norm2)
    if type(block) is not EvaBlock:
        return BlockParts(whole)
    scale1, scale2 = (nn.Identity() if g is None else Scaled(g) for g in (block.gamma_1, block.gamma_2))
    return BlockParts(whole, norm1, block.norm2, attention, None, mlp, scale1=scale1, scale2=scale2)


def _is_eva(root: Any) -> bool:
    """Whether all blocks of ``root`` have the same positions, or none."""
    return isinstance(root.trunk, Eva) and not getattr(root.trunk, "rope_mixed", False)


EVA = timm_kind(
    "timm EVA",
    lambda root: _is_eva(root) and not isinstance(root.trunk.blocks[0], EvaBlockPostNorm),
    _parts,
    _embed,
)
# EVA02-E: norms behind attention and MLP, none in front.
EVA_POST_NORM = timm_kind(
    "timm EVA (post-norm)",
    lambda root: _is_eva(root) and isinstance(root.trunk.blocks[0], EvaBlockPostNorm),
    _parts,
    _embed,
    norm=None,
)
