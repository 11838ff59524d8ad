"""The report of the few-shot protocol, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics

import pytest
from fake_sweeps import cells, fake_few_shot, shots_accuracy
from PIL import Image

from rmadapter.cli import main
from rmadapter.data.catalog import FIELD
from rmadapter.reports.sweep.outcomes import read_sweep
from rmadapter.reports.sweep.page import sweep_report
from rmadapter.reports.sweep.shots_figure import draw_shots

METHODS = ["zeroshot", "coop", "rmadapter"]
SEEDS = (1, 2, 3)


def seed_means(method, shots, data):
    return [statistics.fmean(shots_accuracy(method, name, seed, shots) for name in data) for seed in SEEDS]


def test_means_over_the_data_sets_and_each_of_them(tmp_path):
    text = sweep_report(fake_few_shot(tmp_path / "s", FIELD, METHODS))
    assert "ViT-B-16 (openai), 1, 4, 16 shots; 209 of 209 runs done" in text
    row = dict(cells(text, "Mean over the data sets", "coop"))
    assert (row["data sets"], row["seeds"], row["zero-shot"]) == ("11", "3", "")
    for shots, heading in ((1, "1 shot"), (4, "4 shots"), (16, "16 shots")):
        means = seed_means("coop", shots, FIELD)
        assert row[heading] == f"{statistics.fmean(means):.2f} ± {statistics.stdev(means):.2f}"
        one = [shots_accuracy("coop", "dtd", seed, shots) for seed in SEEDS]
        expected = f"{statistics.fmean(one):.2f} ± {statistics.stdev(one):.2f}"
        assert dict(cells(text, "dtd", "coop"))[heading] == expected
    row = dict(cells(text, "Mean over the data sets", "zeroshot"))
    level = statistics.fmean(shots_accuracy("zeroshot", name, None, None) for name in FIELD)
    assert (row["zero-shot"], row["1 shot"], row["seeds"]) == (f"{level:.2f}", "", "")


def test_beside_the_published_means(tmp_path):
    """CoOp has 67.56, 74.02 and 79.89 at 1, 4 and 16 shots; RMAdapter none."""
    text = sweep_report(fake_few_shot(tmp_path / "s", FIELD, METHODS))
    row = dict(cells(text, "Mean - published mean", "coop"))
    for shots, heading, paper in ((1, "1 shot", 67.56), (4, "4 shots", 74.02), (16, "16 shots", 79.89)):
        assert row[heading] == f"{statistics.fmean(seed_means('coop', shots, FIELD)) - paper:+.2f}"
    with pytest.raises(ValueError, match="not enough values"):
        cells(text, "Mean - published mean", "rmadapter")
    assert dict(cells(text, "Published: mean over the eleven data sets", "PromptSRC"))["8 shots"] == "80.69"
    assert "those of IVLP, MaPLe, PromptSRC and CoPrompt a part of it; here it is fp32." in text
    assert "differences between them are not of the method alone" not in text
    others = sweep_report(fake_few_shot(tmp_path / "t", ["birds", "trees"], METHODS, model="local-dir:/x/tiny"))
    assert "Mean - published mean" not in others
    assert "This sweep is of tiny (openai); published numbers are of CLIP ViT-B/16 with OpenAI's weights" in others


def test_paired_differences_by_shots(tmp_path):
    """A method without shots stands against each number of them."""
    text = sweep_report(fake_few_shot(tmp_path / "s", ["dtd", "eurosat"], METHODS))
    row = dict(cells(text, "Paired differences", "rmadapter - coop"))
    assert (row["data sets"], row["pairs"]) == ("2", "6")
    assert {row[heading] for heading in ("1 shot", "4 shots", "16 shots")} == {"+2.00 [+2.00, +2.00] (2/2)"}
    row = dict(cells(text, "Paired differences", "rmadapter - zeroshot"))
    # log2 of 4 shots is 2, of none counted as -2: 3 (2 + 2), and 10 of the method, 0.5 of each seed.
    assert row["4 shots"] == "+23.00 [+23.00, +23.00] (2/2)"  # 12 + 10 + 1
    assert "zero-shot" not in row


def test_files(tmp_path):
    sweep_report(fake_few_shot(tmp_path / "s", FIELD, METHODS), tmp_path / "out")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    found = {(li["method"], li["data"], li["part"]): li for li in lines}
    assert float(found["coop", "dtd", "4 shots"]["mean"]) == pytest.approx(
        statistics.fmean(shots_accuracy("coop", "dtd", seed, 4) for seed in SEEDS)
    )
    assert found["coop", "mean of 11", "4 shots"]["published"] == "74.02"
    assert found["coop", "mean of 11", "4 shots"]["seeds"] == "3"
    assert found["zeroshot", "dtd", "zero-shot"]["seeds"] == ""
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "differences.csv").read_text())))
    assert {(li["minus"], li["part"]) for li in lines} == {
        (method, part) for method in ("zeroshot", "coop") for part in ("1 shot", "4 shots", "16 shots")
    }


@pytest.mark.drawn
def test_the_plot(tmp_path):
    folder = fake_few_shot(tmp_path / "s", ["dtd", "eurosat"], METHODS)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.md", "report.csv", "differences.csv", "report.html", "shots.png"}
    with Image.open(tmp_path / "out" / "shots.png") as image:
        assert min(image.size) > 200
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "Accuracy over training images a class" in page


def test_many_data_sets_are_in_several_files(tmp_path):
    names = [f"set{number}" for number in range(30)]
    found = read_sweep(fake_few_shot(tmp_path / "s", names, ["coop"], shots=(2,), seeds=(1,)))
    assert [path.name for path in draw_shots(found, tmp_path / "out")] == ["shots-001.png", "shots-002.png"]


def test_what_is_not_done_leaves_an_empty_cell(tmp_path):
    folder = fake_few_shot(tmp_path / "s", ["dtd", "eurosat", "food101"], METHODS)
    shutil.rmtree(folder / "runs" / "coop" / "dtd" / "shots4")
    text = sweep_report(folder)
    assert "54 of 57 runs done" in text
    assert "their means do not compare" not in text
    row = dict(cells(text, "Mean over the data sets", "coop"))
    assert (row["4 shots"], row["data sets"]) == ("", "3")
    assert dict(cells(text, "eurosat", "coop"))["4 shots"]
    shutil.rmtree(folder / "runs" / "coop" / "dtd")
    assert "Methods are not all done on the same data sets: their means do not compare." in sweep_report(folder)


def test_other_splits_are_not_held_against_published_numbers(tmp_path):
    folder = fake_few_shot(tmp_path / "s", FIELD, METHODS, shots=(16,))
    for file in (folder / "runs").rglob("results.json"):
        values = json.loads(file.read_text())
        if values["data"] == "dtd":
            file.write_text(json.dumps({**values, "split_file": "split_rmadapter.json, SHA-256 0123456789ab"}))
    text = sweep_report(folder)
    assert "Not held against published numbers: dtd" in text
    assert "Mean - published mean" not in text
