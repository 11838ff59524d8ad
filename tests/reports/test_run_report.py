"""Tables and plots from run folders, against means and deviations worked out by hand."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from run_folders import three_methods, write_metrics, write_run

from rmadapter.errors import InputError
from rmadapter.evaluation.results_table import ResultsTable
from rmadapter.reports.run_report import MEANS_LEGEND, harmonic_mean, report


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return three_methods(tmp_path / "runs")


def table(text: str, number: int = 0) -> list[dict[str, str]]:
    """The rows of one Markdown table of ``text`` by their headings."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    heading, _, *rows = tables[number]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def test_harmonic_mean():
    assert harmonic_mean(84.52, 77.36) == pytest.approx(80.78, abs=0.005)  # RMAdapter's published means
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(0, 50) == 0


def test_table_has_methods_in_order_means_and_deviations(runs):
    found = report([runs])
    rows = table(found.text)
    assert [row["method"] for row in rows] == ["zeroshot", "single", "rmadapter"]
    zeroshot, single, rmadapter = rows
    assert rmadapter == {
        "method": "rmadapter",
        "data": "digits",
        "shots": "16",
        "seeds": "2",
        "base": "91.00 ± 1.41",
        "new": "63.00 ± 4.24",
        # of 72.0 and 76.861 (the file's own 76.9 is not taken): n - 1 in the deviation
        "HM": "74.43 ± 3.44",
        "trained parameters": "123,456",
        "training s": "13.0",
        "evaluation s": "1.5",
    }
    assert (single["seeds"], single["base"], single["HM"]) == ("1", "95.00", "65.52")
    assert (zeroshot["seeds"], zeroshot["shots"], zeroshot["training s"]) == ("", "", "")
    assert zeroshot["trained parameters"] == "0"
    assert "model: tiny; classes: base; split: test" in found.text
    assert found.files == ()
    assert found.means == ()


def test_it_is_said_what_deviations_divide_by(runs):
    """The field's scripts divide by n."""
    found = report([runs])
    assert "standard deviation over seeds (n - 1)" in found.text
    assert "the field's tables divide by n" in found.text
    assert "(n - 1) of a seed's means" in MEANS_LEGEND


def test_markdown_is_aligned(runs):
    lines = [line for line in report([runs]).text.splitlines() if line.startswith("|")]
    bars = [[place for place, sign in enumerate(line) if sign == "|"] for line in lines]
    assert len(lines) == 5
    assert all(places == bars[0] for places in bars)


def test_what_differs_keeps_runs_apart(runs):
    accuracy = {"base": 10.0, "new": 10.0}
    for name, changes in {
        "shots": {"shots": 4},
        "data": {"data": "dtd"},
        "model": {"model": "ViT-B-32", "pretrained": "openai"},
        "weights": {"model": "ViT-B-32"},
        "split": {"split": "val"},
        "classes": {"classes": "all"},
    }.items():
        write_run(runs / name, accuracy, **changes)
    found = report([runs])
    rmadapter = [row for row in found.rows if row.group.method == "rmadapter"]
    assert len(rmadapter) == 7
    assert {row["model"] for row in table(found.text)} == {"tiny", "ViT-B-32 (openai)", "ViT-B-32 (random weights)"}
    assert {"classes", "split"} <= table(found.text)[0].keys()


def test_accuracy_over_all_classes_has_its_column(tmp_path):
    write_run(tmp_path / "a", {"all": 88.0}, classes="all")
    write_run(tmp_path / "b", {}, classes="all", method="single", seconds={"train": 1.0, "eval": None})
    rows = table(report([tmp_path]).text)
    assert [row["all"] for row in rows] == ["", "88.00"]
    assert not {"base", "new", "HM"} & rows[0].keys()


