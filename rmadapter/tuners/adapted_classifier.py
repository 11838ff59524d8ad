"""A classifier from class names and a CLIP model with adapters in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.types import ClipModel
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.encoders import Encoders


class AdaptedClassifier(CLIPClassifier):
    """A ``CLIPClassifier`` whose model is an ``AdaptedCLIP``.

    Args:
        model: the model with its adapters.
        tokenizer, class_names, template, trim: as in ``CLIPClassifier``.
        encoders: where given they run the model in eval mode in place of open_clip's own forward passes and hooks:
            the last block at the pooled token alone, the residual stream in a dtype of its own. They may be set later;
            while the model is on another device than they were made for, it runs without them.
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
    ):
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

    def text_features(self) -> Tensor:
        """Features [classes, embed] of the prompts, not normalised."""
        encoders = self._running_encoders
        return super().text_features() if encoders is None else encoders.text.features(self.prompts.tokens)

    def image_features(self, images: Tensor) -> Tensor:
        """Features [batch, embed] of ``images`` [batch, 3, size, size], not normalised."""
        encoders = self._running_encoders
        return super().image_features(images) if encoders is None else encoders.image.features(images)

    @property
    def _running_encoders(self) -> Encoders | None:
        found = self.encoders
        return found if found is not None and not self.training and self.adapted.enabled and found.image.fits else None
