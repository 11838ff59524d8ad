"""timm's VisionTransformer with relative positions, which may be shared by all blocks."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor

from rmadapter.clip.kinds import timm_trunks
from rmadapter.clip.parts import BlockParts
from rmadapter.clip.tower_kind import TowerKind
from rmadapter.clip.types import Block


def _embed(root: Any, images: Tensor) -> Tensor:
    x = root.trunk.patch_embed(images)
    first = root.trunk.cls_token
    return x if first is None else torch.cat([first.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)


def _parts(block: Block, root: Any) -> BlockParts:
    shared = root.trunk.shared_rel_pos

    def whole(x: Tensor, mask: Tensor | None) -> Tensor:
        return block.forward(x, shared_rel_pos=None if shared is None else shared.get_bias())

    return BlockParts(whole, block.norm1)


RELPOS = TowerKind(
    name="timm ViT with relative positions",
    modality="vision",
    root="visual",
    fits=lambda root: isinstance(root, TimmModel) and isinstance(root.trunk, VisionTransformerRelPos),
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
