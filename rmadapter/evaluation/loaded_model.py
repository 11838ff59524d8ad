"""A stored adapter on its base model, ready to classify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rmadapter.clip.backbone import Backbone, load_backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.storage import store_backbone
from rmadapter.errors import InputError
from rmadapter.runtime import DTYPES, residual_dtype
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.adapter_file import AdapterInfo, read_info
from rmadapter.tuners.backend_choice import choose_backend
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.injection import AdaptedCLIP, load


def _encoders_of(adapted: AdaptedCLIP, info: AdapterInfo | None, precision: str) -> Encoders | None:
    """What runs an adapted model in evaluation, with the residual stream of its training where that is known.

    None after training through open_clip's own forward passes (--no-shortcuts): they round otherwise in 16 bits.
    """
    training = (info.training if info is not None else None) or {}
    residual = training.get("residual", "auto")
    return None if residual is None else Encoders.of(adapted, stream=residual_dtype(residual, precision))


@dataclass(frozen=True)
class LoadedModel:
    """A base model, with an adapter in it or without, stored in ``precision`` on ``device``.

    Attributes:
        backbone: the base model.
        adapted: the adapter in it, or None.
        info: what the adapter's file says, also where the base model alone is wanted; None without a file.
        backend, sentence: of the operator, and why that one; None without an adapter.
        precision, device: what it is stored and computed in, and where.
    """

    backbone: Backbone
    adapted: AdaptedCLIP | None
    info: AdapterInfo | None
    backend: str | None
    sentence: str | None
    precision: str
    device: torch.device

    def classifier(self, class_names: Sequence[str], template: str) -> CLIPClassifier:
        """A classifier among ``class_names``, by ``template``'s prompts."""
        tokenizer = self.backbone.tokenizer
        if self.adapted is None:
            return CLIPClassifier(self.backbone.clip, tokenizer, class_names, template)
        encoders = _encoders_of(self.adapted, self.info, self.precision)
        return AdaptedClassifier(self.adapted, tokenizer, class_names, template, encoders=encoders)


def load_stored(
    adapter: str | None,
    model: str | None,
    pretrained: str | None,
    *,
    device: torch.device,
    precision: str,
    fused: bool = True,
    backend: str | None = None,
    with_adapter: bool = True,
    info: AdapterInfo | None = None,
) -> LoadedModel:
    """The base model that the adapter in folder ``adapter`` names, or that is named here, and the adapter in it.

    Args:
        adapter: folder; None for the base model alone.
        model, pretrained: as in ``load_backbone``; None: the adapter's, without one ViT-B-16.
        device, precision: resolved ones.
        fused, backend: as in ``choose_backend``.
        with_adapter: False leaves the adapter out, and takes only the base model that it names.
        info: what the adapter's file says; default: it is read.

    Raises:
        InputError: the adapter's file does not say which model it belongs to and none is named; everything that
            ``load_backbone``, ``tuners.injection.load`` and ``choose_backend`` raise.
    """
    if info is None and adapter is not None:
        info = read_info(Path(adapter))
    if info is not None and model is None:
        if info.source is None:
            raise InputError(f"the adapter in {adapter} does not name its base model; give --model and --pretrained")
        model, pretrained = info.source.name, pretrained or info.source.pretrained
    backbone = load_backbone(model or "ViT-B-16", pretrained, device)
    adapted = None
    if adapter is not None and with_adapter:
        adapted = load(backbone.clip, adapter, source=backbone.source)
    # After loading, which compares the weights with those that the adapter was trained on.
    backbone = store_backbone(backbone, DTYPES[precision])
    chosen, sentence = (None, None) if adapted is None else choose_backend(adapted, fused, backend)
    return LoadedModel(backbone, adapted, info, chosen, sentence, precision, device)
