"""Both towers of one model, as evaluation runs them."""

from __future__ import annotations

from typing import NamedTuple

from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.image_encoder import ImageEncoder
from rmadapter.tuners.text_encoder import TextEncoder


class Encoders(NamedTuple):
    """Both towers of one model."""

    image: ImageEncoder
    text: TextEncoder

    @classmethod
    def of(cls, model: AdaptedCLIP, **settings) -> Encoders:
        """Encoders of ``model``; settings as in ``Encoder``."""
        return cls(ImageEncoder(model, **settings), TextEncoder(model, **settings))
