"""From images and class names to probabilities, many requests at a time; everything that touches the model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmadapter.clip.emoji_clip import untrained_words
from rmadapter.clip.names import MODEL
from rmadapter.clip.towers import find_towers
from rmadapter.errors import InputError
from rmadapter.evaluation.class_texts import ClassTexts
from rmadapter.serving.served_model import MOST_KEPT, ServedModel
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.image_encoder import BothFeatures


@dataclass(frozen=True)
class ClassQuestion:
    """Among which classes, by which prompt, at which strength."""

    names: tuple[str, ...]
    template: str
    strength: float = 1.0


@dataclass(frozen=True)
class Asked:
    """One request: an image [3, size, size] as the model takes it, what is asked of it, and whether with errors."""

    image: Tensor
    question: ClassQuestion
    errors: bool = False


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes:
        zeroshot: the frozen model's probabilities, of each class.
        adapted: those of what was trained; None where that is the frozen model.
        temperature: of a calibration, which ``adapted`` is at; None where none holds.
        notes: what has to be known of these numbers, in sentences.
        errors: each layer's reconstruction error of each patch [rows, columns]; empty where none was asked for.
    """

    zeroshot: list[float]
    adapted: list[float] | None
    temperature: float | None
    notes: tuple[str, ...]
    errors: tuple[Tensor, ...] = ()


class Answerer:
    """Answers batches of requests with a model; one thread calls it.

    Of each image the beginning that the frozen and the tuned tower share is computed once. Features of class names are
    kept, as many as ``most_kept`` lists of them.
    """

    def __init__(self, served: ServedModel, most_kept: int = MOST_KEPT):
        self.served = served
        self._tuned = functools.lru_cache(most_kept)(self._tuned_texts)
        self._frozen = functools.lru_cache(most_kept)(self._frozen_texts)
        model = served.model
        # A squared or absolute error is a sum over the channels, a cosine is none.
        summed = isinstance(model, AdaptedClassifier) and model.adapted.config.objective != "cosine"
        self._channels = find_towers(model.clip)["vision"].width if summed else 1

    @torch.no_grad()
    def __call__(self, several: Sequence[Asked]) -> list[Answered | Exception]:
        """The answer to each; an InputError where its classes cannot be used, which is no matter of the others."""
        answers: dict[int, Answered | Exception] = {}
        for strength in dict.fromkeys(asked.question.strength for asked in several):
            rows = [row for row, asked in enumerate(several) if asked.question.strength == strength]
            self.served.model.set_strength(strength)
            seen = self._see([several[row] for row in rows])
            for question in dict.fromkeys(several[row].question for row in rows):
                places = [place for place, row in enumerate(rows) if several[row].question == question]
                asked = [several[rows[place]] for place in places]
                try:
                    found: Sequence[Answered | Exception] = self._among(question, asked, seen, places)
                except InputError as error:
                    found = [error] * len(places)
                answers.update(zip((rows[place] for place in places), found, strict=True))
        return [answers[row] for row in range(len(several))]

    def _see(self, several: Sequence[Asked]) -> BothFeatures:
        model = self.served.model
        images = torch.stack([asked.image for asked in several]).to(model.clip.logit_scale.device)
        if isinstance(model, AdaptedClassifier):
            return model.both_features(images, errors=any(asked.errors for asked in several))
        features = model.image_features(images)
        return BothFeatures(features, features, ())

    def _among(
        self, question: ClassQuestion, several: Sequence[Asked], seen: BothFeatures, places: list[int]
    ) -> list[Answered]:
        """The answers to requests with one ``question``, whose images are at ``places`` in ``seen``."""
        served, model = self.served, self.served.model
        notes = self._notes(question)
        texts = self._tuned(question)
        if (tuple(model.class_names), model.template) != (question.names, question.template):
            model.set_classes(question.names, question.template)  # heads, and prompts of each image, go by them
        found = model.classify_features(seen.tuned[places], texts).softmax(-1)
        if served.zeroshot is None:
            return [Answered(row, None, None, notes) for row in found.tolist()]
        frozen_texts = self._frozen(question.names, question.template)
        frozen = served.zeroshot.classify_features(seen.frozen[places], frozen_texts).softmax(-1)
        temperature, why_not = self._temperature(question)
        if temperature is not None and served.calibration is not None:
            found = served.calibration.calibrated(found)
        notes += () if why_not is None else (f"the calibration beside the adapter is not used: {why_not}",)
        errors = [error[places].float().cpu() / self._channels for error in seen.errors]
        answers = []
        for number, (asked, zeroshot, adapted) in enumerate(zip(several, frozen.tolist(), found.tolist(), strict=True)):
            own = tuple(error[number] for error in errors) if asked.errors else ()
            answers.append(Answered(zeroshot, adapted, temperature, notes, own))
        return answers

    def _temperature(self, question: ClassQuestion) -> tuple[float | None, str | None]:
        """The calibration's temperature where it holds for a question, and where it does not why."""
        calibration, weights = self.served.calibration, self.served.weights_sha256
        if calibration is None or weights is None:
            return None, None
        why_not = calibration.difference(weights, question.names, question.template, question.strength)
        return (calibration.temperature, None) if why_not is None else (None, str(why_not))

    def _tuned_texts(self, question: ClassQuestion) -> Tensor:
        """Features of the classes, at the strength that is set; the model classifies among them from now on."""
        return ClassTexts(list(question.names), (question.template,)).features(self.served.model)

    def _frozen_texts(self, names: tuple[str, ...], template: str) -> Tensor:
        assert self.served.zeroshot is not None  # the caller has looked
        with self.served.model.untouched():
            return ClassTexts(list(names), (template,)).features(self.served.zeroshot)

    def _notes(self, question: ClassQuestion) -> tuple[str, ...]:
        if self.served.backbone.source.name != MODEL:
            return ()
        words = _untrained(question.names, question.template)
        said = ", ".join(map(repr, words))
        return (f"{MODEL} was not pretrained on {said}: what it says of such a class is chance",) if words else ()


@functools.lru_cache(MOST_KEPT)
def _untrained(names: tuple[str, ...], template: str) -> list[str]:
    return untrained_words(ClassTexts(list(names), (template,)).words)
