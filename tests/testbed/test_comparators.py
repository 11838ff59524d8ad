"""The search of the other methods' rates: what it tries, with which configuration, and what it writes."""

from __future__ import annotations

import math

import pytest

from rmadapter.errors import InputError
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED
from rmadapter.methods.options import configure
from rmadapter.sweeps.protocols import default_methods
from rmadapter.testbed import comparators, runs


def test_every_trained_method_of_a_table_has_its_rate_searched():
    assert {name for name, method in METHODS.items() if method.kind == TUNED and not method.open_vocabulary} - {
        "tip-adapter"  # which has no rate
    } <= set(comparators.METHODS)
    assert all(METHODS[name].kind == TUNED for name in comparators.METHODS)
    tables = {name for protocol in ("base2new", "cross", "domain", "fewshot") for name in default_methods(protocol)}
    trained = {name for name in tables if METHODS[name].kind == TUNED}
    assert trained - {"single", "mma", "rmadapter"} <= set(comparators.METHODS)  # those have a search of their own


def test_rates_are_half_decades_apart_and_epochs_twice_as_many():
    own = configure("coop", ["--data", "emoji_activities"])
    assert [comparators.rate("coop", n) for n in (-2, -1, 0, 1, 2)] == pytest.approx([0.5, 2, 5, 20, 50])
    planned = comparators.plan("coop", 0.5)
    assert len({run.name for run in planned}) == len(planned) == 2
    assert all(run.changes == {"lr": 0.5, "epochs": 2 * own.epochs, "views": 1} for run in planned)


def test_what_is_augmented_has_no_views_kept():
    assert all(run.changes["views"] == 0 for run in comparators.plan("coprompt", 0.5))


def test_a_mean_over_epochs_is_over_as_much_of_the_run():
    own = configure("promptsrc", ["--data", "emoji_activities"])
    assert (own.average, own.epochs) == ("4,1", 5)
    for run in comparators.plan("promptsrc", 0.5):
        assert (run.changes["average"], run.changes["epochs"]) == ("8,2", 10)


def test_a_run_has_the_method_s_own_configuration():
    config = runs.train_config("emoji_activities", "noto", 3, "coop", lr=0.5)
    assert (config.lr, config.style, config.seed) == (0.5, "noto", 3)
    assert config.prompt.text_tokens == 4
    assert not config.adapter.reconstruct
    assert config.loss.lambda3 == 0


@pytest.fixture
def made(monkeypatch):
    """The names of the runs, whose accuracies are best at a rate of 50 and which diverge above 1,000."""
    names = []

    def fake(run, data):
        names.append(run.name)
        lr = run.changes.get("lr", 0.0)
        if lr > 1000:
            return {"diverged": "at once", "accuracy": {}, "settings": {"lr": lr}}
        off = abs(math.log10(lr / 50)) if lr else 3
        accuracy = {"base": 60.0, "new": 50.0, "hm": 60 - off, "retained_base": 40.0, "retained_new": 40.0}
        return {"accuracy": accuracy, "settings": {"lr": lr}}

    monkeypatch.setattr(runs, "_run", fake)
    return names


def first_row(text, method):
    lines = text.split(f"## {method}")[1].split("\n")
    return next(line for line in lines if line.startswith("|") and "lr" not in line and "--" not in line)


def test_the_search_goes_on_to_where_the_best_is_not_at_an_end(tmp_path, made):
    text = comparators.search(tmp_path, ["coop"])
    assert (tmp_path / "tables.md").read_text() == text
    assert first_row(text, "coop").split("|")[1].strip() == "50"
    assert "Zero-shot has base 60.00, new 50.00" in text
    rates = {name.split("/")[1] for name in made if name.startswith("coop")}
    assert rates == {"lr2", "lr5", "lr20", "lr50", "lr200"}
    before = len(made)
    assert comparators.search(tmp_path, ["coop"]) == text  # nothing is made twice
    assert len(made) == before


def test_what_is_bound_to_its_classes_is_judged_by_base_and_retained_base(tmp_path, monkeypatch):
    def fake(run, data):
        lr = run.changes.get("lr", 0.0)
        # The larger rate gains more, and keeps up to 0.006.
        accuracy = {"base": 60.0 + 1e4 * lr, "retained_base": 40.0 - 2 * (lr > 0.002) - 2 * (lr > 0.006)}
        if run.method is None:
            accuracy |= {"new": 50.0, "hm": 55.0, "retained_new": 40.0}
        return {"accuracy": accuracy, "settings": {"lr": lr}}

    monkeypatch.setattr(runs, "_run", fake)
    text = comparators.search(tmp_path, ["taskres"])
    row = [cell.strip() for cell in first_row(text, "taskres").strip("|").split("|")]
    assert row == ["0.006", "120.00", "38.00", "+60.00", "-2.00", "0.00", "2"]
    assert "| lr | base | retained_base | base - zero-shot | retained - zero-shot | shortfall | runs |" in text


@pytest.mark.parametrize(("start", "best"), [(5e4, "500"), (1e9, None), (1e-7, "1e-05")])
def test_the_search_ends(tmp_path, made, monkeypatch, start, best):
    """Too high, so high that nothing converges, and so low that the best is out of reach."""
    monkeypatch.setitem(comparators.METHODS, "coop", start)
    text = comparators.search(tmp_path, ["coop"])
    if best:
        assert first_row(text, "coop").split("|")[1].strip() == best
    assert len({name for name in made if name.startswith("coop")}) <= 2 * (2 * comparators.HALF_DECADES + 1)


def test_a_method_that_is_not_searched_is_refused():
    with pytest.raises(InputError, match="methods is 'rmadapter'; valid: 'coop'"):
        comparators.run_comparators(comparators.ComparatorsConfig(methods="coop,rmadapter"))
