"""Sentences on each class, which others have written: from a JSON file {class name: [sentence, ...]}."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmadapter.errors import InputError, nearest
from rmadapter.files import read_json

_FORM = 'valid: {"class name": ["a sentence", ...], ...}'


def read_sentences(path: str | Path, what: str = "sentences file") -> dict[str, list[str]]:
    """The sentences in the file ``path`` by class name; ``what`` names it in messages.

    Raises:
        InputError: no such file, no JSON, another form (the class is named), no class in it.
    """
    values = read_json(Path(path), what, valid=_FORM)
    what = f"{what} {path}"
    if not isinstance(values, dict):
        raise InputError(f"{what} is {reprlib.repr(values)}; {_FORM}")
    if not values:
        raise InputError(f"{what} names no class; {_FORM}")
    for name, sentences in values.items():
        if not isinstance(sentences, list):
            raise InputError(f"{what} has {reprlib.repr(sentences)} for class {name!r}; {_FORM}")
        odd = next((s for s in sentences if not isinstance(s, str) or not s.strip()), None)
        if odd is not None:
            raise InputError(f"{what} has {reprlib.repr(odd)} among the sentences of class {name!r}; {_FORM}")
    return values


def sentence_sets(sentences: Mapping[str, Sequence[str]], class_names: Sequence[str]) -> list[list[str]]:
    """The first sentence of every class in the order of ``class_names``, the second of every class, and so on.

    ``sentences`` may hold more classes than these.

    Raises:
        InputError: a class without sentences, or with another number of them than the first one has.
    """
    for name in class_names:
        if name not in sentences:
            missing = sum(other not in sentences for other in class_names)
            more = f" and {missing - 1} more" if missing > 1 else ""
            raise InputError(
                f"loss.sentences has none for class {name!r}{more}{nearest(name, sentences)}; valid: some for each of "
                f"the {len(class_names)} classes that are trained on, by its name"
            )
        if not sentences[name]:
            raise InputError(f"loss.sentences has an empty list for class {name!r}; valid: one sentence or more")
    first, count = class_names[0], len(sentences[class_names[0]])
    for name in class_names:
        if len(sentences[name]) != count:
            raise InputError(
                f"loss.sentences has {len(sentences[name])} for class {name!r}, but {count} for {first!r}; valid: as "
                "many for each class, since one number is drawn for all of them"
            )
    return [[sentences[name][number] for name in class_names] for number in range(count)]


def sentences_hash(sets: Sequence[Sequence[str]]) -> str:
    """SHA-256 of the sentences of a run's classes, as ``sentence_sets`` gives them."""
    return hashlib.sha256(json.dumps([list(texts) for texts in sets]).encode()).hexdigest()
