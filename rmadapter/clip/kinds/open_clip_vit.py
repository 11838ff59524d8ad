"""open_clip's own image transformer, of its CLIP and CoCa models."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from rmadapter.clip.kinds.open_clip_blocks import batch_first, open_clip_parts
from rmadapter.clip.parts import normed
from rmadapter.clip.tower_kind import TowerKind


def _place(root: Any, tokens: Tensor | None) -> int | str:
    if root.attn_pool is not None:
        return "features are pooled by attention over all tokens"
    return 0 if root.pool_type == "tok" else f"features are pooled by {root.pool_type!r} over all tokens"


def _projected(root: Any, pooled: Tensor) -> Tensor:
    return pooled if root.proj is None else pooled @ root.proj


def _finish_at(root: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return _projected(root, normed(root.ln_post, x, dtype))


def _finish(root: Any, x: Tensor, tokens: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _projected(root, root._pool(x.to(dtype))[0])


def _finish_operations(root: Any) -> int:
    """Of CoCa's pooler: keys and values of all tokens, queries and output of its own."""
    if root.attn_pool is None:
        return 0
    attn, tokens = root.attn_pool.attn, root.positional_embedding.shape[0]
    # One pooler of ``query`` rows; where there are two in turn (open_clip's "parallel" and "cascade") the first counts.
    width, queries = attn.embed_dim, root.attn_pool.query.shape[0]
    keys = 2 * tokens * width * (attn.kdim + attn.vdim)
    return keys + 4 * queries * width**2 + 4 * queries * tokens * width


VIT = TowerKind(
    name="open_clip ViT",
    modality="vision",
    root="visual",
    fits=lambda root: isinstance(root, VisionTransformer) and batch_first(root),
    blocks="transformer.resblocks",
    norm="ln_1",
    parts=open_clip_parts,
    embed=lambda root, images: root._embeds(images),
    place=_place,
    finish_at=_finish_at,
    finish=_finish,
    embed_width=lambda root: root.ln_post.weight.shape[0] if root.proj is None else root.proj.shape[1],
    size=lambda root: root.positional_embedding.shape[0],
    grid=lambda root: root.grid_size,
    embed_operations=lambda root: 2 * root.conv1.weight.numel(),
    finish_operations=_finish_operations,
    enter="ln_pre",
    leave="ln_post",
)
