"""The shortcuts of the training step as options: the group ``step`` of ``TrainConfig``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass
class StepConfig:
    """The shortcuts of the training step, each exact to fp32 rounding; --no-shortcuts leaves all of them out.

    Args:
        trim: cut prompts to their end-of-text where the text tower is causal and pooled there
        shared_start: compute what all prompts begin with once for all classes
        text_prefix: compute the prompts' activations below the first text adapter once
        frozen_targets: compute the frozen text features once
        image_prefix: share the activations below the first image adapter between adapted and frozen pass
        class_chunks: prompts in chunks of like length, recomputed in backward where --text-memory is exceeded
        last_token: the last block of a tower that is pooled at one token is computed for that one alone
        packed_weights: on a CPU, keep frozen matrices in the layout that oneDNN multiplies in, beside the model's own
    """

    trim: bool = True
    shared_start: bool = True
    text_prefix: bool = True
    frozen_targets: bool = True
    image_prefix: bool = True
    class_chunks: bool = True
    last_token: bool = True
    packed_weights: bool = True

    @classmethod
    def none(cls) -> StepConfig:
        """Without any."""
        return cls(**{f.name: False for f in dataclasses.fields(cls)})

    @property
    def any(self) -> bool:
        """Whether any is taken."""
        return any(dataclasses.asdict(self).values())
