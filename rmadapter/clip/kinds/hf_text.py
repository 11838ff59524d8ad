"""Encoders of Hugging Face's transformers as text towers: RoBERTa and XLM-R, mT5, M2M-100 (NLLB).

Each block runs by its own forward pass. They are bidirectional and mask padding, so prompts are cut to the longest one.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from torch import Tensor, nn

from rmadapter.clip.parts import BlockParts, normed
from rmadapter.clip.tower_kind import TowerKind, at_path
from rmadapter.clip.types import Block

# Class of the transformer's blocks -> (where they are, the norm in front of attention).
_KINDS = {
    "RobertaLayer": ("transformer.encoder.layer", None),
    "XLMRobertaLayer": ("transformer.encoder.layer", None),
    "BertLayer": ("transformer.encoder.layer", None),
    "MT5Block": ("transformer.block", "layer.0.layer_norm"),
    "T5Block": ("transformer.block", "layer.0.layer_norm"),
    "M2M100EncoderLayer": ("transformer.layers", "self_attn_layer_norm"),
}


BIASED = ("MT5Block", "T5Block")


def _first_block(root: Any, path: str) -> Any:
    blocks = at_path(root, path)
    return blocks[0] if isinstance(blocks, nn.ModuleList) and len(blocks) else None


def _fits(path: str, norm: str | None) -> Any:
    def fits(root: Any) -> bool:
        block = _first_block(root, path) if isinstance(root, HFTextEncoder) else None
        return _KINDS.get(type(block).__name__) == (path, norm)

    return fits


def _valid(root: Any, tokens: Tensor) -> Tensor:
    """bool [n, length]: what is not padding; the encoder looks at nothing else."""
    return tokens != root.config.pad_token_id


def _embed(root: Any, tokens: Tensor) -> Tensor:
    transformer = root.transformer
    if hasattr(transformer, "embeddings"):
        return transformer.embeddings(input_ids=tokens)
    x = transformer.embed_tokens(tokens)
    if hasattr(transformer, "embed_positions"):
        # Older versions of transformers leave the scale of the embedding to the caller.
        scale = 1.0 if hasattr(transformer.embed_tokens, "embed_scale") else getattr(transformer, "embed_scale", 1.0)
        x = x * scale
        x = x + transformer.embed_positions(tokens, x).to(x)
    return x


def _bias(root: Any, length: int) -> Tensor | None:
    """T5's by relative position, which its first block has and all add; the mask goes with it."""
    blocks = getattr(root.transformer, "block", None)
    if blocks is None or type(blocks[0]).__name__ not in BIASED:
        return None
    attention = blocks[0].layer[0].SelfAttention
    return attention.compute_bias(length, length, device=attention.q.weight.device)


def _parts(block: Block, root: Any) -> BlockParts:
    kind = type(block).__name__
    norm = _KINDS[kind][1]
    by_bias = kind in BIASED
    # Transformers 4 has M2M-100's layers ask for it.
    more = {"layer_head_mask": None} if "layer_head_mask" in signature(block.forward).parameters else {}

    def whole(x: Tensor, mask: Tensor | None) -> Tensor:
        found = block.forward(x, position_bias=mask) if by_bias else block.forward(x, attention_mask=mask, **more)
        return found[0] if isinstance(found, tuple) else found

    return BlockParts(whole, None if norm is None else at_path(block, norm))


def _finish(root: Any, x: Tensor, tokens: Tensor | None, dtype: torch.dtype) -> Tensor:
    from transformers.modeling_outputs import BaseModelOutputWithPooling  # an extra

    assert tokens is not None  # a text tower's features are made of prompts
    transformer = root.transformer
    last = getattr(transformer, "final_layer_norm", None) or getattr(transformer, "layer_norm", None)
    x = normed(last, x, dtype)
    pooler = getattr(transformer, "pooler", None)
    output = BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=None if pooler is None else pooler(x))
    return root.proj(root.pooler(output, _valid(root, tokens).long()))


def _place(root: Any, tokens: Tensor | None) -> int | str:
    if "Cls" in type(root.pooler).__name__:
        return 0
    return f"features are pooled by {type(root.pooler).__name__} over all tokens"


HF_TEXT = tuple(
    TowerKind(
        name=f"Hugging Face encoder ({'post' if norm is None else 'pre'}-norm)",
        modality="text",
        root="text",
        fits=_fits(path, norm),
        blocks=path,
        norm=norm,
        parts=_parts,
        embed=_embed,
        place=_place,
        finish=_finish,
        embed_width=lambda root: root.output_dim,
        size=lambda root: DEFAULT_CONTEXT_LENGTH,
        keys=_valid,
        bias=_bias,
        counted=_valid,
        trims=lambda root: True,
    )
    for path, norm in dict.fromkeys(_KINDS.values())
)
