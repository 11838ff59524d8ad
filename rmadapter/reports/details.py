"""``eval --details``: confusion matrices, and a page with them and the most confident mistakes with their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmadapter.evaluation.answers import PartAnswers
from rmadapter.evaluation.metrics import confusion, log_odds
from rmadapter.files import write_csv, write_text
from rmadapter.reports.document import rendered
from rmadapter.reports.escape import csv_lines, readable

PAGE = "details.html"
MISTAKES = 24
# Pixels of a picture's longer side; classes up to which a matrix is shown whole; pairs that are listed.
PICTURE, WHOLE, PAIRS = 160, 60, 20
TITLES = {"all": "All classes", "base": "Base classes", "new": "New classes", "open": "Base and new among all classes"}


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: names of the true class and of the answer, their probabilities, the image's path and picture.

    ``picture`` is an address that holds the picture itself.
    """

    path: str
    true: str
    answer: str
    confidence: float
    probability: float
    picture: str


def write_details(folder: Path, parts: Mapping[str, PartAnswers], results: Mapping[str, Any]) -> list[Path]:
    """``confusion-PART.csv`` of each part and the page, in ``folder``; returns the files, the page first.

    A row of the matrix is a true class, a column an answer. ``results`` is what results.json holds.

    Raises:
        InputError: a file that cannot be written, a picture that cannot be read any more.
    """
    files, sections = [], []
    for part, answers in parts.items():
        counts = confusion(answers.logits.argmax(-1), answers.labels, len(answers.class_names))
        rows = ([name, *row] for name, row in zip(answers.class_names, counts.tolist(), strict=True))
        file = folder / f"confusion-{part}.csv"
        write_csv(file, ["true class", *map(readable, answers.class_names)], csv_lines(rows))
        files.append(file)
        sections.append(
            {
                "title": _title(part, results),
                "metrics": results["metrics"][part],
                "names": answers.class_names,
                "counts": counts.tolist() if len(counts) <= WHOLE else None,
                "pairs": frequent_confusions(counts, answers.class_names),
                "mistakes": confident_mistakes(answers),
                "wrong": int(counts.sum() - counts.trace()),
                "images": len(answers.items),
                "file": file.name,
            }
        )
    page = folder / PAGE
    write_text(page, rendered("details.html.jinja", results=results, sections=sections))
    return [page, *files]


def _title(part: str, results: Mapping[str, Any]) -> str:
    seen = part.removeprefix("retained_")
    return TITLES[part] if seen == part else f"{TITLES[seen]}, drawn by {results['retention_style']}"


def frequent_confusions(counts: NDArray[np.int64], class_names: list[str]) -> list[tuple[str, str, int]]:
    """True class, answer and number of images of the most frequent mistakes in a ``confusion`` matrix."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (class_names[true], class_names[answer], int(wrong[true, answer]))
        for true, answer in places
        if wrong[true, answer]
    ]


def confident_mistakes(answers: PartAnswers, most: int = MISTAKES) -> list[Mistake]:
    """The ``most`` wrong answers with the largest probabilities, largest first."""
    probabilities, predicted = answers.logits.softmax(-1), answers.logits.argmax(-1)
    wrong = torch.nonzero(predicted != answers.labels).flatten()
    order = wrong[log_odds(answers.logits)[wrong].argsort(descending=True, stable=True)][:most]
    found = []
    for number in order.tolist():
        true, answer = int(answers.labels[number]), int(predicted[number])
        found.append(
            Mistake(
                answers.items[number].path,
                answers.class_names[true],
                answers.class_names[answer],
                float(probabilities[number, answer]),
                float(probabilities[number, true]),
                _data_uri(answers, number),
            )
        )
    return found


def _data_uri(answers: PartAnswers, number: int) -> str:
    picture = answers.read(answers.items[number].path)
    picture.thumbnail((PICTURE, PICTURE))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
