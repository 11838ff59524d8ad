"""A tokenizer for models with random weights whose own cannot be had: to measure speed, and to try a model out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor

# As many ids from 0 stay free for padding and end of text, which models number below this.
RESERVED = 4


class StandInTokenizer:
    """CLIP's tokens brought into a vocabulary of another size, padded and ended as the text tower expects.

    Random weights know no words, so any tokenizer that keeps different texts apart serves them; pretrained ones would
    be lost on it, and ``backbone`` refuses it for them.

    Args:
        text: the ``text_cfg`` of the model's configuration.
        pad: id of padding, which the tower may look for.
        context_length: tokens of a prompt.
    """

    def __init__(self, text: dict[str, Any], pad: int, context_length: int):
        self.words = open_clip.SimpleTokenizer(context_length=context_length)
        self.vocabulary = int(text.get("vocab_size") or 49408)
        self.end = text.get("eos_id") if text.get("pool_type") == "eos" else None
        self.pad, self.context_length = pad, context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokens int64 [texts, context_length]; longer texts are cut, as by open_clip's own."""
        length = context_length or self.context_length
        rows = self.words([texts] if isinstance(texts, str) else list(texts), context_length=length)
        padding = rows == 0
        found = RESERVED + rows % (self.vocabulary - RESERVED)
        if self.end is not None:
            last = (~padding).sum(1, keepdim=True) - 1
            found = found.scatter(1, last, self.end)
        return torch.where(padding, self.pad, found)
