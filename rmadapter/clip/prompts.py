"""Class prompts: written, tokenised, trimmed, encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from rmadapter.clip.towers import text_is_trimmable
from rmadapter.clip.types import ClipModel
from rmadapter.config import check_template
from rmadapter.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """Tokenised class prompts.

    Attributes:
        tokens: int64 [classes, length], end-of-text at the same place as untrimmed.
        valid: bool [classes, length], the tokens up to and with end-of-text.
    """

    tokens: Tensor
    valid: Tensor

    def to(self, device: torch.device | str) -> Prompts:
        """The same on another device."""
        return Prompts(self.tokens.to(device), self.valid.to(device))


def make_prompts(
    clip: ClipModel,
    tokenizer: Callable[..., Tensor],
    class_names: Sequence[str],
    template: str,
    *,
    trim: bool = True,
) -> Prompts:
    """Prompts of all classes, trimmed to the longest one where that leaves every feature as it is.

    Args:
        tokenizer: open_clip's, called as ``tokenizer(texts, context_length=n)``.
        template: text with one ``{}`` for the class name.
        trim: False keeps the model's full context.

    Raises:
        InputError: a prompt longer than the model's context (open_clip would cut it off silently).
    """
    check_template(template)
    texts = [template.format(name) for name in class_names]
    context = clip.context_length
    tokens = tokenizer(texts, context_length=context + 1)
    too_long = [text for text, row in zip(texts, tokens, strict=True) if row[-1] != 0]
    if too_long:
        raise InputError(
            f"prompt {too_long[0]!r} is longer than the model's context of {context} tokens"
            + (f", and {len(too_long) - 1} more are" if len(too_long) > 1 else "")
        )
    tokens = tokens[:, :context]
    end = end_of_text(clip, tokens)
    if trim and text_is_trimmable(clip):
        tokens = tokens[:, : int(end.max()) + 1]
    return Prompts(tokens.contiguous(), torch.arange(tokens.shape[1]) <= end[:, None])


def end_of_text(clip: ClipModel, tokens: Tensor) -> Tensor:
    """Place of the end-of-text token in each row of ``tokens`` [classes, length]; int64 [classes]."""
    return (tokens == clip.text_eos_id).int().argmax(-1) if clip.text_pool_type == "eos" else tokens.argmax(-1)


def embed_prompts(clip: ClipModel, tokens: Tensor) -> Tensor:
    """What enters the first block, [classes, length, D] in the dtype of the weights; positions cut to the length."""
    dtype = clip.transformer.get_cast_dtype()
    return clip.token_embedding(tokens).to(dtype) + clip.positional_embedding[: tokens.shape[1]].to(dtype)


def pool_text(clip: ClipModel, x: Tensor, tokens: Tensor) -> Tensor:
    """The token, or tokens, of ``x`` [classes, length, D] that the features are made of."""
    # open_clip 2.32 pools at the largest token alone and knows no end-of-text number.
    eos = {"eos_token_id": clip.text_eos_id} if clip.text_pool_type == "eos" else {}
    return text_global_pool(x, tokens, clip.text_pool_type, **eos)


def project_text(clip: ClipModel, x: Tensor) -> Tensor:
    """Features of pooled tokens [..., D], not normalised."""
    if clip.text_projection is None:
        return x
    return clip.text_projection(x) if isinstance(clip.text_projection, nn.Linear) else x @ clip.text_projection


def encode_prompts(clip: ClipModel, tokens: Tensor) -> Tensor:
    """Text features [classes, embed], not normalised, of trimmed tokens [classes, length].

    open_clip's ``encode_text`` on a prompt of any length: positions and causal mask are cut to the length.
    """
    length = tokens.shape[1]
    mask = clip.attn_mask[:length, :length] if clip.attn_mask is not None else None
    x = clip.ln_final(clip.transformer(embed_prompts(clip, tokens), attn_mask=mask))
    return project_text(clip, pool_text(clip, x, tokens))
