"""The methods that ``bench.step`` times: each as its recipe has it, put into a model for some number of classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rmadapter.clip.backbone import Backbone
from rmadapter.config import LossConfig, TrainConfig
from rmadapter.data.catalog import template_for
from rmadapter.data.templates import target_templates
from rmadapter.errors import InputError
from rmadapter.methods import METHODS, get_method
from rmadapter.methods.method import TUNED
from rmadapter.methods.options import configure, own_words
from rmadapter.methods.rmadapter import RMADAPTER
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.injection import inject

DEFAULT = RMADAPTER.name
DATA = "any"  # of no data set that something is published for
WORDS = "red old small apple house river stone light green car"


def names(count: int) -> list[str]:
    """Class names of one to five words, so that prompts have 8 to 12 tokens, all lengths alike."""
    words = itertools.cycle(WORDS.split())
    return [" ".join(next(words) for _ in range(1 + index % 5)) for index in range(count)]


@dataclass(frozen=True)
class Subject:
    """A method, what a run of it is configured as, and images a step."""

    name: str
    config: TrainConfig
    batch: int

    @classmethod
    def of(cls, name: str, words: Sequence[str] = (), batch: int | None = None) -> Subject:
        """Method ``name`` with those of the options ``words`` that it has; ``batch`` in place of its recipe's.

        Raises:
            InputError: no method of that name, or one without a training step; a wrong option.
        """
        if get_method(name).kind != TUNED:
            valid = ", ".join(method.name for method in METHODS.values() if method.kind == TUNED)
            raise InputError(f"method has {name!r}, which has no training step; valid: {valid}")
        config = configure(name, ["--data", DATA, *own_words(name, words)], prog="bench.step")
        return cls(name, config, batch or config.batch_size)

    @property
    def template(self) -> str:
        """The prompt that is classified by."""
        return template_for(self.config.template, DATA)

    @property
    def targets(self) -> tuple[str, ...]:
        """The prompts whose frozen features the losses compare with; none for the one that is classified by."""
        return target_templates(self.config.loss, DATA)

    def with_loss(self, loss: LossConfig) -> Subject:
        """The same with other weights of the loss terms."""
        return replace(self, config=replace(self.config, loss=loss))

    def certain(self) -> Subject:
        """The same without dropout, so that two steps can be compared."""
        return replace(self, config=replace(self.config, lora=replace(self.config.lora, dropout=0.0)))

    def put_in(self, backbone: Backbone, classes: int) -> AdaptedCLIP:
        """What it trains, in ``backbone``, with weights that are the same every time.

        Raises:
            InputError: it trains nothing; what ``inject`` raises.
        """
        torch.manual_seed(0)
        adapted = inject(
            backbone.clip,
            self.config.tuned,
            tokenizer=backbone.tokenizer,
            template=self.template,
            class_names=names(classes),
            cached_images=classes * self.config.shots,
        )
        if not adapted.trained():
            raise InputError(f"method has {self.name!r}, which trains nothing; valid: a method that does")
        return adapted.train()
