"""The plain training step: logits and losses as the formulas have them, through open_clip's own forward passes.

``RMAdapterCLIP`` is what users train with from Python, and what the fast step (``train_step``) is tested against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.clip.classifier import CLIPClassifier, Output
from rmadapter.clip.prompts import PromptBuffers, Prompts, encode_prompts
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.config import LossConfig, RMAdapterConfig, TunerConfig
from rmadapter.data.sentences import sentence_sets
from rmadapter.errors import InputError
from rmadapter.objectives import losses
from rmadapter.step.image_views import split_views
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.injection import inject
from rmadapter.tuners.tuner import Features, Tuner, mixed


class RMAdapterCLIP(AdaptedClassifier):
    """A classifier with adapters and the losses that train them.

    Args:
        model: an open_clip CLIP model, which gets adapters in place, or an ``AdaptedCLIP``.
        config: adapters, where ``model`` has none yet.
        loss: weights of the loss terms; a term with weight 0 is not computed.
        tokenizer: turns prompts into tokens, as in ``CLIPClassifier``.
        class_names: the classes, as in ``CLIPClassifier``.
        template: the prompt, with ``{}`` where a class name goes.
        trim: leave out what stands behind the longest prompt's end, where that changes no feature.
        keep_targets: compute the frozen text features once for a set of classes, not at every call; those of other
            prompts than are classified by are in any case, as in the methods' own code.
        target_templates: prompts whose frozen features, their mean, the losses compare the text features with; default:
            the template.
        sentences: class name -> sentences, as many for each class: at every step the losses compare the text features
            with the frozen ones of one of them, in the place of ``target_templates``.

    Raises:
        InputError: what ``AdaptedClassifier`` and ``sentence_sets`` raise, a sentence longer than the context, a second
            view for classes that depend on the image, a ``config`` that is not the model's. A ``model`` that came
            without adapters is without them then.
    """

    counted_vision: Tensor | None
    _counted_text: Tensor | None
    _frozen_text: Tensor | None

    def __init__(
        self,
        model: ClipModel,
        tokenizer: Callable[..., Tensor],
        class_names: Sequence[str],
        template: str = "a photo of a {}.",
        config: RMAdapterConfig | TunerConfig | None = None,
        *,
        loss: LossConfig | None = None,
        trim: bool = True,
        keep_targets: bool = True,
        target_templates: Sequence[str] = (),
        sentences: Mapping[str, Sequence[str]] | None = None,
    ):
        settings: dict[str, Any] = {"tokenizer": tokenizer, "template": template, "class_names": class_names}
        with contextlib.ExitStack() as undone:
            if isinstance(model, AdaptedCLIP):
                adapted = model
                if config not in (None, adapted.config, adapted.tuned):
                    raise InputError("config is given, but the model has its adapters already; valid: None, or theirs")
            else:
                adapted = inject(model, config, **settings)
                undone.callback(adapted.remove)  # nobody else could take them out
            self.target_templates = list(target_templates)
            self.sentences = [] if sentences is None else sentence_sets(sentences, class_names)
            self._of_sentences = list(class_names)
            # Where padding counts it has to be there.
            super().__init__(
                adapted, tokenizer, class_names, template, trim=trim and adapted.config.rec_tokens != "all"
            )
            self.keep_targets = keep_targets
            self.loss = loss or LossConfig()
            self._check_loss()
            self.width = {name: tower.width for name, tower in find_towers(self.clip).items()}
            adapted.set_reconstruction("vision", self.loss.lambda1 > 0)
            adapted.set_reconstruction("text", self.loss.lambda2 > 0)
            undone.pop_all()

    def _check_loss(self) -> None:
        """Raise InputError for a loss that is not defined for this model."""
        if self.loss.reads_two_views and self.per_image:
            raise InputError(
                "loss.second_view is True, but prompt.per_image reads the frozen features of the first view; valid: "
                "False"
            )
        if self.per_image:
            self._refuse_terms_of_each_image()
        if self.loss.classification == "sigmoid" and getattr(self.clip, "logit_bias", None) is None:
            raise InputError(
                "loss.classification is 'sigmoid', but this model has no logit bias, which every class needs; valid: "
                "softmax, or a model such as ViT-B-16-SigLIP"
            )

    def _refuse_terms_of_each_image(self) -> None:
        """Raise InputError for a text term where every image has text features of its own."""
        reconstructs = self.config.reconstruct and self.adapted.has_adapters("text")
        given = {"loss.lambda4": self.loss.lambda4, "loss.lambda2": self.loss.lambda2 if reconstructs else 0}
        for field, weight in given.items():
            if weight:
                raise InputError(
                    f"{field} is {weight:g}, but prompt.per_image makes text features for each image, which no term of "
                    "the text tower is defined for; valid: 0"
                )

    @property
    def config(self) -> RMAdapterConfig:
        """The adapters' configuration."""
        return self.adapted.config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RMAdapterCLIP:
        """Where the model goes, or in another dtype, the kept features are computed anew."""
        moved = super()._apply(fn, recurse)
        self._forget_features()
        return moved

    def _take_classes(self, class_names: Sequence[str], template: str) -> None:
        targets = self._target_prompts(list(class_names), template)
        super()._take_classes(class_names, template)
        if self.config.rec_tokens == "all":
            self.prompts = replace(self.prompts, valid=torch.ones_like(self.prompts.valid))
        # Buffers go where the model goes, and are not saved.
        self.register_buffer("counted_vision", self._counted("vision"), persistent=False)
        self.register_buffer("_counted_text", self._counted("text"), persistent=False)
        self._forget_features()
        self.target_prompts = nn.ModuleList(map(PromptBuffers, targets))

    def _target_prompts(self, class_names: list[str], template: str) -> list[Prompts]:
        """What the losses compare with: prompts of all classes, one set for each template or sentence."""
        if self.sentences and class_names == self._of_sentences:
            return [self.written(texts) for texts in self.sentences]
        templates = self.target_templates or ([template] if self.adapted.tuned.prompt.text_tokens else [])
        return [self.prompts_of(one, class_names) for one in templates]

    @property
    def targets(self) -> list[Prompts]:
        """Prompts whose frozen features the losses compare with; none for those that are classified by."""
        return [kept.prompts for kept in self.target_prompts if isinstance(kept, PromptBuffers)]

    @property
    def draws(self) -> bool:
        """Whether a step compares with one of ``targets``, whose number it is given, and not with their mean."""
        return bool(self.sentences)

    def check_drawn(self, drawn: Tensor | None) -> None:
        """Raise InputError where a step needs to know which of the sentences it compares with, and cannot."""
        if not (self.draws and self.loss.needs_text):
            return
        if self.class_names != self._of_sentences:
            raise InputError("there are sentences for the first classes of the model alone; valid: those classes")
        if drawn is None:
            count = len(self.sentences)
            raise InputError(f"drawn is None, but there are {count} sentences a class; valid: a number below {count}")

    @property
    def counted(self) -> dict[str, Tensor | None]:
        """Which tokens of each tower the reconstruction counts, see ``_counted``."""
        return {"vision": self.counted_vision, "text": self._counted_text}

    @property
    def compares_towers(self) -> bool:
        """Whether features are compared with the frozen model's as the towers give them, and not behind a head."""
        return not any(type(tuner).head is not Tuner.head for tuner in self.adapted.tuners)

    @property
    def counted_text(self) -> Tensor:
        """Which tokens of the prompts the reconstruction counts: bool [classes, length]."""
        assert self._counted_text is not None  # prompts say which of their tokens are valid
        return self._counted_text

    def _counted(self, tower: str) -> Tensor | None:
        """Which tokens the reconstruction counts: bool [classes, length] or [1, tokens], or None for all."""
        valid = self.prompts.valid if tower == "text" else None
        which = self.config.rec_tokens
        if which not in ("pooled", "patches"):
            return valid
        tokens = self.prompts.tokens
        found = find_towers(self.clip)[tower]
        size = found.kind.size(found.root)
        added = 0 if self.config.rec_stream == "frozen" else self.adapted.sites("vision").added
        length = size + added if valid is None else valid.shape[1]
        places = torch.arange(length, device=tokens.device)[None]
        grid = found.kind.grid(found.root)
        if valid is None and which == "patches" and grid is not None:
            # In front of them stand class and register tokens, behind them learned ones.
            return (places >= size - grid[0] * grid[1]) & (places < size)
        place = found.place(tokens if tower == "text" else None)
        if not isinstance(place, (Tensor, int)):
            raise InputError(
                f"adapter.rec_tokens is {which!r}, but the {tower} tower is not pooled at one token ({place}); valid: "
                "valid, all"
            )
        pooled = places == (place[:, None] if isinstance(place, Tensor) else place)
        if valid is None:
            return pooled if which == "pooled" else ~pooled
        # Rows of their own: a buffer is written to between processes.
        return pooled.expand(len(tokens), -1).contiguous() if which == "pooled" else valid & ~pooled

    def frozen_text_features(self, drawn: Tensor | None = None) -> Tensor:
        """Features [classes, embed] of the target prompts from the frozen model, computed once for a set of classes.

        Of sentences they are those of number ``drawn`` (int64, a scalar).
        """
        if not torch.compiler.is_compiling() and self._counted_writes() != self._writes:
            self._forget_features()
        features = self._frozen_text  # one of its own, since another thread may forget it meanwhile
        if features is None or not (self.keep_targets or self.targets):
            with torch.no_grad(), self.adapted.frozen_pass():
                if self.targets:
                    each = torch.stack([encode_prompts(self.clip, prompts.tokens) for prompts in self.targets])
                    features = each if self.draws else each.mean(0)
                else:
                    features = self.text_features()
            self._frozen_text = features
        return chosen(features, drawn) if self.draws else features

    def _forget_features(self) -> None:
        """Drop the kept features, and take the frozen weights for those that the next ones are of."""
        # No buffer: it comes and goes, and whoever averages weights pairs the buffers of two models.
        self._frozen_text = None
        # To a tensor made under inference mode no write is counted.
        self._frozen = [w for w in self.clip.parameters() if not (w.requires_grad or w.is_inference())]
        self._writes = self._counted_writes()

    def _counted_writes(self) -> tuple[int, int]:
        """Another value after the frozen model was written to or given other tensors, as by its ``load_state_dict``.

        In every step, so no walk over the modules: of ViT-B/16's 302 tensors that took 1.2 ms, this 0.07. What is
        written through ``.data``, and other tensors in one tower alone, it does not see.
        """
        return id(self.clip.logit_scale), sum(weight._version for weight in self._frozen)

    def forward(self, images: Tensor, labels: Tensor | None = None, drawn: Tensor | None = None) -> Output:
        """Classify ``images`` [batch, 3, size, size]; with ``labels`` [batch] (int64) also compute the losses.

        In training mode the losses hold every term whose weight is not 0; in eval mode cross-entropy alone. Where
        training reads two views ``images`` are [batch, 2, 3, size, size]; ``drawn``, an int64 scalar, says which of the
        sentences it compares with.
        """
        if labels is None:
            return super().forward(images)
        of_images: dict[str, Tensor] = {}
        of_text: dict[str, Tensor] = {}
        if self.training:
            self.check_drawn(drawn)
        image, frozen = self._image_side(images, of_images)
        text, frozen_text = self._text_side(of_text, frozen, drawn)
        features = self.headed(image, text)
        answers = self.answers(features)
        logits = mixed(answers)
        terms = {
            "cross_entropy": losses.cross_entropy(answers, labels, self.loss.classification),
            **of_images,
            **of_text,
        }
        if self.training:
            terms |= self.consistency_terms(features, frozen, frozen_text, logits)
        return Output(logits, losses.with_total(terms, self.loss))

    def consistency_terms(
        self, features: Features, frozen: Tensor | None, text: Tensor | None, logits: Tensor
    ) -> dict[str, Tensor]:
        """What compares ``features``, those after the heads, and ``logits`` with the frozen model."""
        loss, terms = self.loss, {}
        if loss.lambda3 and not self.compares_towers:
            assert frozen is not None  # the image side has made it
            terms["consistency_image"] = losses.consistency(features.image, frozen, loss.distance)
        if loss.lambda4 and not self.compares_towers:
            assert text is not None
            terms["consistency_text"] = losses.consistency(features.text, text, loss.distance)
        if loss.needs_probabilities:
            assert frozen is not None
            assert text is not None
            terms["distillation"] = losses.distillation(logits, CLIPClassifier.logits(self, frozen, text))
        return terms

    def _image_side(self, images: Tensor, terms: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Tuned image features, and the frozen ones where a term needs them; adds the image tower's terms."""
        two_views = self.training and self.loss.reads_two_views
        images, others = split_views(images, two_views)
        with self.adapted.collect("vision") as per_token:
            features = self.image_features(images)
        needs_frozen = self.training and (self.loss.needs_image or self.per_image)
        frozen = None
        if self.rebuilds_frozen("vision"):
            frozen, per_token = self._record("vision", lambda: self.image_features(images))
        if needs_frozen and (frozen is None or two_views):
            with torch.no_grad(), self.adapted.frozen_pass():
                frozen = self.image_features(others)
        if per_token:
            terms["reconstruction_vision"] = losses.reconstruction(
                per_token, self.config.objective, self.width["vision"], self.counted["vision"]
            )
        if self.training and self.loss.lambda3 and self.compares_towers:
            assert frozen is not None  # it was needed
            terms["consistency_image"] = losses.consistency(features, frozen.detach(), self.loss.distance)
        return features, frozen if needs_frozen else None

    def _text_side(
        self, terms: dict[str, Tensor], frozen_images: Tensor | None, drawn: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tuned text features, and the frozen ones where a term needs them; adds the text tower's terms."""
        with self.adapted.collect("text") as per_token:
            features = self.text_features(frozen_images)
        if self.rebuilds_frozen("text"):
            frozen, per_token = self._record("text", self.text_features)
            self._frozen_text = None if self.targets else frozen
        if per_token:
            terms["reconstruction_text"] = losses.reconstruction(
                per_token, self.config.objective, self.width["text"], self.counted["text"]
            )
        target = self.frozen_text_features(drawn) if self.training and self.loss.needs_text else None
        if target is not None and self.loss.lambda4 and self.compares_towers:
            terms["consistency_text"] = losses.consistency(features, target, self.loss.distance)
        return features, target

    def rebuilds_frozen(self, tower: str) -> bool:
        """Whether in training the reconstruction of ``tower`` is that of a frozen pass."""
        weight = self.loss.lambda1 if tower == "vision" else self.loss.lambda2
        wanted = self.training and self.config.reconstruct and self.config.rec_stream == "frozen" and weight > 0
        return wanted and self.adapted.has_adapters(tower)

    def _record(self, tower: str, encode: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The frozen pass with the reconstruction of its own tokens: features, per-token losses.

        Gradients are on for the adapters' weights; the frozen model itself leaves no graph.
        """
        with self.adapted.collect(tower) as per_token, self.adapted.frozen_pass():
            features = encode()
        return features.detach(), per_token


def chosen(features: Tensor, drawn: Tensor | None) -> Tensor:
    """Number ``drawn`` (int64, a scalar) of ``features`` [sets, classes, embed]; the host does not wait for it."""
    assert drawn is not None  # ``check_drawn`` has looked
    return features.index_select(0, drawn.view(1))[0]