def test_three_harmonic_means_over_data_sets(tmp_path):
    for data, pairs in {"a": [(90, 60), (80, 70)], "b": [(50, 50), (60, 50)]}.items():
        for seed, (base, new) in enumerate(pairs, 1):
            write_run(tmp_path / f"{data}{seed}", {"base": base, "new": new}, data=data, seed=seed)
    write_run(tmp_path / "b3", {"base": 55, "new": 50}, data="b", seed=3)  # a seed that only one data set has
    found = report([tmp_path])
    (means,) = found.means
    assert means.data == ("a", "b")
    assert (means.base, means.new) == (70, 57.5)
    assert means.hm_of_means == pytest.approx(harmonic_mean(70, 57.5))
    assert means.mean_of_hms == pytest.approx((harmonic_mean(85, 65) + harmonic_mean(55, 50)) / 2)
    first, second = harmonic_mean(70, 55), harmonic_mean(70, 60)
    assert means.seeds == means.per_seed["hm"].count == 2
    assert means.per_seed["hm"].mean == pytest.approx((first + second) / 2)
    assert (means.spread("base"), means.spread("new")) == pytest.approx((0, 12.5**0.5))
    (row,) = table(found.text, 1)
    assert (row["data sets"], row["HM of means"], row["mean of HMs"]) == ("2", "63.14", "63.02")
    assert (row["seeds"], row["base"], row["new"]) == ("2", "70.00 ± 0.00", "57.50 ± 3.54")
    write_run(tmp_path / "c", {"base": 50, "new": 50}, data="c")
    write_run(tmp_path / "d", {"base": 50, "new": 50}, data="c", method="single")
    write_run(tmp_path / "e", {"base": 50, "new": 50}, data="a", method="single")
    assert "their means do not compare" in report([tmp_path]).text


def test_csv_has_full_precision_and_blanks(runs, tmp_path):
    report([runs], tmp_path / "out")
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    rmadapter = rows["rmadapter"]
    assert float(rmadapter["new_sd"]) == pytest.approx(18**0.5)
    assert float(rmadapter["hm_mean"]) == pytest.approx((72 + harmonic_mean(92, 66)) / 2)
    assert float(rmadapter["hm_of_means"]) == pytest.approx(harmonic_mean(91, 63))
    assert (rmadapter["seeds"], rmadapter["model"]) == ("2", "local-dir:models/tiny")
    assert (rows["single"]["base_sd"], rows["zeroshot"]["shots"], rows["zeroshot"]["train_seconds"]) == ("", "", "")
    assert rmadapter["all_mean"] == ""


def test_a_seed_counts_once_and_the_newest_run_is_taken(runs):
    newer = write_run(runs / "0newer", {"base": 94.0, "new": 60.0}, seed=1)
    os.utime(runs / "a" / "seed1" / "results.json", (1, 1))
    found = report([runs, runs / "b" / ".." / "a"])  # and a folder given twice counts once
    (rmadapter,) = (row for row in found.rows if row.group.method == "rmadapter")
    assert [(run.seed, run.accuracy["base"]) for run in rmadapter.runs] == [(1, 94.0), (2, 92.0)]
    assert f"newer run has its seed: {runs / 'a' / 'seed1'}" in found.text
    assert found.text.count("newer run has its seed") == 1
    assert str(newer) not in found.text


def test_a_table_is_read_as_the_folders_that_it_took_the_place_of(runs, tmp_path):
    out = tmp_path / "out"
    whole = report([runs], out).text
    csv_before = (out / "report.csv").read_bytes()
    for name in ("a/seed1", "b"):
        file = runs / name / "results.json"
        ResultsTable(runs / "some" / "results.jsonl").add(name, {None: json.loads(file.read_text())})
        file.unlink()
    found = report([runs], out)
    assert found.text == whole
    assert (out / "report.csv").read_bytes() == csv_before
    assert [run.place for row in found.rows for run in row.runs if run.folder is None] == [
        f"{runs / 'some' / 'results.jsonl'}, line {number} ({name})" for number, name in ((2, "b"), (1, "a/seed1"))
    ]


