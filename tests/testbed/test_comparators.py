"""The search of the other methods' rates: what it tries, with which configuration, and what it writes."""

from __future__ import annotations

import json

import pytest

from rmadapter.errors import InputError
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED
from rmadapter.methods.options import configure
from rmadapter.sweeps.protocols import default_methods
from rmadapter.testbed import comparators, runs


def test_every_trained_method_of_a_table_has_its_rate_searched():
    assert all(METHODS[name].kind == TUNED for name in comparators.METHODS)
    tables = {name for protocol in ("base2new", "cross", "domain", "fewshot") for name in default_methods(protocol)}
    trained = {name for name in tables if METHODS[name].kind == TUNED}
    assert trained - {"single", "mma", "rmadapter"} <= set(comparators.METHODS)  # those have a search of their own


def test_rates_are_multiples_of_one_and_epochs_twice_as_many():
    own = configure("coop", ["--data", "emoji_activities"])
    assert comparators.rates("coop") == pytest.approx([0.005, 0.015, 0.05, 0.15])
    planned = comparators.plan("coop", [0.5], (1, 2))
    assert len(planned) == 4
    assert len({run.name for run in planned}) == 4
    assert all(run.changes == {"lr": 0.5, "epochs": 2 * own.epochs} for run in planned)


def test_a_run_has_the_method_s_own_configuration():
    config = runs.train_config("emoji_activities", "noto", 3, "coop", lr=0.5)
    assert (config.lr, config.style, config.seed) == (0.5, "noto", 3)
    assert config.prompt.text_tokens == 4
    assert not config.adapter.reconstruct
    assert config.loss.lambda3 == 0


def test_the_search_ranks_the_rates_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    made = []

    def fake(run, data):
        made.append(run.name)
        lr = run.changes.get("lr", 0.0)
        new = 50 if run.seed is None else 50 - 10 * lr
        accuracy = {"base": 60 + 10 * lr, "new": new, "hm": 50 + lr, "retained_base": 40.0, "retained_new": 40.0}
        return {"accuracy": accuracy, "settings": {"lr": lr}}

    monkeypatch.setattr(runs, "_run", fake)
    text = comparators.search(tmp_path, ["coop"])
    assert (tmp_path / "tables.md").read_text() == text
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(made) == 2 + 4 * 2 + 2 * 2 * 2
    rates = comparators.rates("coop")
    kept = [rate for rate in rates if 10 * rate <= 0.5]
    first = text.split("coop, the best with all seeds")[1].split("\n")
    best = next(line for line in first if line.startswith("|") and "lr" not in line and "--" not in line)
    assert best.split("|")[1].strip() == f"{max(kept):g}"
    comparators.search(tmp_path, ["coop"])
    assert len(made) == len(lines)


def test_a_method_that_is_not_searched_is_refused():
    with pytest.raises(InputError, match="methods is 'rmadapter'; valid: 'coop'"):
        comparators.run_comparators(comparators.ComparatorsConfig(methods="coop,rmadapter"))
