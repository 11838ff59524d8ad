"""Which base model this is: where it came from, its weights, and what it computes with them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rmadapter.clip.names import RANDOM, brings_weights
from rmadapter.clip.structure import structure_of, tensor_bytes
from rmadapter.clip.tower_kind import CHILD
from rmadapter.clip.types import ClipModel

# A text that tokenizers of other vocabularies, cleaning or padding encode otherwise; ASCII, of which all versions of
# the libraries that mend text make the same.
TOKENIZER_TEXT = "A photo of a Chihuahua's 12 toys,  type B-2_x."
TOKENIZER_LENGTH = 32


@dataclass(frozen=True)
class ModelSource:
    """What a base model was made from: open_clip's name and a pretrained tag or file.

    "none" stands for random weights, None for those that the model brings.
    """

    name: str
    pretrained: str | None = None

    def __str__(self) -> str:
        if brings_weights(self.name):
            return self.name
        return f"{self.name} ({'random weights' if self.pretrained in (None, RANDOM) else self.pretrained})"


@dataclass(frozen=True)
class BaseIdentity:
    """What a base model is, wherever it comes from.

    Attributes:
        weights: ``weights_hash`` of it as it was loaded.
        dtype: of these weights, such as "float32"; of several joined by "+".
        structure: ``structure_of`` it.
    """

    weights: str
    dtype: str
    structure: dict[str, Any]


def identity_of(clip: ClipModel) -> BaseIdentity:
    """The identity of ``clip`` as it is now; adapters in it are left out."""
    return BaseIdentity(weights_hash(clip), weights_dtype(clip), structure_of(clip))


def base_hash(clip: ClipModel, weights: str | None = None) -> str:
    """One hash of weights and structure; ``weights`` is ``weights_hash`` where those loaded are stored otherwise."""
    structure = json.dumps(structure_of(clip), sort_keys=True)
    return hashlib.sha256(f"{weights or weights_hash(clip)} {structure}".encode()).hexdigest()


def _base_tensors(clip: ClipModel) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in sorted(clip.state_dict().items()) if f".{CHILD}." not in name]


def weights_hash(clip: ClipModel) -> str:
    """SHA-256 over name, dtype, shape and bytes of the state dict of ``clip`` as it is now, adapters left out.

    Of a model that ``storage.store_backbone`` has brought to 16 bits this is another one than of the weights that were
    loaded, which its ``Backbone`` keeps. Hashing takes a second for a large model.
    """
    digest = hashlib.sha256()
    for name, tensor in _base_tensors(clip):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def weights_dtype(clip: ClipModel) -> str:
    """The dtype of the floating-point weights as they are now, such as "float32"; several are joined by "+"."""
    found = {
        str(tensor.dtype).removeprefix("torch.") for _, tensor in _base_tensors(clip) if tensor.is_floating_point()
    }
    return "+".join(sorted(found))


def difference(recorded: BaseIdentity, found: BaseIdentity) -> tuple[str, Any, Any] | None:
    """The first thing in which two base models differ: its name, what it was, what it is; None where they are one."""
    names = sorted({*recorded.structure, *found.structure})
    pairs = itertools.chain(
        ((name, recorded.structure.get(name), found.structure.get(name)) for name in names),
        (
            ("dtype of the weights", recorded.dtype, found.dtype),
            ("hash of the weights", recorded.weights, found.weights),
        ),
    )
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def tokenizer_hash(tokenizer: Callable[..., Tensor]) -> str:
    """A short hash of how ``tokenizer`` encodes and pads a fixed text."""
    tokens = tokenizer([TOKENIZER_TEXT], context_length=TOKENIZER_LENGTH)
    return hashlib.sha256(json.dumps(tokens.tolist()).encode()).hexdigest()[:16]
