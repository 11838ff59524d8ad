"""What stands for each class in a prediction: one prompt, several, or sentences of its own; and their features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.finite import check_finite
from rmadapter.config import check_template
from rmadapter.data.class_names import read_lines
from rmadapter.errors import InputError, nearest

# Sentences that the text tower reads at a time.
AT_A_TIME = 256


@dataclass(frozen=True)
class ClassTexts:
    """Class names, and either ``templates`` with ``{}`` for the name or ``descriptions``, a list a class.

    Raises:
        InputError: a class without descriptions.
    """

    names: list[str]
    templates: tuple[str, ...] = ()
    descriptions: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        for name in self.names if self.descriptions is not None else ():
            if not self.descriptions.get(name):  # type: ignore[union-attr]
                raise InputError(
                    f"descriptions has none for class {name!r}{nearest(name, self.descriptions or ())}; valid: one "
                    "sentence or more for each class, by its name"
                )

    @property
    def averaged(self) -> bool:
        """Whether a class's features are a mean, and not those of one prompt."""
        return self.descriptions is not None or len(self.templates) > 1

    @property
    def prompt(self) -> str:
        """The one prompt of all classes; of several texts a name that no prompt has, since it lacks the braces."""
        return "several texts" if self.averaged else self.templates[0]

    @property
    def words(self) -> list[str]:
        """All texts that the tower reads, or the parts that they are made of."""
        if self.descriptions is None:
            return [*(template.replace("{}", " ") for template in self.templates), *self.names]
        return [text for name in self.names for text in self.descriptions[name]]

    @property
    def identity(self) -> str:
        """SHA-256 of the names and of what is said of them."""
        said = None if self.descriptions is None else [list(self.descriptions[name]) for name in self.names]
        return hashlib.sha256(json.dumps([self.names, list(self.templates), said]).encode()).hexdigest()

    @torch.no_grad()
    def features(self, model: CLIPClassifier) -> Tensor:
        """Features [classes, embed] of the texts by ``model``, which classifies among the names from now on.

        One prompt's as the model gives them. Of several the mean of the normalised features, normalised: as OpenAI's
        zero-shot classifiers and those of LLM-written descriptions average them.

        Raises:
            InputError: several texts for a model that has learned its own; a prompt that does not fit the model.
        """
        model.eval()
        model.set_classes(self.names, self.templates[0] if self.templates else model.template)
        if not self.averaged:
            return model.text_features()
        if not model.takes_texts:
            what = "descriptions are given" if self.descriptions is not None else f"{len(self.templates)} templates"
            raise InputError(f"{what}, but the adapter has learned what stands for a class; valid: without them")
        single = model.prompts
        try:
            means = self._of_descriptions(model) if self.descriptions is not None else self._of_templates(model)
        finally:
            model.prompts = single
        return F.normalize(means, dim=-1)

    def _of_templates(self, model: CLIPClassifier) -> Tensor:
        total: Tensor | float = 0.0
        for template in self.templates:
            model.prompts = model.prompts_of(template)
            total = total + _normalised(model)
        return torch.as_tensor(total) / len(self.templates)

    def _of_descriptions(self, model: CLIPClassifier) -> Tensor:
        assert self.descriptions is not None
        texts = [(row, text) for row, name in enumerate(self.names) for text in self.descriptions[name]]
        parts = []
        for start in range(0, len(texts), AT_A_TIME):
            model.prompts = model.written([text for _, text in texts[start : start + AT_A_TIME]])
            parts.append(_normalised(model))
        features = torch.cat(parts)
        rows = torch.tensor([row for row, _ in texts], device=features.device)
        sums = features.new_zeros(len(self.names), features.shape[1]).index_add_(0, rows, features)
        return sums / rows.bincount(minlength=len(self.names))[:, None]


def _normalised(model: CLIPClassifier) -> Tensor:
    return F.normalize(check_finite("text features", model.text_features()).float(), dim=-1)


def read_templates(path: str | Path) -> list[str]:
    """The prompts in a text file, one a line, each with ``{}`` for the class name.

    Raises:
        InputError: a file that cannot be read or has none; a line that is no prompt, which is named.
    """
    return list(_templates(Path(path)))


def _templates(path: Path) -> Iterator[str]:
    lines = read_lines(path, "templates")
    if not lines:
        raise InputError(f"templates {path} has no prompt; valid: one a line, such as 'a photo of a {{}}.'")
    for number, line in lines:
        try:
            check_template(line)
        except InputError as error:
            raise InputError(f"templates {path}, line {number}: {error}") from error
        yield line