def test_of_a_seed_that_a_table_has_twice_the_later_line_is_taken(tmp_path):
    for number in range(11):
        file = write_run(tmp_path / "r" / str(number), {"base": 80.0 + number, "new": 70}) / "results.json"
        ResultsTable(tmp_path / "t" / "results.jsonl").add(f"run{number}", {None: json.loads(file.read_text())})
    found = report([tmp_path / "t"])
    assert [run.accuracy["base"] for run in found.rows[0].runs] == [90]
    assert f"newer run has its seed: {tmp_path / 't' / 'results.jsonl'}, line 10 (run9)" in found.text
    os.utime(tmp_path / "t" / "results.jsonl", (1, 1))
    assert report([tmp_path / "r" / "3", tmp_path / "t"]).rows[0].runs[0].accuracy["base"] == 83


def test_a_damaged_line_of_a_table_is_named(runs, tmp_path):
    table = tmp_path / "t" / "results.jsonl"
    for number, accuracy in enumerate(({"base": 80, "new": 101}, {"base": 80, "new": 70})):
        file = write_run(tmp_path / "r" / str(number), accuracy, seed=5 + number) / "results.json"
        ResultsTable(table).add(f"run{number}", {None: json.loads(file.read_text())})
    found = report([runs, table.parent])
    assert f"Unreadable, left out: results table {table}, line 1 (run0): accuracy of new is 101" in found.text
    assert [file for file, _ in found.unreadable] == [table]
    assert 6 in [run.seed for row in found.rows for run in row.runs]
    table.write_text(table.read_text()[:-5])
    with pytest.raises(InputError, match=r"results\.jsonl, line 2, is damaged"):
        report([runs, table.parent])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"format": 1, "meth', "cannot be read"),
        ("[]", "no JSON object"),
        ('{"format": 2}', "format 2; this version reads 1"),
        ('{"format": 1}', "accuracy is None"),
        ('{"format": 1, "accuracy": {"base": 101}}', "accuracy of base is 101"),
        ('{"format": 1, "accuracy": {"base": NaN}}', "it holds NaN, which JSON does not have"),
        ('{"format": 1, "accuracy": {"base": "90"}}', "accuracy of base is '90'"),
        ('{"format": 1, "accuracy": {}, "data": "digits", "model": 3}', "model is 3"),
    ],
)
def test_damaged_results_are_named_and_do_not_stop_the_others(runs, tmp_path, content, reason):
    damaged = tmp_path / "damaged" / "results.json"
    damaged.parent.mkdir()
    damaged.write_text(content)
    with pytest.raises(InputError, match=reason) as raised:
        report([damaged.parent])
    assert str(damaged) in str(raised.value)
    found = report([runs, damaged.parent])
    assert len(found.rows) == 3
    assert [file for file, _ in found.unreadable] == [damaged]
    assert f"Unreadable, left out: results file {damaged}" in found.text


def test_no_runs_and_no_folder_are_input_errors(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json or results\.jsonl in"):
        report([tmp_path])
    with pytest.raises(
        InputError, match=r"run folder .*nowhere is missing; valid: a folder with runs or results\.jsonl"
    ):
        report([tmp_path / "nowhere"])
    (tmp_path / "afile").touch()
    with pytest.raises(InputError, match=r"run folder .*afile is a file; valid: a folder with runs"):
        report([tmp_path / "afile"])


@pytest.mark.drawn
def test_files_are_written_whole_and_listed(runs, tmp_path):
    for seed in (1, 2):
        write_metrics(runs / "a" / f"seed{seed}", '{"kind": "st')
    out = tmp_path / "new" / "out"
    found = report([runs], out)
    names = ["report.md", "report.csv", "base_new.png", "curves.png"]
    assert found.files == tuple(out / name for name in names)
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert all(f"written: {path}" in found.text for path in found.files)
    markdown = (out / "report.md").read_text()
    assert table(markdown) == table(found.text)
    assert "![base_new](base_new.png)" in markdown
    assert "left out of the curves: 2" in markdown
    for name in names[2:]:
        image = Image.open(out / name)
        image.load()
        assert image.width > 1000


def test_a_folder_that_may_not_be_written_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode, **_: False)
    with pytest.raises(InputError, match=f"out is '{tmp_path}/out', but '{tmp_path}' may not be written; valid: a"):
        report([tmp_path / "gone"], tmp_path / "out")  # before the runs are looked for


