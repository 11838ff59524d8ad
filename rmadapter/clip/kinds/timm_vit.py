"""timm's VisionTransformer: SigLIP, SigLIP2, MobileCLIP-B and MobileCLIP2-L, ViTamin, and plain ones."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from rmadapter.clip.kinds.timm_trunks import known, mlp_of, timm_kind
from rmadapter.clip.parts import Attention, BlockParts, whole_block
from rmadapter.clip.types import Block


def _embed(root: Any, images: Tensor) -> Tensor:
    trunk = root.trunk
    return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))


def _parts(block: Block, root: Any) -> BlockParts:
    whole = whole_block(block)
    if type(block) is not TimmBlock:
        return BlockParts(whole, getattr(block, "norm1", None))
    attn, mlp = block.attn, mlp_of(block.mlp)
    if type(attn) is not TimmAttention or getattr(attn, "gate", None) is not None or mlp is None:
        return BlockParts(whole, block.norm1)
    attention = Attention(
        attn.num_heads,
        ((attn.qkv.weight, attn.qkv.bias),),
        attn.proj,
        q_norm=known(attn.q_norm),
        k_norm=known(attn.k_norm),
        inner=known(getattr(attn, "norm", None)),
    )
    return BlockParts(whole, block.norm1, block.norm2, attention, None, mlp, scale1=block.ls1, scale2=block.ls2)


TIMM_VIT = timm_kind("timm ViT", lambda root: isinstance(root.trunk, VisionTransformer), _parts, _embed)
