"""A linear probe: a linear classifier on the frozen model's image features, and its file.

The probe knows the classes that it was trained on alone, so it has no accuracy on new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.identity import tokenizer_hash
from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError
from rmadapter.files import write_atomic
from rmadapter.tuners.bound_classes import rows_of
from rmadapter.tuners.stored_facts import (
    StoredFacts,
    check_facts,
    check_weights_file,
    identity_as_loaded,
    precision_of,
    read_facts,
    write_facts,
)

PROBE_CONFIG, PROBE_WEIGHTS = "linear_probe.json", "linear_probe.safetensors"


@dataclass(frozen=True, kw_only=True)
class ProbeInfo(StoredFacts):
    """What ``linear_probe.json`` says: the facts, among which the class names and the training always are."""

    class_names: list[str]
    template: str
    training: dict[str, Any]


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

    def knows(self, class_names: Sequence[str]) -> bool:
        """Whether it was trained on all of these names."""
        return set(class_names) <= set(self.trained)

    @property
    def takes_texts(self) -> bool:
        """It has weights of each class in the place of prompts."""
        return False

    def _take_classes(self, class_names: Sequence[str], template: str) -> None:
        trained = getattr(self, "trained", class_names)  # none yet where the base class sets them
        rows = rows_of(list(class_names), list(trained), "the linear probe")
        super()._take_classes(class_names, template)
        self.rows = rows

    def text_features(self) -> Tensor:
        """The classes' weights [classes, embed], in the place of their prompts' features."""
        return self.weight[self.rows]

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """[batch, classes] in fp32."""
        return F.normalize(image_features.float(), dim=-1) @ text_features.T + self.bias[self.rows]


def save_probe(folder: Path, probe: LinearProbe, backbone: Backbone, training: dict[str, Any]) -> None:
    """``linear_probe.safetensors`` (weight, bias) and ``linear_probe.json`` (names, base model, how it was trained).

    Raises:
        InputError: the folder cannot be written or the disk is full, or a weight is not finite.
    """
    tensors = {"weight": probe.weight.cpu(), "bias": probe.bias.cpu()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"the linear probe is not saved: {name} holds values that are not finite")
    write_atomic(folder / PROBE_WEIGHTS, lambda path: save_file(tensors, path))
    info = ProbeInfo(
        source=backbone.source,
        base=identity_as_loaded(backbone.clip, backbone.weights_hash),
        tokenizer=tokenizer_hash(backbone.tokenizer),
        preprocessing=backbone.preprocessing,
        precision=precision_of(backbone.clip),
        class_names=probe.trained,
        template=probe.template,
        training=training,
    )
    write_facts(folder / PROBE_CONFIG, info, folder / PROBE_WEIGHTS)


def read_probe(folder: Path) -> ProbeInfo:
    """What ``linear_probe.json`` in ``folder`` says.

    Raises:
        InputError: everything ``read_facts`` raises.
    """
    return read_facts(ProbeInfo, folder / PROBE_CONFIG, "linear probe")


def load_probe(folder: Path, info: ProbeInfo, backbone: Backbone) -> LinearProbe:
    """The probe in ``folder``, whose file says ``info``, on its base model, which is on the device to use.

    Raises:
        InputError: damaged weights or those of another file, another base model.
    """
    check_facts(
        info, f"the linear probe in {folder}", backbone.clip, loaded=backbone.weights_hash, tokenizer=backbone.tokenizer
    )
    path = folder / PROBE_WEIGHTS
    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"], tensors["bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"the linear probe in {folder} is damaged: {error}") from error
    check_weights_file(path, folder / PROBE_CONFIG, info)
    for name, tensor, dims in (("weight", weight, 2), ("bias", bias, 1)):
        if tensor.dim() != dims or len(tensor) != len(info.class_names):
            raise InputError(
                f"{path}: {name} has shape {list(tensor.shape)}, and there are {len(info.class_names)} class names"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    device = backbone.clip.logit_scale.device
    return LinearProbe(
        backbone.clip, backbone.tokenizer, info.class_names, info.template, weight.to(device), bias.to(device)
    )
