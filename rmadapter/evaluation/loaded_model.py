"""A stored adapter on its base model, ready to classify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from rmadapter.clip.backbone import Backbone, load_backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.identity import ModelSource
from rmadapter.clip.known_bases import check_known
from rmadapter.clip.storage import store_backbone
from rmadapter.config.paths import ModelText, PathText
from rmadapter.errors import InputError
from rmadapter.runtime import DTYPES, residual_dtype, resolve_precision
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.adapter_file import AdapterInfo, read_info
from rmadapter.tuners.backend_choice import choose_backend
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.frozen_classifier import FrozenClassifier
from rmadapter.tuners.injection import load
from rmadapter.tuners.stored_facts import StoredFacts, check_facts


def _encoders_of(adapted: AdaptedCLIP, info: AdapterInfo | None, precision: str) -> Encoders | None:
    """What runs an adapted model in evaluation, with the residual stream of its training where that is known.

    None after training through open_clip's own forward passes (--no-shortcuts): they round otherwise in 16 bits.
    """
    training = (info.training if info is not None else None) or {}
    residual = training.get("residual", "auto")
    if residual is None:
        return None
    return Encoders.of(adapted, stream=residual_dtype(residual, precision), inference=True)


def zeroshot_classifier(
    backbone: Backbone, precision: str, class_names: Sequence[str], template: str
) -> FrozenClassifier:
    """Zero-shot CLIP among ``class_names``, with the residual stream that an adapted model has by default."""
    stream = residual_dtype("auto", precision)
    return FrozenClassifier(backbone.clip, backbone.tokenizer, class_names, template, stream=stream)


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

    def zeroshot(self, class_names: Sequence[str], template: str) -> CLIPClassifier:
        """The frozen model's classifier; where an adapter is in it, for use while that is switched off."""
        return zeroshot_classifier(self.backbone, self.precision, class_names, template)

    def classifier(self, class_names: Sequence[str], template: str, *, elsewhere: bool = False) -> CLIPClassifier:
        """A classifier among ``class_names``, by ``template``'s prompts; ``elsewhere`` as in ``AdaptedClassifier``."""
        if self.adapted is None:
            return self.zeroshot(class_names, template)
        encoders = _encoders_of(self.adapted, self.info, self.precision)
        tokenizer = self.backbone.tokenizer
        return AdaptedClassifier(self.adapted, tokenizer, class_names, template, encoders=encoders, elsewhere=elsewhere)


def load_base(
    info: StoredFacts | None,
    what: str,
    model: str | None,
    pretrained: str | None,
    device: torch.device,
    *,
    trust_base: bool = False,
) -> Backbone:
    """The base model that is named here, or that ``info`` names, with the preprocessing that ``info`` records.

    Args:
        info: what the file of a stored method says; None without one.
        what: whose file it is, in messages: "the adapter in flowers".
        model, pretrained: as in ``load_backbone``; None: those of ``info``, without one ViT-B-16.
        device: where the model goes.
        trust_base: load a folder, a hub repository or a weights file that ``info`` alone names, too.

    Raises:
        InputError: ``info`` does not say which model it belongs to and none is named, or names one that others may have
            made (``known_bases``); everything that ``load_backbone`` raises.
    """
    if model is None and info is not None:
        if info.source is None:
            raise InputError(f"{what} does not name its base model; give --model and --pretrained")
        named = ModelSource(info.source.name, None if pretrained else info.source.pretrained)
        if not trust_base:
            check_known(named, what)
        model, pretrained = named.name, pretrained or named.pretrained
    backbone = load_backbone(model or "ViT-B-16", pretrained, device)
    return backbone if info is None else replace(backbone, preprocessing=info.preprocessing)


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
    trust_base: bool = False,
    info: AdapterInfo | None = None,
) -> LoadedModel:
    """The base model that the adapter in folder ``adapter`` names, or that is named here, and the adapter in it.

    Args:
        adapter: folder; None for the base model alone.
        model, pretrained, trust_base: as in ``load_base``.
        device: a resolved one.
        precision: bf16, fp16, fp32, or auto: the adapter's, without one what suits the device.
        fused, backend: as in ``choose_backend``.
        with_adapter: False leaves the adapter out, and takes only the base model that it was trained on.
        info: what the adapter's file says; default: it is read.

    Raises:
        InputError: everything that ``load_base``, ``tuners.injection.load`` and ``choose_backend`` raise; a precision
            that the device does not have.
    """
    if info is None and adapter is not None:
        info = read_info(Path(adapter))
    what = f"the adapter in {adapter}"
    precision = stored_precision(info, what, precision, device)
    backbone = load_base(info, what, model, pretrained, device, trust_base=trust_base)
    adapted = None
    if adapter is not None and with_adapter:
        adapted = load(backbone.clip, adapter, source=backbone.source, tokenizer=backbone.tokenizer)
    elif info is not None:
        check_facts(info, what, backbone.clip, tokenizer=backbone.tokenizer)
    # After loading, which compares the weights with those that the adapter was trained on.
    backbone = store_backbone(backbone, DTYPES[precision])
    chosen, sentence = (None, None) if adapted is None else choose_backend(adapted, fused, backend)
    return LoadedModel(backbone, adapted, info, chosen, sentence, precision, device)


class StoredChoice(Protocol):
    """Options that name a stored model, as the commands that classify have them."""

    adapter: PathText | None
    model: ModelText | None
    pretrained: PathText | None
    trust_base: bool
    precision: str
    device: str
    fused: bool
    backend: str | None


def load_chosen(config: StoredChoice, device: torch.device, info: AdapterInfo | None) -> LoadedModel:
    """``load_stored`` of what ``config`` names; ``info`` is what the adapter's file says, where there is one.

    Raises:
        InputError: as ``load_stored``.
    """
    return load_stored(
        config.adapter,
        config.model,
        config.pretrained,
        device=device,
        precision=config.precision,
        fused=config.fused,
        backend=config.backend,
        trust_base=config.trust_base,
        info=info,
    )


def stored_precision(info: StoredFacts | None, what: str, precision: str, device: torch.device) -> str:
    """``precision`` made definite for ``device``: "auto" is what a stored method was trained in.

    Raises:
        InputError: the device does not have it; of one that was trained in it the message says so.
    """
    if precision != "auto" or info is None or info.precision is None:
        return resolve_precision(precision, device)
    try:
        return resolve_precision(info.precision, device)
    except InputError as error:
        raise InputError(f"{what} was trained in {info.precision}, which --precision auto takes: {error}") from error
