"""A linear probe: a linear classifier on the frozen model's image features, and its file.

The probe knows the classes that it was trained on alone, so it has no accuracy on new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.backbone import Backbone, load_backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError
from rmadapter.files import read_json, write_atomic, write_json

PROBE_CONFIG, PROBE_WEIGHTS = "linear_probe.json", "linear_probe.safetensors"
FILE_FORMAT = 1
FIELDS = {
    "model": dict,
    "base_hash": str,
    "class_names": list,
    "template": str,
    "training": dict,
    "weights_sha256": str,
}


class LinearProbe(CLIPClassifier):
    """A classifier by ``weight`` [classes, embed] and ``bias`` [classes] among ``trained`` names or a part of them."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        clip: ClipModel,
        tokenizer: Callable[..., Tensor],
        trained: Sequence[str],
        template: str,
        weight: Tensor,
        bias: Tensor,
    ):
        super().__init__(clip, tokenizer, trained, template)
        self.trained = list(trained)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def set_classes(self, class_names: Sequence[str], template: str) -> None:
        """Classify among these names, which have to be those trained on or some of them.

        Raises:
            InputError: a name that was not trained on.
        """
        trained = getattr(self, "trained", class_names)  # none yet where the base class sets them
        self.rows = rows_of(list(class_names), list(trained))
        super().set_classes(class_names, template)

    def text_features(self) -> Tensor:
        """The classes' weights [classes, embed], in the place of their prompts' features."""
        return self.weight[self.rows]

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """[batch, classes] in fp32."""
        return F.normalize(image_features.float(), dim=-1) @ text_features.T + self.bias[self.rows]


def rows_of(class_names: list[str], trained: list[str]) -> list[int]:
    """For each name its place in ``trained``; of a half of them in its order, which tells equal names apart.

    Raises:
        InputError: a name that is not in it.
    """
    count = len(class_names)
    for first in range(len(trained) - count + 1):
        if trained[first : first + count] == class_names:
            return list(range(first, first + count))
    if unknown := [name for name in class_names if name not in trained]:
        raise InputError(
            f"the linear probe was not trained on class {unknown[0]!r}; valid: the {len(trained)} classes that it was "
            "trained on, or some of them"
        )
    return [trained.index(name) for name in class_names]


def save_probe(folder: Path, probe: LinearProbe, backbone: Backbone, training: dict[str, Any]) -> None:
    """``linear_probe.safetensors`` (weight, bias) and ``linear_probe.json`` (names, base model, how it was trained)."""
    tensors = {"weight": probe.weight.cpu(), "bias": probe.bias.cpu()}
    write_atomic(folder / PROBE_WEIGHTS, lambda path: save_file(tensors, path))
    values = {
        "format": FILE_FORMAT,
        "model": {"name": backbone.source.name, "pretrained": backbone.source.pretrained},
        "base_hash": backbone.base_hash,
        "class_names": probe.trained,
        "template": probe.template,
        "training": training,
        "weights_sha256": hashlib.sha256((folder / PROBE_WEIGHTS).read_bytes()).hexdigest(),
    }
    write_json(folder / PROBE_CONFIG, values)


def read_probe(folder: Path) -> dict[str, Any]:
    """What ``linear_probe.json`` in ``folder`` says.

    Raises:
        InputError: a damaged file or one of another format.
    """
    values = read_json(folder / PROBE_CONFIG, "linear probe file")
    if not isinstance(values, dict) or values.get("format") != FILE_FORMAT:
        raise InputError(f"{folder / PROBE_CONFIG} is no linear probe of format {FILE_FORMAT}")
    for name, kind in FIELDS.items():
        if not isinstance(values.get(name), kind):
            raise InputError(f"the linear probe in {folder} is damaged: field {name} is missing or malformed")
    return values


def load_probe(
    folder: Path, values: dict[str, Any], device: torch.device, model: str | None = None, pretrained: str | None = None
) -> tuple[LinearProbe, Backbone]:
    """The probe in ``folder``, whose file says ``values``, on its base model (or the one named).

    Raises:
        InputError: damaged weights or those of another file, another base model.
    """
    try:
        tensors = load_file(folder / PROBE_WEIGHTS)
        weight, bias = tensors["weight"], tensors["bias"]
        fits = hashlib.sha256((folder / PROBE_WEIGHTS).read_bytes()).hexdigest() == values["weights_sha256"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"the linear probe in {folder} is damaged: {error}") from error
    names, source = values["class_names"], values["model"]
    if not fits or weight.shape[0] != len(names):
        raise InputError(f"{folder / PROBE_WEIGHTS} is not the file that {PROBE_CONFIG} was written with")
    name, tag = (model, pretrained) if model else (source["name"], pretrained or source["pretrained"])
    backbone = load_backbone(name, tag, device)
    if backbone.base_hash != values["base_hash"]:
        raise InputError(f"the linear probe in {folder} belongs to other base weights than those of {backbone.source}")
    template = values["template"]
    return LinearProbe(backbone.clip, backbone.tokenizer, names, template, weight.to(device), bias.to(device)), backbone
