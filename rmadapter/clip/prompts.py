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
from rmadapter.config.prompt import PromptConfig
from rmadapter.errors import InputError

PLACEHOLDER = "X"  # a word of one token, which a learned token stands in the place of


@dataclass(frozen=True)
class Prompts:
    """Tokenised class prompts.

    Attributes:
        tokens: int64 [classes, length], end-of-text at the same place as untrimmed.
        valid: bool [classes, length], the tokens up to and with end-of-text.
        slots: int64 [classes, learned], at which tokens learned ones stand; None where there are none.
    """

    tokens: Tensor
    valid: Tensor
    slots: Tensor | None = None

    def to(self, device: torch.device | str) -> Prompts:
        """The same on another device."""
        slots = None if self.slots is None else self.slots.to(device)
        return Prompts(self.tokens.to(device), self.valid.to(device), slots)

    def rows(self, rows: Tensor, length: int | None = None) -> Prompts:
        """Those of some classes, cut to ``length`` tokens."""
        slots = None if self.slots is None else self.slots[rows]
        return Prompts(self.tokens[rows, :length], self.valid[rows, :length], slots)

    @property
    def fixed(self) -> Tensor:
        """``tokens`` with -1 where learned ones stand."""
        return self.tokens if self.slots is None else self.tokens.scatter(1, self.slots, -1)


class PromptBuffers(nn.Module):
    """Prompts that go where a model goes: buffers of it, which are not saved."""

    tokens: Tensor
    valid: Tensor

    def __init__(self, prompts: Prompts):
        super().__init__()
        self.register_buffer("tokens", prompts.tokens, persistent=False)
        self.register_buffer("valid", prompts.valid, persistent=False)

    @property
    def prompts(self) -> Prompts:
        """The prompts where they are now."""
        return Prompts(self.tokens, self.valid)


def make_prompts(
    clip: ClipModel,
    tokenizer: Callable[..., Tensor],
    class_names: Sequence[str],
    template: str,
    *,
    trim: bool = True,
    learned: PromptConfig | None = None,
) -> Prompts:
    """Prompts of all classes, trimmed to the longest one where that leaves every feature as it is.

    Args:
        tokenizer: open_clip's, called as ``tokenizer(texts, context_length=n)``.
        template: text with one ``{}`` for the class name.
        trim: False keeps the model's full context.
        learned: the learned tokens that stand in them, if any. They count as the tokens that they replace: random
            ones as words of one token each in front of the name and a full stop.

    Raises:
        InputError: a prompt longer than the model's context (open_clip would cut it off silently).
    """
    count = learned.text_tokens if learned is not None else 0
    if learned is not None and count and learned.init == "random":
        template = " ".join([PLACEHOLDER] * count) + " {}."
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
    slots = None
    if learned is not None and count:
        slots = torch.arange(1, 1 + count).expand(len(tokens), -1)
        if learned.place != "end":
            order, slots = _placed(learned, tokens, _name_lengths(clip, tokenizer, class_names))
            tokens = tokens.gather(1, order)
    return Prompts(tokens.contiguous(), torch.arange(tokens.shape[1]) <= end[:, None], slots)


def _name_lengths(clip: ClipModel, tokenizer: Callable[..., Tensor], class_names: Sequence[str]) -> Tensor:
    """Tokens of each class name: int64 [classes]."""
    tokens = tokenizer(list(class_names), context_length=clip.context_length)
    return end_of_text(clip, tokens) - 1  # without start-of-text


def _placed(learned: PromptConfig, tokens: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the tokens of each row, and places of the learned ones, where the name is in the middle or in front.

    As tokenised, the learned tokens come first, then the ``names`` [classes] tokens of the name, then the rest.
    """
    count = learned.text_tokens
    before = count // 2 if learned.place == "middle" else 0
    order = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
    slots = torch.empty(len(tokens), count, dtype=torch.int64)
    for row, name in enumerate(names.tolist()):
        first = 1 + count
        moved = [*range(1, 1 + before), *range(first, first + name), *range(1 + before, first)]
        order[row, 1 : 1 + len(moved)] = torch.tensor(moved)
        slots[row] = torch.tensor([*range(1, 1 + before), *range(1 + before + name, first + name)])
    return order, slots


def first_words(clip: ClipModel, tokenizer: Callable[..., Tensor], template: str, count: int) -> Tensor:
    """The first ``count`` tokens of ``template``, whole words in front of the class name: int64 [count].

    Raises:
        InputError: fewer tokens there, or the last one would be a part of a word.
    """
    words = template.partition("{}")[0].split()
    starts = [" ".join(words[: number + 1]) for number in range(len(words))]
    tokens = tokenizer(starts, context_length=clip.context_length) if starts else torch.empty(0, 1)
    ends = (end_of_text(clip, tokens) - 1).tolist()  # without start-of-text
    if count not in ends:
        listed = ", ".join(f"{end} ({start!r})" for start, end in zip(starts, ends, strict=True))
        raise InputError(
            f"prompt.text_tokens is {count}, but the words in front of the class name in template {template!r} end at "
            f"token {listed or '(none)'}; valid: one of these, or prompt.init random"
        )
    return tokens[-1, 1 : 1 + count]


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
