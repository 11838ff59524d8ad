"""timm's VisionTransformer: SigLIP, SigLIP2, MobileCLIP-B and MobileCLIP2-L, ViTamin, and plain ones."""

from __future__ import annotations

from typing import Any

from open_clip.timm_model import TimmModel
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from rmadapter.clip.kinds import timm_trunks
from rmadapter.clip.kinds.timm_trunks import known, mlp_of
from rmadapter.clip.parts import Attention, BlockParts, whole_block
from rmadapter.clip.tower_kind import TowerKind
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


TIMM_VIT = TowerKind(
    name="timm ViT",
    modality="vision",
    root="visual",
    fits=lambda root: isinstance(root, TimmModel) and isinstance(root.trunk, VisionTransformer),
    blocks="trunk.blocks",
    norm="norm1",
    parts=_parts,
    embed=_embed,
    place=timm_trunks.place,
    finish_at=timm_trunks.finish_at,
    finish=timm_trunks.finish,
    embed_width=timm_trunks.embed_width,
    size=timm_trunks.size,
    grid=timm_trunks.grid,
    embed_operations=timm_trunks.embed_operations,
    finish_operations=timm_trunks.finish_operations,
)
