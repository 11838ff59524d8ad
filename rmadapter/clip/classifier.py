"""A classifier from class names and a CLIP model: images in, logits out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.finite import check_finite, is_finite
from rmadapter.clip.handed import check_names_given, check_tokenizer_given
from rmadapter.clip.prompts import Prompts, encode_prompts, make_prompts
from rmadapter.clip.storage import image_dtype
from rmadapter.clip.types import ClipModel
from rmadapter.config import PromptConfig
from rmadapter.errors import InputError


class Output(NamedTuple):
    """``logits`` [batch, classes] in fp32; ``losses``: scalars by name with their sum as ``total``, or empty."""

    logits: Tensor
    losses: dict[str, Tensor]


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Inside, products are computed in the dtype of their factors; torch knows no autocast on the meta device."""
    # Where there is none, exported graphs are to hold nothing of it.
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


class CLIPClassifier(nn.Module):
    """A classifier over class names from a CLIP model as it is: zero-shot CLIP.

    Args:
        model: an open_clip CLIP model.
        tokenizer: open_clip's tokenizer for it.
        class_names: names in the order of the labels; equal names are kept apart by their index.
        template: prompt with ``{}`` for the name.
        trim: cut prompts after the longest one's end where that changes no feature.
    """

    prompt_tokens: Tensor
    prompt_valid: Tensor
    prompt_slots: Tensor | None

    def __init__(
        self,
        model: ClipModel,
        tokenizer: Callable[..., Tensor],
        class_names: Sequence[str],
        template: str = "a photo of a {}.",
        *,
        trim: bool = True,
    ):
        super().__init__()
        check_tokenizer_given(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.trim = trim
        self.set_classes(class_names, template)

    @property
    def clip(self) -> ClipModel:
        """The open_clip model inside."""
        return self.model

    @property
    def inference(self) -> str | None:
        """Which of its ways to answer it takes among the classes at hand, in words; None where it has but one."""
        return None

    @torch.inference_mode(False)  # what is made inside of it could not be trained with later
    def set_classes(self, class_names: Sequence[str], template: str) -> None:
        """Classify among these names from now on; the weights, and what is trained, stay.

        Raises:
            InputError: no names, one that the model has nothing of where it has something of each class, a prompt that
                is too long or has no room for learned words; the model is as it was.
        """
        self._take_classes(class_names, template)

    def _take_classes(self, class_names: Sequence[str], template: str) -> None:
        """``set_classes`` of this kind of model; whatever may be refused is made before anything is changed."""
        prompts = self.prompts_of(template, class_names)
        self.class_names, self.template, self.prompts = list(class_names), template, prompts

    @contextlib.contextmanager
    def answering_elsewhere(self) -> Iterator[None]:
        """Inside, the images are of another data set, or another style of one, than those that it was trained on."""
        yield

    def knows(self, class_names: Sequence[str]) -> bool:
        """Whether it can classify among these names; one that has something of each class knows its own alone."""
        return True

    @property
    def takes_texts(self) -> bool:
        """Whether other texts can stand for its classes; not where it has learned what does."""
        return True

    def untouched(self) -> AbstractContextManager[None]:
        """Inside, the model is the frozen one, without anything that was trained in it."""
        return contextlib.nullcontext()

    @property
    def strength_obstacle(self) -> str | None:
        """Why no other strength than 1 can be set, in words; None where any can."""
        return "zero-shot CLIP and linear probes have no number that scales what was trained"

    def set_strength(self, strength: float) -> None:
        """Scale what was trained, 0 for nothing and 1 as trained; here there is nothing with such a number.

        Raises:
            InputError: another strength than 1.
        """
        if strength != 1:
            raise InputError(f"strength is {strength!r}, but {self.strength_obstacle}; valid: 1, or an adapter")

    def prompts_of(
        self, template: str, class_names: Sequence[str] | None = None, learned: PromptConfig | None = None
    ) -> Prompts:
        """Prompts by ``template`` of these classes or its own, with ``learned`` tokens, on the model's device."""
        names = self.class_names if class_names is None else class_names
        check_names_given(names)
        prompts = make_prompts(self.clip, self.tokenizer, names, template, trim=self.trim, learned=learned)
        return prompts.to(self.clip.logit_scale.device)

    def written(self, texts: Sequence[str]) -> Prompts:
        """Prompts that are ``texts`` as they stand, one a class, on the model's device."""
        prompts = make_prompts(self.clip, self.tokenizer, texts, "{}", trim=self.trim)
        return prompts.to(self.clip.logit_scale.device)

    @property
    def prompts(self) -> Prompts:
        """The classes' prompts, on the model's device: buffers, which go where it goes and are not saved."""
        return Prompts(self.prompt_tokens, self.prompt_valid, self.prompt_slots)

    @prompts.setter
    def prompts(self, prompts: Prompts) -> None:
        self.register_buffer("prompt_tokens", prompts.tokens, persistent=False)
        self.register_buffer("prompt_valid", prompts.valid, persistent=False)
        self.register_buffer("prompt_slots", prompts.slots, persistent=False)

    def text_features(self) -> Tensor:
        """Features [classes, embed] of the prompts, not normalised."""
        return encode_prompts(self.clip, self.prompts.tokens)

    def image_features(self, images: Tensor) -> Tensor:
        """Features [batch, embed] of ``images`` [batch, 3, size, size], not normalised."""
        # Weights stored in 16 bits (storage.store_backbone) take images in 16 bits.
        return self.clip.encode_image(images.to(image_dtype(self.clip) or images.dtype), normalize=False)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosine similarities [batch, classes] in fp32 of features [batch, embed] and [classes, embed].

        Text features of each image, [batch, classes, embed], are compared with that image's alone.
        """
        scale = self.clip.logit_scale.exp().float()
        images, texts = (F.normalize(features.float(), dim=-1) for features in (image_features, text_features))
        with _without_autocast(images.device.type):  # in 16 bits a logit of 30 is off by up to an eighth
            if texts.dim() == 3:
                logits = scale * torch.einsum("be,bce->bc", images, texts)
            else:
                logits = scale * images @ texts.T
        return logits if self.clip.logit_bias is None else logits + self.clip.logit_bias.float()

    def classify(self, images: Tensor, text_features: Tensor) -> Tensor:
        """Logits [batch, classes] of ``images`` [batch, 3, size, size] that an answer may be made of.

        Raises:
            InputError: features or logits that are not finite; the message says which.
        """
        return self.classify_features(self.image_features(images), text_features)

    def classify_features(self, features: Tensor, text_features: Tensor) -> Tensor:
        """As ``classify``, of images' ``features`` [batch, embed]; all evaluation and prediction comes through here."""
        logits = self.logits(features, text_features)
        if not is_finite(logits):
            check_finite("text features", text_features)
            check_finite("image features", features)
            check_finite("logits", logits)
        return logits

    def forward(self, images: Tensor) -> Output:
        """Logits of ``images`` [batch, 3, size, size], and no losses."""
        return Output(self.logits(self.image_features(images), self.text_features()), {})
