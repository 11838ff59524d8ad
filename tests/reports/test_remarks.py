"""What a report says of runs whose numbers mean something else than those beside them."""

from __future__ import annotations

import pytest
from run_folders import write_run

from rmadapter.reports.run_report import report


def said_of(tmp_path, *changes):
    for number, change in enumerate(changes, start=1):
        write_run(tmp_path / "r" / str(number), {"base": 90.0, "new": 60.0}, **{"seed": number, **change})
    return [line[2:] for line in report([tmp_path / "r"]).text.splitlines() if line.startswith("- ")]


def test_nothing_is_said_of_runs_that_are_alike(tmp_path):
    findings = {"small_classes": 0, "test_images_seen": 0}
    same = {"commit": "1" * 40, "data_findings": findings, "skipped": 0}
    assert said_of(tmp_path, same, same, {"commit": None}) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([{}, {"skipped": 3}], "Of digits up to 3 test images could not be read, in 1 of 2 runs."),
        (
            [{}, {"images": {"base": 450, "new": 446}}],
            "The runs on digits were tested on 446 and 449 images (new classes): what they differ by is not of the "
            "same images.",
        ),
        (
            [{"data_findings": {"test_images_seen": 6}}, {"data_findings": {"test_images_seen": 2}}, {}],
            "In 2 of 3 runs on digits, up to 6 test images are among the training images.",
        ),
        (
            [{"data_findings": {"small_classes": 3}}],
            "In 1 of 1 runs on digits, up to 3 classes have fewer training images than the shots that are named.",
        ),
        (
            [{"commit": "a" * 40}, {"commit": "a" * 40}, {"commit": "b" * 40 + "+changes"}],
            "The runs are of 2 commits: aaaaaaa (2), bbbbbbb+changes (1).",
        ),
        ([{"device": "cuda:0"}, {}], "The runs are of 2 devices: cuda:0 (1), cpu (1)."),
    ],
)
def test_what_is_said(tmp_path, changes, sentence):
    assert said_of(tmp_path, *changes) == [sentence]


@pytest.mark.parametrize(("name", "value"), [("strength", 0.5), ("unknown", "zeroshot")])
def test_answers_in_another_way_are_rows_of_their_own(tmp_path, name, value):
    """They are recorded where they are not as trained; what has no value is."""
    write_run(tmp_path / "r" / "1", {"base": 90.0, "new": 60.0}, seed=1)
    write_run(tmp_path / "r" / "2", {"base": 80.0, "new": 70.0}, seed=1, settings={name: value})
    rows = report([tmp_path / "r"]).rows
    default = {"strength": 1, "unknown": "refuse"}[name]
    found = {row.group.settings: (len(row.runs), row.mean("base")) for row in rows}
    assert found == {f"{name}={default}": (1, 90), f"{name}={value}": (1, 80)}
