"""open_clip's own text transformer: parts of the model in its CLIP, a module of its own in CustomTextCLIP and CoCa."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from open_clip.transformer import TextTransformer, Transformer, text_global_pool
from torch import Tensor, nn

from rmadapter.clip.kinds.open_clip_blocks import batch_first, open_clip_parts
from rmadapter.clip.parts import normed
from rmadapter.clip.tower_kind import TowerKind
from rmadapter.clip.types import ClipModel


def pool_type(root: Any) -> str:
    """How features are made of tokens: "argmax", "eos", "last", "first", "none"."""
    if getattr(root, "cls_emb", None) is not None:
        return "last"  # CoCa's class token, whatever is written
    return root.pool_type if isinstance(root, TextTransformer) else root.text_pool_type


def _eos(root: Any) -> int:
    return root.eos_id if isinstance(root, TextTransformer) else root.text_eos_id


def _end_of_text(root: Any, tokens: Tensor) -> Tensor:
    """Place of the end-of-text token in each row of ``tokens`` [n, length]; int64 [n]."""
    return (tokens == _eos(root)).int().argmax(-1) if pool_type(root) == "eos" else tokens.argmax(-1)


def _dtype(root: Any) -> torch.dtype:
    return root.transformer.get_cast_dtype()


def _embed(root: Any, tokens: Tensor) -> Tensor:
    """Positions are cut to the length of ``tokens``."""
    x = root.token_embedding(tokens).to(_dtype(root))
    if getattr(root, "cls_emb", None) is not None:
        x = torch.cat([x, root.cls_emb.to(x.dtype).expand(x.shape[0], 1, -1)], 1)
    return x + root.positional_embedding[: x.shape[1]].to(x.dtype)


def _keys(root: Any, tokens: Tensor) -> Tensor | None:
    if not isinstance(root, TextTransformer):
        return None
    has_class = root.cls_emb is not None
    if not has_class and not getattr(root, "use_pad_mask", False):
        return None
    valid = tokens != root.pad_id
    if not has_class:
        return valid
    own = valid.new_ones(valid.shape[0], 1)
    # CoCa's weights were trained with the class token's column of the mask in front of the others'.
    return torch.cat([valid, own] if getattr(root, "correct_cls_mask", False) else [own, valid], 1)


def _counted(root: Any, tokens: Tensor) -> Tensor:
    if getattr(root, "cls_emb", None) is not None:
        return torch.cat([tokens != root.pad_id, tokens.new_ones(tokens.shape[0], 1, dtype=torch.bool)], 1)
    if getattr(root, "use_pad_mask", False):
        return tokens != root.pad_id
    if root.attn_mask is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    end = _end_of_text(root, tokens) if pool_type(root) in ("argmax", "eos") else tokens.argmax(-1)
    return torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]


def _trims(root: Any) -> bool:
    """It changes nothing where no token looks at a later one, and features are those of the end-of-text token."""
    return root.attn_mask is not None and pool_type(root) in ("argmax", "eos")


def _place(root: Any, tokens: Tensor | None) -> Tensor | int | str | None:
    kind = pool_type(root)
    if kind in ("argmax", "eos"):
        return None if tokens is None else _end_of_text(root, tokens)
    fixed: dict[str, int] = {"first": 0, "last": -1}
    return fixed.get(kind, f"features are pooled by {kind!r} over all tokens")


def _projected(root: Any, pooled: Tensor) -> Tensor:
    projection = root.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _finish_at(root: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return _projected(root, normed(root.ln_final, x, dtype))


def _finish(root: Any, x: Tensor, tokens: Tensor | None, dtype: torch.dtype) -> Tensor:
    kind = pool_type(root)
    # open_clip 2.32 pools at the largest token alone and knows no end-of-text number.
    eos = {"eos_token_id": _eos(root)} if kind == "eos" else {}
    x = normed(root.ln_final, x, dtype)
    return _projected(root, text_global_pool(x, tokens, kind, **eos))


def _embed_width(root: Any) -> int:
    projection = root.text_projection
    if projection is None:
        return root.ln_final.weight.shape[0]
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def _encode(model: ClipModel, tokens: Tensor) -> Tensor:
    """open_clip's ``encode_text`` on prompts of any length: positions and causal mask are cut to the length."""
    root = model if hasattr(model, "token_embedding") else model.text
    if not _trims(root):
        return model.encode_text(tokens, normalize=False)
    length = tokens.shape[1]
    x = root.transformer(_embed(root, tokens), attn_mask=root.attn_mask[:length, :length])
    return _finish(root, x, tokens, x.dtype)


TEXT = TowerKind(
    name="open_clip text transformer",
    modality="text",
    root="",
    fits=lambda root: isinstance(getattr(root, "transformer", None), Transformer) and batch_first(root),
    blocks="transformer.resblocks",
    norm="ln_1",
    parts=open_clip_parts,
    embed=_embed,
    place=_place,
    finish_at=_finish_at,
    finish=_finish,
    embed_width=_embed_width,
    size=lambda root: root.context_length,
    added=lambda root: int(getattr(root, "cls_emb", None) is not None),
    mask=lambda root: root.attn_mask,
    keys=_keys,
    counted=_counted,
    trims=_trims,
    encode=_encode,
    words="token_embedding",
    leave="ln_final",
)
CUSTOM_TEXT = replace(
    TEXT,
    name="open_clip text transformer (text)",
    root="text",
    fits=lambda root: isinstance(root, TextTransformer) and batch_first(root),
)
