"""Zero-shot CLIP as a classifier whose image tower runs block by block, as an adapted one's does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.types import ClipModel
from rmadapter.config import RMAdapterConfig, TunerConfig
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.image_encoder import ImageEncoder


class FrozenClassifier(CLIPClassifier):
    """A ``CLIPClassifier`` with the encoder that adapted models have in evaluation.

    On two cores with AVX512_BF16 ViT-B/16 encodes 1.3 to 1.5 times as many images in bf16 as in open_clip's own pass.

    Args:
        model: without anything trained in it.
        tokenizer, class_names, template: as in ``CLIPClassifier``.
        stream: dtype of the residual stream; None: that of the weights.
    """

    def __init__(
        self,
        model: ClipModel,
        tokenizer: Callable[..., Tensor],
        class_names: Sequence[str],
        template: str,
        *,
        stream: torch.dtype | None = None,
    ):
        super().__init__(model, tokenizer, class_names, template)
        nothing = AdaptedCLIP(model, TunerConfig(adapter=RMAdapterConfig(layers="none")), [], None)
        self.encoder = ImageEncoder(nothing, stream=stream, inference=True)

    def image_features(self, images: Tensor) -> Tensor:
        """Features [batch, embed] of ``images`` [batch, 3, size, size], not normalised."""
        if self.training or not self.encoder.fits:
            return super().image_features(images)
        return self.encoder.features(images)
