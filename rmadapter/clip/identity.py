"""Which base model this is: where it came from, and the hash of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from rmadapter.clip.names import brings_weights
from rmadapter.clip.towers import CHILD
from rmadapter.clip.types import ClipModel


@dataclass(frozen=True)
class ModelSource:
    """What a base model was made from: open_clip's name and a pretrained tag or file, None for random weights."""

    name: str
    pretrained: str | None = None

    def __str__(self) -> str:
        return self.name if brings_weights(self.name) else f"{self.name} ({self.pretrained or 'random weights'})"


def base_hash(clip: ClipModel) -> str:
    """SHA-256 over name, dtype, shape and bytes of the state dict of ``clip`` as it is now, adapters left out.

    Of a model that ``storage.store_backbone`` has brought to 16 bits this is another one than of the weights that were
    loaded, which its ``Backbone`` keeps.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        if f".{CHILD}." not in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def uses_quick_gelu(clip: ClipModel) -> bool:
    """Whether the model's activation is QuickGELU, as in OpenAI's weights; the same weights need the same one."""
    return any(type(module).__name__ == "QuickGELU" for module in clip.modules())
