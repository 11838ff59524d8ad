"""A classifier from class names and a CLIP model with something trained in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.handed import check_tokenizer_given
from rmadapter.clip.prompts import encode_prompts
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.bound_classes import rows_of
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.image_encoder import BothFeatures
from rmadapter.tuners.tuner import Answer, Features, mixed

Self = TypeVar("Self", bound="AdaptedClassifier")


class AdaptedClassifier(CLIPClassifier):
    """A ``CLIPClassifier`` whose model is an ``AdaptedCLIP``.

    Args:
        model: the model with what is trained in it.
        tokenizer, class_names, template, trim: as in ``CLIPClassifier``.
        encoders: where given they run the model in eval mode in place of open_clip's own forward passes and hooks:
            the last block at the pooled token alone, the residual stream in a dtype of its own. They may be set later;
            while the model is on another device than they were made for, it runs without them.
        elsewhere: whether the images are of another data set than those of the training, so that no class counts as one
            that it was trained on.

    Raises:
        InputError: a class that a tuner is bound away from.
    """

    model: AdaptedCLIP

    def __init__(
        self,
        model: AdaptedCLIP,
        tokenizer: Callable[..., Tensor],
        class_names: Sequence[str],
        template: str = "a photo of a {}.",
        *,
        trim: bool = True,
        encoders: Encoders | None = None,
        elsewhere: bool = False,
    ):
        self.elsewhere = elsewhere
        check_tokenizer_given(tokenizer)
        model.use_tokenizer(tokenizer)
        super().__init__(model, tokenizer, class_names, template, trim=trim)
        self.encoders = encoders

    @property
    def clip(self) -> ClipModel:
        """The open_clip model inside."""
        return self.model.clip

    @property
    def adapted(self) -> AdaptedCLIP:
        """The model with its adapters' switches."""
        return self.model

    @property
    def per_image(self) -> bool:
        """Whether the classes' features depend on the image."""
        return self.adapted.sites("text").per_image and self.adapted.installed.running

    def knows(self, class_names: Sequence[str]) -> bool:
        """Whether no tuner is bound away from these names."""
        return self.adapted.classes is None or set(class_names) <= set(self.adapted.classes)

    @property
    def takes_texts(self) -> bool:
        """Whether other texts can stand for its classes; not with learned words, or something of each class."""
        return not self.adapted.tuned.prompt.text_tokens and self.adapted.classes is None

    def train(self: Self, mode: bool = True) -> Self:
        """Raises as ``AdaptedCLIP.train``, and is then in the mode that it was in, as the model is."""
        self.adapted.train(mode)
        return super().train(mode)

    def untouched(self) -> AbstractContextManager[None]:
        """Inside, all that is trained is switched off."""
        return self.adapted.adapters_disabled()

    @property
    def strength_obstacle(self) -> str | None:
        """See ``AdaptedCLIP.strength_obstacle``."""
        return self.adapted.strength_obstacle

    def set_strength(self, strength: float) -> None:
        """Scale what was trained; see ``AdaptedCLIP.set_strength``."""
        self.adapted.set_strength(strength)

    def _take_classes(self, class_names: Sequence[str], template: str) -> None:
        bound, learned = self.adapted.classes, self.adapted.tuned.prompt
        prompts = self.prompts_of(template, class_names, learned) if learned.text_tokens else None
        what = "the adapter, which has something of each class,"
        rows = None if bound is None else rows_of(list(class_names), bound, what)
        super()._take_classes(class_names, template)
        if rows is not None:
            for tuner in self.adapted.tuners:
                tuner.set_rows(rows)
        self._set_familiar()
        if prompts is not None:
            self.prompts = prompts
            self.adapted.installed.places = prompts.slots

    def _set_familiar(self) -> None:
        known = self.adapted.class_names
        for tuner in self.adapted.tuners:
            tuner.set_familiar(not self.elsewhere and known is not None and set(self.class_names) <= set(known))

    @contextlib.contextmanager
    def answering_elsewhere(self) -> Iterator[None]:
        """Inside, no class counts as one that was trained on."""
        before, self.elsewhere = self.elsewhere, True
        self._set_familiar()
        try:
            yield
        finally:
            self.elsewhere = before
            self._set_familiar()

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Features [classes, embed] of the prompts, not normalised.

        Where they depend on the image they are [n, classes, embed] of its frozen ``image_features`` [n, embed], and
        empty without: ``logits`` then asks for them.
        """
        encoders = self._running_encoders
        if not self.per_image:
            if encoders is None:
                return super().text_features()
            return encoders.text.features(self.prompts, self.adapted.values(None).get("text"))
        if image_features is None:
            return self.prompts.tokens.new_empty(0, dtype=torch.float32)
        if encoders is not None:
            values = self.adapted.values(image_features)["text"]
            found = encoders.text.features(self.prompts, values, len(image_features))
            return found.unflatten(0, (len(image_features), -1))
        each = []
        for features in image_features.split(1):
            with self.adapted.installed.of_image(features):
                each.append(encode_prompts(self.clip, self.prompts.tokens))
        return torch.stack(each)

    @property
    def inference(self) -> str | None:
        """See ``Tuner.inference``."""
        return next((tuner.inference for tuner in self.adapted.tuners if tuner.inference is not None), None)

    def image_features(self, images: Tensor) -> Tensor:
        """Features [batch, embed] of ``images`` [batch, 3, size, size], not normalised; see ``Features.image``."""
        encoders = self._running_encoders
        if encoders is None:
            return self.adapted.installed.with_read(self.clip, super().image_features(images))
        return encoders.image.features(images, self.adapted.values(None).get("vision"))

    @property
    def reconstruction_obstacle(self) -> str | None:
        """Why ``both_features`` has no reconstruction errors, in words; None where it has them."""
        if next(self.adapted.adapters("vision"), None) is None:
            return "what was trained has no adapter in the image tower, and so no reconstruction branch there"
        if not self.adapted.config.reconstruct:
            return "its adapters have one branch: they adapt, and reconstruct nothing"
        tower = find_towers(self.clip)["vision"]
        if tower.kind.grid(tower.root) is None:
            return f"tokens of a {tower.kind.name} are no patches of the image"
        if self.encoders is None:
            return "its towers run through open_clip's own forward passes, which keep no errors (--no-shortcuts)"
        return None

    def both_features(self, images: Tensor, *, errors: bool) -> BothFeatures:
        """Features of ``images`` [batch, 3, size, size] by what was trained and by the frozen model.

        With ``errors`` each adapter's reconstruction loss of each patch too, in the stream that training reconstructs;
        none where there is a ``reconstruction_obstacle``.
        """
        encoders = self._running_encoders
        if encoders is None:
            with self.untouched():
                frozen = CLIPClassifier.image_features(self, images)
            return BothFeatures(self.image_features(images), frozen, ())
        wanted = errors and self.reconstruction_obstacle is None
        values = self.adapted.values(None).get("vision")
        return encoders.image.both(images, values, self.adapted.config.rec_stream if wanted else None)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits [batch, classes] in fp32 of the towers' features, with what is trained after the towers."""
        if self.per_image and not text_features.numel():
            text_features = self.text_features(image_features)
        return mixed(self.answers(self.headed(image_features, text_features)))

    def headed(self, image_features: Tensor, text_features: Tensor) -> Features:
        """The towers' features as the trained heads change them."""
        features = Features(image_features, text_features)
        if self.adapted.installed.running:
            for tuner in self.adapted.tuners:
                features = tuner.head(features)
        return features

    def answers(self, features: Features) -> list[Answer]:
        """Logits of what ``headed`` gives, for each of the images' features and its share."""
        rest = 1 - sum(share for share, _ in features.others)
        found = []
        for share, image in ((rest, features.image), *features.others):
            logits = super().logits(image, features.text)
            if self.adapted.installed.running:
                for tuner in self.adapted.tuners:
                    logits = tuner.add_to_logits(logits, image)
            found.append(Answer(share, logits))
        return found

    @property
    def _running_encoders(self) -> Encoders | None:
        found = self.encoders
        return found if found is not None and not self.training and self.adapted.enabled and found.image.fits else None
