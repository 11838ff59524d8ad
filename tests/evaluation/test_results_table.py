"""The table of results: what is read back, who may add, and what is said of a damaged line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rmadapter.errors import InputError
from rmadapter.evaluation import results_table
from rmadapter.evaluation.results_table import ResultsTable

RESULTS = {"format": 1, "data": "dtd", "accuracy": {"base": 100 / 3, "new": 0.1 + 0.2}, "seconds": {"train": None}}


@pytest.fixture
def table(tmp_path):
    return ResultsTable(tmp_path / "s" / "results.jsonl")


def names(table):
    return [(line.run, line.on) for line in table.lines()]


def test_what_is_added_is_read_back_to_the_last_digit(table):
    assert table.lines() == ()
    assert table.of("mma/dtd/seed1") == {}
    elsewhere = {**RESULTS, "data": "Größe\u2028", "commit": "abc"}
    table.add("mma/dtd/seed1", {None: RESULTS, "eurosat": elsewhere})
    for found in (table, ResultsTable(table.path)):
        home, there = found.of("mma/dtd/seed1").values()
        assert (home.on, home.results) == (None, {"commit": None, **RESULTS})
        assert (there.on, there.results) == ("eurosat", elsewhere)
        assert (home.line, there.line) == (1, 2)
        assert there.place == f"{table.path}, line 2 (mma/dtd/seed1 on eurosat)"
    first = json.loads(table.path.read_text().split("\n")[1])
    assert list(first)[:3] == ["run", "on", "commit"]


def test_what_is_there_is_not_added_twice(table):
    table.add("a", {None: RESULTS})
    before = table.path.read_bytes()
    table.add("a", {None: {**RESULTS, "data": "other"}})
    assert table.path.read_bytes() == before
    table.add("a", {None: {**RESULTS, "data": "other"}, "x": RESULTS})
    assert names(table) == [("a", None), ("a", "x")]
    assert table.of("a")[None].results["data"] == "dtd"


def test_a_run_is_dropped_whole_and_alone(table):
    table.drop("a")
    assert not table.path.exists()
    for run in ("a", "b"):
        table.add(run, {None: RESULTS, "x": RESULTS})
    table.drop("a")
    assert names(table) == [("b", None), ("b", "x")]
    table.add("a", {None: RESULTS})
    assert names(table)[-1] == ("a", None)


ADDING = """
import sys
from pathlib import Path
from rmadapter.evaluation.results_table import ResultsTable
table, worker = ResultsTable(Path(sys.argv[1])), sys.argv[2]
sys.stdin.read()  # until all are there
for number in range(20):
    table.add(f"{worker}/{number}", {None: {"worker": worker}, "x": {"worker": worker}})
"""


def test_processes_that_add_at_once_lose_nothing(table):
    command = [sys.executable, "-c", ADDING, str(table.path)]
    workers = [subprocess.Popen([*command, str(worker)], stdin=subprocess.PIPE) for worker in range(3)]
    for worker in workers:
        worker.stdin.close()
    while any(worker.poll() is None for worker in workers):
        for line in table.lines():  # who reads meanwhile sees whole lines, of whole runs
            assert len(table.of(line.run)) == 2
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    added = [(f"{worker}/{number}", on) for worker in range(3) for number in range(20) for on in (None, "x")]
    assert sorted(names(table), key=str) == sorted(added, key=str)


def test_it_is_read_again_where_it_has_changed_and_else_not(table, monkeypatch):
    table.add("a", {None: RESULTS})
    ResultsTable(table.path).add("b", {None: RESULTS})
    reads, real = [], results_table._parsed
    monkeypatch.setattr(results_table, "_parsed", lambda *given: reads.append(given) or real(*given))
    assert [bool(table.of(run)) for run in "abcabc"] == [True, True, False] * 2
    assert len(reads) == 1
    ResultsTable(table.path).add("c", {None: RESULTS})
    assert table.of("c")
    os.unlink(table.path)
    assert table.lines() == ()
    assert table.of("a") == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"run": "b", "on": nu', "is damaged: JSONDecodeError"),
        ("<<<<<<< HEAD", "is damaged"),
        ("", "is damaged"),
        ("[]", "is damaged"),
        ('{"on": null}', "is damaged: KeyError: 'run'"),
        ('{"run": "b"}', "is damaged: KeyError: 'on'"),
        ('{"run": 3, "on": null}', "is damaged: run is 3, on is None; valid: names"),
        ('{"run": "a", "on": null}', "a stands in line 1 too; valid: one of the two"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_written_over_it(line, said, table):
    table.add("a", {None: RESULTS})
    table.path.write_text(f"{table.path.read_text()}{line}\n")
    before = table.path.read_bytes()
    for use in (table.lines, lambda: table.of("a"), lambda: table.add("c", {None: RESULTS}), lambda: table.drop("a")):
        with pytest.raises(InputError, match="line 2") as caught:
            use()
        assert str(table.path) in str(caught.value)
        assert said in str(caught.value)
    assert table.path.read_bytes() == before


def test_a_table_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(InputError, match=r"results table .*results\.jsonl cannot be read"):
        ResultsTable(tmp_path / "results.jsonl").lines()
