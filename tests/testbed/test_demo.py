"""The demo on one seed and one epoch, and its bad input."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmadapter.errors import InputError
from rmadapter.testbed import demo


@pytest.mark.slow
def test_from_nothing_to_a_table_and_plots_and_nothing_twice(tmp_path: Path, capsys):
    config = demo.DemoConfig(out=str(tmp_path / "demo"), data="emoji_activities", seeds=1, epochs=1)
    folder = demo.run_demo(config)
    shown = capsys.readouterr().out
    with (folder / "report.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"zeroshot", "single", "rmadapter"}
    for row in rows.values():
        assert row["style"] == "fluent"
        for column in ("base_mean", "new_mean", "hm_mean", "retained_base_mean", "retained_new_mean"):
            assert 0 < float(row[column]) <= 100
    assert float(rows["rmadapter"]["base_mean"]) > float(rows["zeroshot"]["base_mean"])
    assert int(rows["rmadapter"]["trained_parameters"]) > int(rows["single"]["trained_parameters"]) > 0
    assert (folder / "base_new.png").stat().st_size > 10_000
    assert "retained new" in shown
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo" / "runs").rglob("results.json")}
    demo.run_demo(config)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("shortcuts", [True, False])
def test_shortcuts_are_those_of_every_run(tmp_path: Path, monkeypatch, shortcuts):
    made = []
    monkeypatch.setattr(demo, "run_eval", lambda config: None)
    monkeypatch.setattr(demo, "train", made.append)
    monkeypatch.setattr(demo, "report", lambda runs, out: SimpleNamespace(text="", files=[]))
    demo.run_demo(demo.DemoConfig(out=str(tmp_path), seeds=2, shortcuts=shortcuts))
    assert [(run.shortcuts, run.views) for run in made] == [(shortcuts, int(shortcuts))] * 4
    assert {run.cache_dir for run in made} == {str(tmp_path / "cache")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "emoji_foods"}, "data is 'emoji_foods'.*did you mean 'emoji_food'"),
        ({"style": "apple"}, "style is 'apple'; valid: 'noto'"),
        ({"seeds": 0}, "seeds is 0"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        demo.DemoConfig(**options)
