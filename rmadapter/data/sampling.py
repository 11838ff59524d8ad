"""The few-shot sample and the base and new halves of the classes, as the field draws them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmadapter.data.items import ImageData, Item
from rmadapter.errors import InputError, check_choice
from rmadapter.files import read_json, write_json

VALIDATION_SHOTS = 4
# The sample in a run's folder.
SAMPLE_FILE = "few_shot.json"


def few_shot_sample(train: Sequence[Item], val: Sequence[Item], shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """``shots`` training and up to four validation items a class, over all classes.

    One generator goes over the training classes in the order of first appearance, then over those of validation. A
    class with fewer images than shots gives all of them in order and draws nothing. This reproduces the public
    few-shot indices of CoOp's seeds.
    """
    if shots < 1:
        raise InputError(f"shots is {shots!r}; valid: a number >= 1")
    if not train:
        raise InputError("there are no training images: the data set is for testing only")
    generator = random.Random(seed)
    return _draw(train, shots, generator), _draw(val, min(shots, VALIDATION_SHOTS), generator)


def _draw(items: Sequence[Item], shots: int, generator: random.Random) -> list[Item]:
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    return [
        item
        for group in by_label.values()
        for item in (generator.sample(group, shots) if len(group) >= shots else group)
    ]


def _part(labels: Sequence[int], part: str) -> list[int]:
    check_choice("classes", part, ("all", "base", "new"))
    half = math.ceil(len(labels) / 2)
    return list(labels if part == "all" else labels[:half] if part == "base" else labels[half:])


def base_new_split(items: Sequence[Item], part: str, classes: int | None = None) -> list[Item]:
    """The items of the first half of the sorted labels ("base", the larger half), of the rest ("new"), or "all".

    Labels of a half count from 0 again. ``classes`` is how many there are, where ``items`` may lack some of them.
    """
    chosen = _part(sorted({item.label for item in items}) if classes is None else range(classes), part)
    if part == "all":
        return list(items)
    new_label = {label: index for index, label in enumerate(chosen)}
    return [item._replace(label=new_label[item.label]) for item in items if item.label in new_label]


def base_new_labels(classes: int, part: str) -> list[int]:
    """The labels of "base", "new" or "all" of so many classes, as ``base_new_split`` divides them."""
    return _part(range(classes), part)


def base_new_names(class_names: Sequence[str], part: str) -> list[str]:
    """The class names of "base", "new" or "all", in the order of ``base_new_split``'s labels."""
    return [class_names[label] for label in _part(range(len(class_names)), part)]


def part_names(class_names: Sequence[str], part: str) -> list[str]:
    """``base_new_names`` to classify among; InputError for fewer than two."""
    names = base_new_names(class_names, part)
    if len(names) < 2:
        raise InputError(
            f"classes is {part!r}, which leaves {len(names)} of {len(class_names)} classes; valid: a part with at "
            "least two"
        )
    return names


@dataclass(frozen=True)
class FewShotSample:
    """A few-shot sample and how it was drawn; its hash tells whether two runs saw the same images."""

    train: list[Item]
    val: list[Item]
    shots: int
    seed: int
    data: str

    def _content(self) -> dict[str, object]:
        items = {"train": [list(item) for item in self.train], "val": [list(item) for item in self.val]}
        return {"data": self.data, "shots": self.shots, "seed": self.seed, **items}

    @property
    def hash(self) -> str:
        """SHA-256 over everything in the sample."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write it as JSON with relative paths, atomically."""
        write_json(path, {**self._content(), "hash": self.hash})

    @classmethod
    def load(cls, path: Path) -> FewShotSample:
        """Read a sample; InputError where the file is missing, damaged or changed by hand."""
        values = read_json(path, "few-shot sample")
        try:
            train, val = ([Item(*item) for item in values[part]] for part in ("train", "val"))
            sample = cls(train, val, values["shots"], values["seed"], values["data"])
            unchanged = sample.hash == values["hash"]
        except (KeyError, TypeError) as error:
            raise InputError(f"few-shot sample {path} is damaged: {error!r}") from error
        if not unchanged:
            raise InputError(f"few-shot sample {path} has been changed: its hash does not match its content")
        return sample


def validation_items(data: ImageData, sample: FewShotSample, classes: str) -> tuple[Sequence[Item], str]:
    """What is chosen and calibrated by, up to four images a class of ``classes``, and whence: never the test.

    Where the data set has no validation images they are training images that the sample leaves, drawn with its seed;
    none of those that are test images too, which a sample may have been allowed to overlap, or may just have missed.
    """
    found, whence = sample.val, "validation images"
    if not data.val:
        used = {item.path for item in (*sample.train, *data.test)}
        left = [item for item in data.train if item.path not in used]
        count = min(sample.shots, VALIDATION_SHOTS)
        found = few_shot_sample(left, [], count, sample.seed)[0] if left else []
        whence = "training images outside the sample"
    return base_new_split(found, classes, len(data.class_names)), whence
