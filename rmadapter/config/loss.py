"""The weights of the loss terms as options: the group ``loss`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.config.paths import PathText
from rmadapter.config.template import PUBLISHED, check_template
from rmadapter.errors import InputError, check_choice, check_range

CLASSIFICATIONS = ("softmax", "sigmoid")
DISTANCES = ("l1", "cosine")
SENTENCES = "sentences"
TARGETS = ("prompt", PUBLISHED, "templates", SENTENCES)


@dataclass
class LossConfig:
    """Weights of the loss terms beside cross-entropy; 0 leaves a term out and what only it needs uncomputed.

    The paper does not publish them. Reconstruction: 10, where a first trial saw an effect and 1 had none.
    Consistency: 10 and 25, the weights PromptSRC uses for the same mean absolute difference.

    Args:
        lambda1: reconstruction in the image tower
        lambda2: reconstruction in the text tower
        lambda3: distance of tuned to frozen image features
        lambda4: distance of tuned to frozen text features
        distance: what both distances are: l1 (mean absolute difference) or cosine (one minus it)
        distillation: divergence of the tuned model's class probabilities from the frozen model's (PromptSRC)
        target: prompts of the frozen text features: prompt (the run's own), published (the data set's), templates
            (the mean over 60 of CLIP's) or sentences (one of each class's, drawn at every step; without a file of them
            as published)
        published: prompt with {} for the class name in the place of the data set's published one, for target published
        sentences: JSON file with those, {"class name": ["a sentence", ...], ...}, as many for each class
        second_view: the frozen image features are those of a second augmented view of each image
        projected: keep the part of cross-entropy's gradient that does not raise the divergence from the frozen model's
            class probabilities (ProGrad)
        classification: softmax (cross-entropy over the classes) or sigmoid (a decision a class, as SigLIP is trained;
            for models with a logit bias)
    """

    lambda1: float = 10.0
    lambda2: float = 10.0
    lambda3: float = 10.0
    lambda4: float = 25.0
    distance: str = "l1"
    distillation: float = 0.0
    target: str = "prompt"
    published: str | None = None
    sentences: PathText | None = None
    second_view: bool = False
    projected: float = 0.0
    classification: str = "softmax"

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2", "lambda3", "lambda4", "distillation"):
            check_range(f"loss.{name}", getattr(self, name), 0)
        check_choice("loss.classification", self.classification, CLASSIFICATIONS)
        check_choice("loss.distance", self.distance, DISTANCES)
        check_choice("loss.target", self.target, TARGETS)
        if self.published is not None:
            check_template(self.published, "loss.published")
            if self.target != PUBLISHED:
                raise InputError(
                    f"loss.published is {self.published!r}, but loss.target is {self.target!r}; valid: loss.target "
                    f"{PUBLISHED}, or no prompt"
                )
        if self.sentences is not None and self.target != SENTENCES:
            raise InputError(
                f"loss.sentences is {self.sentences!r}, but loss.target is {self.target!r}; valid: loss.target "
                f"{SENTENCES}, or no file"
            )
        check_range("loss.projected", self.projected, 0, 1)

    @property
    def needs_image(self) -> bool:
        """Whether a term needs the frozen image features."""
        return self.lambda3 > 0 or self.needs_probabilities

    @property
    def reads_two_views(self) -> bool:
        """Whether a step reads two augmented views of each image."""
        return self.second_view and self.needs_image

    @property
    def needs_text(self) -> bool:
        """Whether a term needs the frozen text features."""
        return self.lambda4 > 0 or self.needs_probabilities

    @property
    def needs_probabilities(self) -> bool:
        """Whether a term needs the frozen model's class probabilities."""
        return self.distillation > 0 or self.projected > 0
