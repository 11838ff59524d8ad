"""What shares a row of a report: the same tested, the same trained on, the same settings."""

from __future__ import annotations

import csv
import json
import os
import shutil

import pytest
from conftest import write_images
from fake_sweeps import cells, fake
from run_folders import write_run
from test_run_report import table

from rmadapter.cli import main
from rmadapter.config import LossConfig, TrainConfig
from rmadapter.reports.run_report import report
from rmadapter.reports.sweep.page import sweep_report
from rmadapter.training.run_folder import settings_of

HERE, THERE = "1" * 64, "2" * 64
TRUE = {"base": 77.0, "new": 66.0}


def trained_on(data="digits", classes="base", data_hash=HERE, style=None, seed=1):
    names = {"data": data, "style": style, "data_hash": data_hash, "classes": classes, "shots": 16, "seed": seed}
    return {**names, "adapter_sha256": "a" * 64}


def write(folder, accuracy=TRUE, *, data_hash=HERE, source=None, **changes):
    """A run as this version writes it, trained where it is tested unless ``source`` says otherwise."""
    return write_run(folder, accuracy, data_hash=data_hash, trained_on=source or trained_on(), **changes)


def evaluated(folder, accuracy, source, **changes):
    """As ``rmadapter eval`` writes it: there is no sample, and the classes are those of the training."""
    write(folder, accuracy, source=source, **{"classes": source["classes"], **changes})
    file = folder / "results.json"
    values = json.loads(file.read_text())
    del values["few_shot_hash"]
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("source", "accuracy", "said"),
    [
        (trained_on(classes="all"), {"base": 99.0, "new": 90.0}, "digits, all classes"),
        (trained_on(data="mnist", data_hash=THERE), {"base": 99.0, "new": 90.0}, "mnist, base classes"),
        (trained_on(data_hash=THERE), {"base": 99.0, "new": 90.0}, "digits (22222222), base classes"),
        (trained_on(None, None, None), {"base": 99.0, "new": 90.0}, "not recorded"),
        (trained_on(), {"all": 99.0}, "digits, base classes"),
    ],
)
def test_an_adapter_trained_on_something_else_is_no_run_of_the_row(tmp_path, source, accuracy, said):
    for seed in (1, 2):
        write(tmp_path / f"seed{seed}", seed=seed, source=trained_on(seed=seed))
        os.utime(tmp_path / f"seed{seed}" / "results.json", (seed, seed))
    evaluated(tmp_path / "other", accuracy, source)
    found = report([tmp_path], tmp_path / "out")
    rows = {row["trained on"]: row for row in table(found.text)}
    assert set(rows) == {"", said}
    assert rows[""]["base"] == "77.00 ± 0.00"
    assert rows[said]["base" if "base" in accuracy else "all"] == "99.00"
    assert "Left out" not in found.text
    with (tmp_path / "out" / "report.csv").open() as file:
        assert {row["trained_on"] for row in csv.DictReader(file)} == {"", said}


def test_the_evaluation_of_a_run_s_own_adapter_is_the_run_again(tmp_path):
    write(tmp_path / "run")
    os.utime(tmp_path / "run" / "results.json", (1, 1))
    evaluated(tmp_path / "eval", TRUE, trained_on())
    found = report([tmp_path])
    assert len(found.rows) == 1
    assert f"Left out, a newer run has its seed: {tmp_path / 'run'}" in found.text


