"""What a model's name says of it, without loading open_clip."""

from __future__ import annotations

# The bundled small CLIP.
MODEL = "emoji-clip"


def brings_weights(model: str) -> bool:
    """Whether ``model`` has weights without ``--pretrained``: the bundled one, local-dir:FOLDER, hf-hub:ORG/NAME."""
    return model == MODEL or ":" in model