@pytest.mark.parametrize(("name", "words"), [("report.md", b"# My thesis\n\xff"), ("report.csv", b"a,b\n")])
def test_a_file_of_another_program_is_not_written_over(runs, tmp_path, name, words):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(words)
    with pytest.raises(InputError, match=f"where there is a {name} that rmadapter report has not written; valid: ano"):
        report([tmp_path / "gone"], out)  # before the runs are looked for
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [(name, words)]
    with pytest.raises(InputError, match=f"out is '.*{name}', which is a file; valid: a folder"):
        report([tmp_path / "gone"], out / name)


def test_an_earlier_report_s_files_are_deleted_and_no_others(runs, tmp_path):
    out = tmp_path / "out"
    report([runs], out)
    # As a report of a sweep in its place, with more plots.
    text = (out / "report.md").read_text()
    (out / "report.md").write_text(f"# Ablation\n\n{text}\n![base_new](base_new.png)\n\n![cost](cost.png)\n")
    for name in ("base_new.png", "cost.png", "report.html", "differences.csv", "mine.png", "notes.md"):
        (out / name).touch()
    found = report([runs], out)
    assert {path.name for path in out.iterdir()} == {*(path.name for path in found.files), "mine.png", "notes.md"}
    (out / "report.html").touch()  # of pandoc: a report of run folders has none
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results.json").write_text((runs / "b" / "results.json").read_text())
    report([tmp_path / "one"], out)
    assert (out / "report.html").exists()


def test_without_matplotlib_there_are_tables_and_a_sentence(runs, tmp_path, monkeypatch):
    monkeypatch.delattr("rmadapter.reports.run_plots")
    for module in [
        name for name in sys.modules if name == "rmadapter.reports.run_plots" or name.startswith("matplotlib")
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = report([runs], tmp_path / "out")
    assert [path.name for path in found.files] == ["report.md", "report.csv"]
    assert "pip install 'rmadapter[plot]'" in found.text
    assert "pip install 'rmadapter[plot]'" in (tmp_path / "out" / "report.md").read_text()


def test_retention_has_its_columns_and_styles_their_rows(tmp_path):
    kept = {"retained_base": 30.0, "retained_new": 20.0}
    write_run(tmp_path / "a1", {"base": 60, "new": 50, **kept}, data="emoji_food", style="fluent")
    write_run(
        tmp_path / "a2",
        {"base": 62, "new": 50, "retained_base": 34.0, "retained_new": 20.0},
        data="emoji_food",
        style="fluent",
        seed=2,
    )
    write_run(tmp_path / "b1", {"base": 70, "new": 50, **kept}, data="emoji_food", style="emojione")
    write_run(tmp_path / "c1", {"base": 40, "new": 50, "retained_base": 10.0}, data="emoji_animals", style="fluent")
    found = report([tmp_path], tmp_path / "out")
    rows = {(row["data"], row["style"]): row for row in table(found.text)}
    assert rows["emoji_food", "fluent"]["retained base"] == "32.00 ± 2.83"
    assert rows["emoji_food", "fluent"]["seeds"] == "2"
    assert rows["emoji_food", "emojione"]["retained base"] == "30.00"
    assert rows["emoji_animals", "fluent"]["retained new"] == ""
    assert "Retained: the same classes" in found.text
    (mean,) = found.means  # of the two data sets drawn by fluent; that of emojione stands alone
    assert mean.group.style == "fluent"
    assert mean.retained == {"retained_base": 21.0}
    with (tmp_path / "out" / "report.csv").open() as file:
        line = next(row for row in csv.DictReader(file) if row["data"] == "emoji_animals")
    assert (line["style"], line["retained_base_mean"], line["retained_new_mean"]) == ("fluent", "10.0", "")


def test_without_retention_there_is_neither_column_nor_legend(runs):
    text = report([runs]).text
    assert "etained" not in text
    assert "style" not in text
