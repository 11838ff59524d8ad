"""Confusion matrices and the page of mistakes that an evaluation leaves."""

from __future__ import annotations

import base64
import csv
import io
import re

import torch
from PIL import Image

from rmadapter.cli import main
from rmadapter.data import Item
from rmadapter.evaluation.answers import PartAnswers
from rmadapter.evaluation.metrics import quality
from rmadapter.reports.details import confident_mistakes, frequent_confusions, write_details

NAMES = ["ant", "<b>bee</b>", "cat"]
COLOURS = {"0.png": "red", "1.png": "lime", "2.png": "blue", "3.png": "white"}


def answers() -> PartAnswers:
    """Image 1, an ant, taken for a cat surely; image 2, an ant, for a bee less so; the others right."""
    logits = torch.tensor([[9.0, 0, 0], [0, 0, 9.0], [0, 2.0, 0], [0, 0, 5.0]])
    items = [Item(f"{number}.png", label, NAMES[label]) for number, label in enumerate((0, 0, 0, 2))]

    def read(path):
        return Image.new("RGB", (400, 200), COLOURS[path])

    return PartAnswers(logits, torch.tensor([0, 0, 0, 2]), NAMES, items, read)


def colour(uri: str) -> tuple[int, ...]:
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert max(picture.size) == 160
    return tuple(255 * (value > 127) for value in picture.getpixel((80, 40)))


def test_the_most_confident_mistakes_come_first_with_their_pictures():
    first, second = confident_mistakes(answers())
    assert (first.path, first.true, first.answer, first.confidence > 0.99) == ("1.png", "ant", "cat", True)
    assert (second.path, second.true, second.answer) == ("2.png", "ant", "<b>bee</b>")
    assert second.confidence > second.probability > 0
    assert (colour(first.picture), colour(second.picture)) == ((0, 255, 0), (0, 0, 255))
    assert [mistake.path for mistake in confident_mistakes(answers(), most=1)] == ["1.png"]


def test_mistakes_whose_probabilities_round_to_one_are_in_the_order_of_their_certainty():
    found = answers()
    found.logits[1, 2], found.logits[2, 1] = 30, 60
    assert [mistake.path for mistake in confident_mistakes(found)] == ["2.png", "1.png"]


def test_rows_of_the_matrix_are_true_classes_and_the_page_needs_nothing_else(tmp_path):
    found = answers()
    results = {"method": "rmadapter", "data": "a<i>", "model": "m", "split": "test"}
    results["metrics"] = {"base": quality(found.logits, found.labels, found.class_names)}
    page, file = write_details(tmp_path, {"base": found}, results)
    with file.open() as lines:
        heading, *rows = csv.reader(lines)
    assert heading == ["true class", *NAMES]
    assert rows == [["ant", "1", "1", "1"], ["<b>bee</b>", "0", "0", "0"], ["cat", "0", "0", "1"]]
    text = page.read_text()
    assert "&lt;b&gt;bee" in text
    assert "<b>bee" not in text
    assert "a&lt;i&gt;" in text
    assert not re.search(r"(src|href)='(?!data:)", text)
    assert "<script" not in text
    assert "4 images, 2 of them wrong" in text


def test_frequent_confusions_leave_out_what_is_right():
    import numpy as np

    counts = np.array([[9, 1, 0], [3, 0, 0], [0, 0, 5]])
    assert frequent_confusions(counts, NAMES) == [("<b>bee</b>", "ant", 3), ("ant", "<b>bee</b>", 1)]


def test_the_command_writes_them_for_every_part(base_run, animals, tmp_path, capsys):
    words = ["--adapter", str(base_run / "adapter"), "--data", str(animals), "--workers", "0"]
    assert main(["eval", *words, "--classes", "base_new", "--details", str(tmp_path / "d")]) == 0
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert names == {"details.html", "confusion-base.csv", "confusion-new.csv", "confusion-open.csv"}
    with (tmp_path / "d" / "confusion-open.csv").open() as lines:
        heading, *rows = csv.reader(lines)
    assert heading[1:] == [row[0] for row in rows] == ["ant", "bee", "cat", "dog"]
    assert all(sum(map(int, row[1:])) == 3 for row in rows)  # test images of each true class
    assert "details.html" in capsys.readouterr().out