def test_two_data_sets_of_one_name_are_told_by_what_they_hold(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", {"base": 50.0, "new": 40.0}, data_hash=THERE, source=trained_on(data_hash=THERE), seed=2)
    found = report([tmp_path], tmp_path / "out")
    assert [row["data"] for row in table(found.text)] == ["digits (11111111)", "digits (22222222)"]
    assert "digits stands for 2 data sets" in found.text
    assert [row.group.trained_on for row in found.rows] == ["", ""]
    (means,) = found.means
    assert (means.data, means.seeds) == (("digits (11111111)", "digits (22222222)"), 0)
    with (tmp_path / "out" / "report.csv").open() as file:
        assert [(row["data_hash"], row["base_mean"]) for row in csv.DictReader(file)] == [
            (HERE, "77.0"),
            (THERE, "50.0"),
        ]


def test_a_run_that_records_no_hash_counts_to_the_data_set_of_its_name(tmp_path):
    write(tmp_path / "new")
    write_run(tmp_path / "old", {"base": 79.0, "new": 66.0}, seed=2)
    (row,) = report([tmp_path]).rows
    assert (row.mean("base"), row.group.data, row.group.data_hash) == (78, "digits", HERE)
    write(tmp_path / "other", data_hash=THERE, source=trained_on(data_hash=THERE))
    found = report([tmp_path])
    assert {row.group.data for row in found.rows} == {
        "digits (11111111)",
        "digits (22222222)",
        "digits (not recorded)",
    }


def test_results_of_earlier_versions_are_readable(tmp_path):
    """What training wrote says where it was trained, a sweep's targets name the source, an evaluation says nothing."""
    write_run(tmp_path / "run", {"all": 80.0}, classes="all")
    write_run(tmp_path / "target", {"all": 40.0}, classes="all", data="mnist", trained_on="digits", few_shot_hash=None)
    folder = write_run(tmp_path / "eval", TRUE, classes="base")
    values = json.loads((folder / "results.json").read_text())
    del values["few_shot_hash"]
    (folder / "results.json").write_text(json.dumps(values))
    rows = {(row["data"], row["trained on"]) for row in table(report([tmp_path]).text)}
    assert rows == {("digits", ""), ("mnist", "digits, all classes"), ("digits", "not recorded")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_on": 3}, "trained_on is 3"),
        ({"trained_on": {"data": 3}}, "trained_on: data is 3"),
        ({"data_hash": 3}, "data_hash is 3"),
    ],
)
def test_damaged_records_are_named(tmp_path, changes, message):
    write_run(tmp_path / "a", TRUE, **changes)
    write_run(tmp_path / "b", TRUE)
    assert message in report([tmp_path]).text


def test_rows_of_several_settings_are_told_apart(tmp_path):
    """A mean over both would be of neither; the newest run of a seed would hide the other."""
    for number, (settings, precision) in enumerate(
        [({"lr": 0.1, "momentum": 0.9}, "fp32"), ({"lr": 0.2, "momentum": 0.9}, "fp32"), ({"lr": 0.2}, "bf16")]
    ):
        write(tmp_path / "r" / str(number), settings=settings, precision=precision)
    write(tmp_path / "r" / "dtd", data="dtd", source=trained_on("dtd"), settings={"lr": 0.1}, precision="fp32")
    found = report([tmp_path / "r"])
    assert {(row["data"], row["settings"]) for row in table(found.text)} == {
        ("digits", "lr=0.1, precision=fp32"),
        ("digits", "lr=0.2, precision=bf16"),
        ("digits", "lr=0.2, precision=fp32"),
        ("dtd", "lr=0.1, precision=fp32"),
    }
    (means,) = found.means
    assert means.group.settings == "lr=0.1, precision=fp32"


def test_a_name_that_the_options_do_not_make_is_said(tmp_path):
    config = TrainConfig("any", loss=LossConfig(lambda1=0))
    settings = settings_of(config)
    for name in ("rmadapter", "mine"):
        write(tmp_path / "r" / name, method=name, settings=settings)
    text = report([tmp_path / "r"]).text
    made = "custom (rmadapter, loss.lambda1=0)"
    assert f"- The runs that are called rmadapter on digits are by their options: {made}.\n" in text
    assert text.count("by their options") == 1
    write(tmp_path / "s", settings={"adapter": {"other": 1}, "loss": 3})
    assert "by their options" not in report([tmp_path / "s"]).text


def test_two_models_of_one_last_name_are_told_apart(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "r" / name, model=f"local-dir:{name}/clip")
    assert [row["model"] for row in table(report([tmp_path / "r"]).text)] == ["local-dir:a/clip", "local-dir:b/clip"]


def test_two_base_models_under_one_name_are_told_apart(tmp_path):
    for number, base in enumerate(("a" * 64, "b" * 64)):
        write(tmp_path / "r" / str(number), base_hash=base, seed=number)
    rows = table(report([tmp_path / "r"]).text)
    assert {(row["settings"], row["seeds"]) for row in rows} == {
        ("base model=aaaaaaaa", "1"),
        ("base model=bbbbbbbb", "1"),
    }


