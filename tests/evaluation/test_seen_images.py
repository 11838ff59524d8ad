"""An evaluation says which of its images the adapter was trained on."""

from __future__ import annotations

import json
import shutil

import pytest

from rmadapter.cli import main
from rmadapter.data import load_data
from rmadapter.reports.run_report import report


@pytest.fixture
def resplit(animals, tmp_path):
    """``animals`` with the training images for the test and the other way round."""
    load_data(str(animals))  # makes its split
    folder = shutil.copytree(animals, tmp_path / "animals")
    file = folder / "split_rmadapter.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"train": values["test"], "test": values["train"]}))
    return folder


@pytest.mark.parametrize("kind", ["rmadapter", "linear-probe"])
def test_images_of_the_training_are_counted_said_and_reported(kind, copied, animals, resplit, tmp_path, capsys):
    adapter = copied(kind) / "adapter"

    def found(data, *more, adapter=adapter):
        words = ["--adapter", str(adapter), "--data", str(data), "--workers", "0", "--out", str(tmp_path / "eval")]
        assert main(["eval", *words, "--classes", "base", *more]) == 0
        results = json.loads((tmp_path / "eval" / "results.json").read_text())
        return results.get("data_findings"), capsys.readouterr().err

    assert found(animals) == (None, "")
    assert found(resplit, "--split", "train") == (None, "")  # as it was asked for
    counted, said = found(resplit)
    assert counted == {"test_images_seen": 8}
    assert "warning: 8 of 10 test images of animals are called as images that the adapter was trained on, such" in said
    text = report([tmp_path / "eval"]).text
    assert "In 1 of 1 runs on animals, up to 8 test images are among the training images." in text
    other = resplit.rename(tmp_path / "beasts")
    assert found(other) == (None, "")  # its images are others, whatever they are called
    if kind == "rmadapter":
        resplit = other.rename(resplit)
        assert found(resplit, "--classes", "new") == (None, "")  # of which it has seen none
        assert found(resplit, adapter=adapter.rename(tmp_path / "alone")) == (None, "")
