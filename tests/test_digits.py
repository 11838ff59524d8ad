"""The digits as image folders: which images, where, under which names, and whole or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rmadapter.errors import InputError
from rmadapter.testbed import digits
from rmadapter.testbed.digits import DigitsPaths, write_digits


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    return write_digits(tmp_path_factory.mktemp("data") / "new" / "folder")


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))


def test_halves_are_disjoint_complete_and_stratified(written):
    numbers = [{int(path.stem) for path in files(folder)} for folder in (written.pretrain, written.digits)]
    assert numbers[0] | numbers[1] == set(range(1797))
    assert not numbers[0] & numbers[1]
    for label in range(10):
        counts = [
            len(files_of)
            for folder in (written.pretrain, written.digits)
            for files_of in [list((folder / str(label)).glob("*.png"))]
        ]
        assert counts[1] - counts[0] in (0, 1)
        assert counts[0] > 80


def test_each_image_is_its_scan_under_its_label(written):
    scans = load_digits()
    for path in files(written.digits)[::37]:
        image = Image.open(path)
        assert (image.mode, image.size, image.format) == ("L", (48, 48), "PNG")
        number = int(path.stem)
        assert int(path.parent.name) == scans.target[number]
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float).ravel()
        assert np.corrcoef(small, scans.images[number].ravel())[0, 1] > 0.97


def test_labels_by_folder_order_are_the_digits_and_names_are_words(written):
    for folder in (written.pretrain, written.digits):
        folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
        assert folders == list("0123456789")
        lines = (folder / "classnames.txt").read_text().splitlines()
        assert lines == [
            "0 zero",
            "1 one",
            "2 two",
            "3 three",
            "4 four",
            "5 five",
            "6 six",
            "7 seven",
            "8 eight",
            "9 nine",
        ]


def test_second_call_writes_nothing_and_another_folder_is_bit_equal(written, tmp_path, monkeypatch):
    again = write_digits(tmp_path)
    assert [path.read_bytes() for path in files(again.digits)] == [path.read_bytes() for path in files(written.digits)]
    monkeypatch.setattr(digits, "_read_halves", lambda: pytest.fail("read the scans again"))
    assert write_digits(tmp_path) == again


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    saved = []

    def save(self, path, **options):
        saved.append(path)
        if len(saved) == 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_user_is_refused_and_kept(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"digits is there but was not made by rmadapter"):
        write_digits(tmp_path)
    assert (tmp_path / "digits" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "pretrain").exists()


def test_a_folder_of_older_content_is_replaced(tmp_path):
    old = tmp_path / "digits"
    old.mkdir()
    (old / digits.MARKER).write_text(json.dumps({"format": 0}))
    (old / "old.png").write_text("")
    write_digits(tmp_path)
    assert not (old / "old.png").exists()
    assert len(files(old)) == 901


def test_missing_scikit_learn_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'rmadapter\[demo\]'"):
        write_digits(tmp_path)
    assert list(tmp_path.iterdir()) == []
