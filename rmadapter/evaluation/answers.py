"""What a classifier answers for the images of a part of the classes, kept for everything that is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import Item, Read
from rmadapter.errors import InputError
from rmadapter.evaluation.eval_images import Loading, readable_batches
from rmadapter.files import write_atomic

LOGITS_SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True)
class Encoded:
    """Image features of a data set's images by one model.

    Attributes:
        features: [batch, embed] of each batch, not normalised, on the model's device.
        items: the images that could be read, in their order.
        read: what gives an item's picture.
        skipped: how many could not be read.
    """

    features: list[Tensor]
    items: list[Item]
    read: Read
    skipped: int

    @property
    def labels(self) -> Tensor:
        """int64 [images]."""
        return torch.tensor([item.label for item in self.items])


@dataclass(frozen=True)
class PartAnswers:
    """Logits of images among classes.

    Attributes:
        logits: [images, classes] in fp32 on the CPU.
        labels: int64 [images], of the true classes.
        class_names: by label.
        items: the images; ``read`` gives the picture of an item's path.
    """

    logits: Tensor
    labels: Tensor
    class_names: list[str]
    items: list[Item]
    read: Read

    @property
    def top1(self) -> float:
        """Percent of the images whose class has the largest logit, the first of equals."""
        return 100 * int((self.logits.argmax(-1) == self.labels).sum()) / len(self.labels)


@torch.no_grad()
def encode(model: CLIPClassifier, read: Read, items: Sequence[Item], loading: Loading, *, name: str = "") -> Encoded:
    """Features of the images of ``items`` by ``model``, which is left in eval mode; ``name`` is for messages.

    Raises:
        InputError: no items, an unreadable image (without ``loading.skip_bad``).
    """
    if not items:
        raise InputError(f"there are no images to evaluate{' for ' + name if name else ''}")
    device = model.prompts.tokens.device
    model.eval()
    # In the place of labels, so that those that could not be read are known.
    numbered = [item._replace(label=number) for number, item in enumerate(items)]
    features: list[Tensor] = []
    kept: list[Item] = []
    for images, numbers in readable_batches(read, numbered, loading, name=name):
        features.append(model.image_features(images.to(device)))
        kept += [items[number] for number in numbers.tolist()]
    return Encoded(features, kept, read, len(items) - len(kept))


@torch.no_grad()
def answers_of(model: CLIPClassifier, encoded: Encoded, text: Tensor) -> PartAnswers:
    """What ``model`` answers for ``encoded`` among its classes, which the items' labels count.

    ``text`` are its ``text_features()`` [classes, embed].

    Raises:
        InputError: features or logits that are not finite.
    """
    logits = torch.cat([model.classify_features(features, text).cpu() for features in encoded.features])
    return PartAnswers(logits, encoded.labels, list(model.class_names), encoded.items, encoded.read)


def check_logits_file(file: str) -> None:
    """Raise InputError unless ``file`` is called as one that ``write_logits`` can write."""
    if Path(file).suffix not in LOGITS_SUFFIXES:
        raise InputError(f"logits is {file!r}; valid: a file that ends in {' or '.join(LOGITS_SUFFIXES)}")


def write_logits(path: Path, parts: Mapping[str, PartAnswers]) -> None:
    """Logits and labels of each part in one file, atomically, in the format of its name's end.

    Tensors ``PART.logits`` [images, classes] (fp32) and ``PART.labels`` [images] (int64), and the names
    ``PART.classes`` and ``PART.images`` (paths below the data's root): text arrays in .npz, in .safetensors lists as
    JSON in the metadata.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {f"{part}.{name}": getattr(found, name) for part, found in parts.items() for name in ("logits", "labels")}
    texts = {f"{part}.classes": found.class_names for part, found in parts.items()}
    texts |= {f"{part}.images": [item.path for item in found.items] for part, found in parts.items()}
    if path.suffix == ".npz":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        arrays |= {name: np.array(values, dtype=np.str_) for name, values in texts.items()}
        write_atomic(path, lambda temporary: _save_arrays(temporary, arrays))
    else:
        metadata = {name: json.dumps(values) for name, values in texts.items()}
        write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # of a name it would make another one
        np.savez_compressed(file, allow_pickle=False, **arrays)
