"""What of the fast step a model does not allow, each as a sentence that says why."""

from __future__ import annotations

import torch
from torch import Tensor

from rmadapter.clip.attention import is_plain
from rmadapter.clip.blocks import is_known
from rmadapter.clip.towers import find_towers, text_is_trimmable
from rmadapter.clip.types import ClipModel


def blocks_obstacle(clip: ClipModel) -> str | None:
    """Why the blocks of ``clip`` cannot be run one by one here, or None where they can."""
    for modality, tower in find_towers(clip).items():
        unknown = [type(block).__name__ for block in tower.blocks if not is_known(block)]
        if unknown:
            return f"the {modality} tower has blocks of class {unknown[0]}, whose forward pass is not known here"
    return None


def last_block_obstacle(clip: ClipModel, modality: str) -> str | None:
    """Why the last block of a tower has to be computed at every token, or None where one is enough."""
    tower = find_towers(clip)[modality]
    pool = tower.pool_type(clip)
    if modality == "vision" and clip.visual.attn_pool is not None:
        return "features are pooled by attention over all tokens"
    if pool not in ("tok", "argmax", "eos", "first", "last"):
        return f"features are pooled by {pool!r} over all tokens"
    if not is_plain(tower.blocks[-1]):
        return "its attention has parts beyond queries, keys and values"
    return None


def shared_start_obstacle(clip: ClipModel) -> str | None:
    """Why what prompts have in common at their beginning is not the same for all of them, or None where it is."""
    if not text_is_trimmable(clip):
        return "the text tower is not causal and pooled at end-of-text"
    if not is_causal(clip.attn_mask):
        return "the text tower's mask is not the causal one"
    if not all(is_plain(block) for block in find_towers(clip)["text"].blocks):
        return "the text tower's attention has parts beyond queries, keys and values"
    return None


def is_causal(mask: Tensor | None) -> bool:
    """Whether the additive ``mask`` [tokens, tokens] keeps each token from all later ones and from nothing else."""
    return mask is not None and torch.equal(mask, torch.full_like(mask, float("-inf")).triu_(1))
