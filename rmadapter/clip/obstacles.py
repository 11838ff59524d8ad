"""What of the fast step a model does not allow, each as a sentence that says why."""

from __future__ import annotations

import torch
from torch import Tensor

from rmadapter.clip.towers import find_towers, text_is_trimmable
from rmadapter.clip.types import ClipModel

BEYOND = "attention has parts beyond queries, keys and values"


def last_block_obstacle(clip: ClipModel, modality: str) -> str | None:
    """Why the last block of a tower has to be computed at every token, or None where one is enough."""
    tower = find_towers(clip)[modality]
    place = tower.place()
    if isinstance(place, str):
        return place
    last = tower.parts[-1]
    if last.attention is None or last.mlp is None or tower.kind.finish_at is None:
        return f"its {BEYOND}" if last.apart else f"blocks of class {type(tower.blocks[-1]).__name__} run whole"
    if last.plain or (len(last.attention.qkv) == 3 and isinstance(place, int) and 0 <= place < last.attention.fixed):
        return None
    return f"its {BEYOND}"


def shared_start_obstacle(clip: ClipModel) -> str | None:
    """Why what prompts have in common at their beginning is not the same for all of them, or None where it is."""
    text = find_towers(clip)["text"]
    if not text_is_trimmable(clip) or text.mask is None:
        return "the text tower is not causal and pooled at end-of-text"
    if not is_causal(text.mask):
        return "the text tower's mask is not the causal one"
    if not all(parts.plain for parts in text.parts):
        return f"the text tower's {BEYOND}"
    return None


def is_causal(mask: Tensor | None) -> bool:
    """Whether the additive ``mask`` [tokens, tokens] keeps each token from all later ones and from nothing else."""
    return mask is not None and torch.equal(mask, torch.full_like(mask, float("-inf")).triu_(1))
