"""What ``rmadapter serve`` answers with: whatever kind of adapter a folder holds, or a base model alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rmadapter.clip.backbone import Backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data.catalog import PHOTO
from rmadapter.evaluation.calibration import Calibration
from rmadapter.evaluation.loaded_model import StoredChoice, load_base, load_chosen, zeroshot_classifier
from rmadapter.evaluation.stored import holds_probe
from rmadapter.evaluation.stored_probe import PRECISION
from rmadapter.runtime import resolve_device
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.probe import load_probe, read_probe
from rmadapter.tuners.stored_facts import StoredFacts

# Two names, for a model that has none of its own; every request brings others.
ANY_NAMES = ("cat", "dog")
NO_ADAPTER = "zero-shot CLIP has no adapter, and so no reconstruction branch"
UNTRAINED = "its reconstruction branch in the image tower was not trained (loss.lambda1 was 0)"
PROBE_ALONE = "a linear probe stands behind the frozen image tower, and has no reconstruction branch"
# Lists of class names whose features are kept, those used last: of the tuned model each at each strength.
MOST_KEPT = 64


class KeptTokens:
    """``tokenizer``, which keeps the tokens of the texts that it was asked for last.

    A model is told its classes whenever a request has others than the one before. Of 1,000 names tokens take 0.08 s,
    and they are made twice; their features are kept already.
    """

    def __init__(self, tokenizer: Callable[..., Tensor]):
        self.context_length = getattr(tokenizer, "context_length", None)
        # Of each list twice, the second time with room for one token more (clip.prompts.make_prompts).
        self._made = functools.lru_cache(2 * MOST_KEPT)(
            lambda texts, context_length: tokenizer(list(texts), context_length=context_length)
        )

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokens [texts, context_length], which are not to be written into."""
        return self._made(tuple(texts), context_length)


@dataclass(frozen=True)
class ServedModel:
    """A classifier, the frozen model beside it, and what is known of them.

    Attributes:
        model: what answers, in eval mode.
        zeroshot: the frozen model's classifier; None where ``model`` is that.
        backbone: their base model.
        precision: what they compute in.
        class_names: those that it was trained on; empty without.
        template: the prompt where a request has none.
        weights_sha256: of the adapter's weights; None without one.
        method: what was trained, as its file says; None without one.
        calibration: what is stored beside the adapter, or None.
        backend: in a sentence, of the operator; None where it is not used.
        untrained_reconstruction: whether the image tower's reconstruction had no weight in training.
    """

    model: CLIPClassifier
    zeroshot: CLIPClassifier | None
    backbone: Backbone
    precision: str
    class_names: tuple[str, ...]
    template: str
    weights_sha256: str | None = None
    method: str | None = None
    calibration: Calibration | None = None
    backend: str | None = None
    untrained_reconstruction: bool = False

    @property
    def reconstruction_obstacle(self) -> str | None:
        """Why there are no reconstruction errors, in words; None where there are."""
        if not isinstance(self.model, AdaptedClassifier):
            return NO_ADAPTER if self.zeroshot is None else PROBE_ALONE
        return self.model.reconstruction_obstacle or (UNTRAINED if self.untrained_reconstruction else None)

    @property
    def layers(self) -> list[int]:
        """The image tower's blocks with reconstruction errors, counted from 1."""
        if self.reconstruction_obstacle is not None or not isinstance(self.model, AdaptedClassifier):
            return []
        return [layer for _, layer, _ in self.model.adapted.adapters("vision")]


def load_served(config: StoredChoice, class_names: Sequence[str] | None, template: str | None) -> ServedModel:
    """The model that ``config`` names.

    Args:
        config: where it is and how it is computed.
        class_names, template: in the place of those that it was trained with.

    Raises:
        InputError: everything that loading raises; names that what is stored does not know.
    """
    device = resolve_device(config.device)
    if config.adapter is not None and holds_probe(config.adapter):
        return _load_probe(config, class_names, template)
    info = read_info(Path(config.adapter)) if config.adapter is not None else None
    names = tuple(class_names or (info.class_names if info else None) or ())
    prompt = template or (info.template if info else None) or PHOTO
    loaded = load_chosen(config, device, info)
    kept = replace(loaded.backbone, tokenizer=KeptTokens(loaded.backbone.tokenizer))
    loaded = replace(loaded, backbone=kept)
    first = names or (loaded.adapted.classes if loaded.adapted is not None else None) or ANY_NAMES
    model = loaded.classifier(first, prompt)
    return ServedModel(
        model.eval(),
        None if loaded.adapted is None else loaded.zeroshot(first, prompt).eval(),
        loaded.backbone,
        loaded.precision,
        names,
        prompt,
        None if info is None else info.weights_sha256,
        _method(info),
        None if config.adapter is None else Calibration.load(Path(config.adapter)),
        loaded.sentence,
        _settings(info).get("loss", {}).get("lambda1") == 0,
    )


def _load_probe(config: StoredChoice, class_names: Sequence[str] | None, template: str | None) -> ServedModel:
    assert config.adapter is not None  # a probe was found there
    folder = Path(config.adapter)
    info = read_probe(folder)
    what = f"the linear probe in {folder}"
    device = resolve_device(config.device)
    backbone = load_base(info, what, config.model, config.pretrained, device, trust_base=config.trust_base)
    names, prompt = tuple(class_names or info.class_names), template or info.template
    probe = load_probe(folder, info, backbone)
    probe.set_classes(names, prompt)
    zeroshot = zeroshot_classifier(backbone, PRECISION, names, prompt)
    return ServedModel(
        probe.eval(),
        zeroshot.eval(),
        backbone,
        PRECISION,
        names,
        prompt,
        info.weights_sha256,
        _method(info),
        Calibration.load(folder),
    )


def _method(info: StoredFacts | None) -> str | None:
    return None if info is None else (info.training or {}).get("method")


def _settings(info: StoredFacts | None) -> dict[str, Any]:
    return ((info.training if info is not None else None) or {}).get("settings") or {}