def change(folder, **values):
    file = folder / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_sweep_s_runs_on_another_data_set_of_the_name_are_shown_apart(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "mma"])
    for seed, content in {1: HERE, 2: HERE, 3: THERE}.items():
        change(folder / "runs" / "mma" / "dtd" / f"seed{seed}" / "run", data_hash=content)
    change(folder / "runs" / "zeroshot" / "dtd" / "run", data_hash=HERE)
    text = sweep_report(folder, tmp_path / "out")
    assert dict(cells(text, "dtd (11111111)", "mma"))["seeds"] == "2"
    assert dict(cells(text, "dtd (22222222)", "mma"))["seeds"] == "1"
    assert "dtd stands for 2 data sets" in text
    with (tmp_path / "out" / "differences.csv").open() as file:
        (line,) = [row for row in csv.DictReader(file) if row["part"] == "new"]
    assert (line["pairs"], line["data_sets"]) == ("5", "2")  # three of eurosat, two of dtd


def test_a_transfer_to_another_data_set_of_the_name_is_shown_apart(tmp_path):
    folder = fake(tmp_path / "s", "cross", ["imagenet", "dtd"], ["mma"], source="imagenet")
    for seed, content in {1: HERE, 2: HERE, 3: THERE}.items():
        change(folder / "runs" / "mma" / "imagenet" / f"seed{seed}" / "on" / "dtd", data_hash=content)
    row = dict(cells(sweep_report(folder), "Trained on imagenet", "mma"))
    assert "±" in row["dtd (11111111)"]
    assert "±" not in row["dtd (22222222)"]
    assert "mean of the others" not in row
    change(folder / "runs" / "mma" / "imagenet" / "seed1" / "run", data_hash=HERE)
    change(folder / "runs" / "mma" / "imagenet" / "seed2" / "run", data_hash=THERE)
    change(folder / "runs" / "mma" / "imagenet" / "seed3" / "run", data_hash=THERE)
    text = sweep_report(folder)
    assert "## Trained on imagenet (11111111)" in text
    assert "## Trained on imagenet (22222222)" in text


def test_what_the_commands_write_is_told_apart(base_run, animals, clip_folder, tmp_path):
    """The case itself: an adapter trained on all classes, evaluated as base and new, beside the run of base to new."""
    runs = tmp_path / "runs"
    shutil.copytree(base_run, runs / "base")
    own = json.loads((runs / "base" / "results.json").read_text())
    where = ["--data", str(animals), "--workers", "0"]
    small = ["--model", f"local-dir:{clip_folder}", "--shots", "4", "--epochs", "1", "--adapter.layers", "2-3"]
    assert main(["train", *where, *small, "--no-evaluate", "--out", str(tmp_path / "all")]) == 0
    for name, adapter in {"again": runs / "base", "other": tmp_path / "all"}.items():
        words = ["--adapter", str(adapter / "adapter"), "--classes", "base_new", "--out", str(runs / name)]
        assert main(["eval", *where, *words, "--precision", "fp32"]) == 0
    again, other = (json.loads((runs / name / "results.json").read_text()) for name in ("again", "other"))
    assert again["trained_on"] == own["trained_on"]
    assert again["settings"] == own["settings"]
    assert (other["classes"], other["trained_on"]["classes"]) == ("all", "all")
    assert other["trained_on"]["data_hash"] == other["data_hash"] == own["data_hash"]
    assert other["trained_on"]["adapter_sha256"] != own["trained_on"]["adapter_sha256"]
    found = report([runs])
    assert {row.group.trained_on: row.accuracy("hm").mean for row in found.rows} == {
        "": pytest.approx(own["accuracy"]["hm"]),
        "animals, all classes": pytest.approx(other["accuracy"]["hm"]),
    }
    copied = write_images(tmp_path / "elsewhere" / "animals", ["ant", "bee", "cat", "dog"], 9)
    words = ["--adapter", str(runs / "base" / "adapter"), "--data", str(copied), "--workers", "0"]
    assert main(["eval", *words, "--classes", "base_new", "--precision", "fp32", "--out", str(runs / "copy")]) == 0
    assert len({row.group.data for row in report([runs]).rows}) == 2
