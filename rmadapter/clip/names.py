"""What a model's name says of it, without loading open_clip."""

from __future__ import annotations

# The bundled small CLIP.
MODEL = "emoji-clip"
# What stands before a folder, and before a repository of the Hugging Face hub.
LOCAL, HUB = "local-dir:", "hf-hub:"
# In place of a tag: weights drawn from a fixed seed, which only somebody who says so gets.
RANDOM = "none"


def brings_weights(model: str) -> bool:
    """Whether ``model`` has weights without ``--pretrained``: the bundled one, local-dir:FOLDER, hf-hub:ORG/NAME."""
    return model == MODEL or ":" in model
