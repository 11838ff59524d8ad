"""The search: what it plans, what it keeps, and by what it judges."""

from __future__ import annotations

import itertools
import json

import pytest

from rmadapter.data import base_new_names
from rmadapter.data.emoji.emoji_data import load_emoji
from rmadapter.errors import InputError
from rmadapter.evaluation.results_file import harmonic_mean
from rmadapter.methods.naming import method_name
from rmadapter.reports.run_report import report
from rmadapter.runtime import git_revision
from rmadapter.testbed import demo, runs, search

BRIEF = {"epochs": 1, "shots": 1}


def test_a_run_is_kept_with_its_settings_and_not_made_again(few_emoji, tmp_path, monkeypatch):
    plan = [
        runs.TestbedRun("zeroshot/a", "emoji_activities", "fluent", None, {}),
        runs.TestbedRun("rmadapter/a", "emoji_activities", "fluent", 2, {**BRIEF, "lambda1": 30.0, "scale": 0.3}),
    ]
    zeroshot, trained = runs.run_planned(plan, tmp_path)
    assert zeroshot["method"] == "zeroshot"
    assert trained["method"] == "rmadapter"
    assert trained["seed"] == 2
    assert trained["settings"].keys() == {"epochs", "lr", "scale", "lambda1", "lambda2", "lambda3", "lambda4"}
    assert (trained["settings"]["epochs"], trained["settings"]["lambda1"], trained["settings"]["scale"]) == (1, 30, 0.3)
    for result in (zeroshot, trained):
        assert result["accuracy"].keys() == {"base", "new", "hm", "retained_base", "retained_new"}
        assert result["style"] == "fluent"
        assert result["retention_style"] == "emojione"
    monkeypatch.setattr(runs, "_run", None)
    assert runs.run_planned(plan, tmp_path) == [zeroshot, trained]
    assert {path.name for path in tmp_path.iterdir()} - {".results.jsonl.lock"} == {"results.jsonl"}
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line.pop("run"), line.pop("on")) for line in lines] == [("zeroshot/a", None), ("rmadapter/a", None)]
    assert lines == [zeroshot, trained]
    assert zeroshot["commit"] == trained["commit"] == git_revision()
    text = report([tmp_path], tmp_path / "report").text
    assert "retained base" in text
    assert "fluent" in text
    assert "neither pretraining nor training has seen" in text


def test_results_of_other_weights_are_not_judged_together_with_these(tmp_path, monkeypatch):
    plan = [
        runs.TestbedRun("one", "emoji_food", "fluent", 1, {}),
        runs.TestbedRun("two", "emoji_food", "fluent", 1, {}),
    ]
    monkeypatch.setattr(runs, "_run", lambda run, data: {"accuracy": {}, "base_hash": "of before"})
    runs.run_planned(plan[:1], tmp_path)
    with pytest.raises(InputError, match=r"results of another emoji-clip \(base_hash of before, this one's is \w+\)"):
        runs.run_planned(plan, tmp_path)


def test_no_run_begins_after_the_budget(tmp_path, capsys):
    plan = [runs.TestbedRun("zeroshot/a", "emoji_activities", "fluent", None, {})]
    assert runs.run_planned(plan, tmp_path, budget=-1) == []
    assert "the same command goes on with the other 1 runs" in capsys.readouterr().out


def test_workers_share_the_runs(tmp_path, monkeypatch, capsys):
    plan = [runs.TestbedRun(str(number), "emoji_food", "fluent", 1, {}) for number in range(5)]
    monkeypatch.setattr(runs, "_run", lambda run, data: {"accuracy": {}, "made": run.name})
    assert [result["made"] for result in runs.run_planned(plan, tmp_path, worker="2/2")] == ["1", "3"]
    assert [result["made"] for result in runs.run_planned(plan, tmp_path, worker="1/2")] == list("01234")
    capsys.readouterr()
    assert len(runs.run_planned(plan, tmp_path)) == 5
    assert capsys.readouterr().out == "0 of 5 runs to make\n"
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(InputError, match="worker is"):
            runs.run_planned(plan, tmp_path, worker=wrong)


def test_a_run_that_another_process_has_made_meanwhile_is_kept_once(tmp_path, monkeypatch):
    plan = [runs.TestbedRun(name, "emoji_food", "fluent", 1, {}) for name in "ab"]

    def run(planned, data):
        if planned.name == "a":
            with monkeypatch.context() as patch:
                patch.setattr(runs, "_run", lambda planned, data: {"accuracy": {}, "by": "the other"})
                runs.run_planned(plan[1:], tmp_path)
        return {"accuracy": {}, "by": "this one"}

    monkeypatch.setattr(runs, "_run", run)
    assert [result["by"] for result in runs.run_planned(plan, tmp_path)] == ["this one", "the other"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


def test_a_diverged_run_is_kept_as_such_and_left_out_of_the_ranking(tmp_path):
    plan = [runs.TestbedRun("rmadapter/a", "emoji_activities", "fluent", 1, {**BRIEF, "lr": 1e9, "lambda1": 100.0})]
    (found,) = runs.run_planned(plan, tmp_path)
    assert "not finite" in found["diverged"]
    assert found["commit"] == git_revision()
    assert search.judge([found], [judged(40, 40)]) == []


def test_the_search_sees_base_classes_of_groups_that_the_demo_does_not_show():
    assert demo.DemoConfig().data not in search.DATA
    data = load_emoji(search.DATA[0], search.STYLE)
    base = base_new_names(data.class_names, "base")
    seen = search.base_only(data)
    assert seen.class_names == base
    assert {item.name for item in [*seen.train, *seen.val, *seen.test]} == set(base)
    assert seen.retention.class_names == base
    assert seen.read(seen.test[0].path).size == (48, 48)


def test_the_search_covers_its_grids():
    grid = search.grid()
    assert 2 * runs.train_config("emoji_food", "fluent", 1).epochs == search.EPOCHS
    assert {(one["lr"], one["lambda3"]) for one in grid} == set(
        itertools.product(search.LEARNING_RATES, search.CONSISTENCY)
    )
    assert search.SCALE in search.SCALES
    assert {0.0015, 0.15} <= set(search.LEARNING_RATES)
    assert {0, 30} <= set(search.CONSISTENCY)
    assert all(one["reconstruct"] is False and one["lambda1"] == one["lambda2"] == 0 for one in grid)
    assert all(one["lambda4"] == 2.5 * one["lambda3"] for one in grid)
    mma = search.mma_grid()
    assert all(one["shared_layer"] and one["activation"] == "relu" and one["lambda3"] == 0 for one in mma)
    planned = [*search.plan("single", grid, (1, 2)), *search.plan("mma", mma, (1,)), *search.plan_zeroshot()]
    assert len({run.name for run in planned}) == len(planned)
    assert [(run.data, run.seed) for run in planned[:2]] == [(name, 1) for name in search.DATA]
    assert all(run.changes["epochs"] == search.EPOCHS for run in planned if run.seed)


def judged(base, new, retained=30.0, **settings):
    accuracy = {"base": base, "new": new, "hm": harmonic_mean(base, new)}
    return {"settings": settings, "accuracy": {**accuracy, "retained_base": retained, "retained_new": retained + 2}}


def test_a_setting_that_keeps_new_classes_goes_before_one_that_gains_more_and_loses_them():
    zeroshot = [judged(40, 40), judged(50, 44)]  # 45, 42, 31 retained
    done = [
        judged(90, 41.4, lr=1),  # 0.1 short on new classes
        judged(70, 41.6, lr=2),
        judged(60, 41.6, lr=3),
        judged(80, 45, 27.9, lr=4),  # 0.1 short in retention
        judged(95, 30, 20, lr=5),
        {**judged(99, 99, lr=6), "diverged": "the loss"},
    ]
    found = search.judge(done, zeroshot)
    assert [one.settings["lr"] for one in found] == [2, 3, 4, 1, 5]
    assert found[0].gain == pytest.approx({"base": 25, "new": -0.4, "retained": 0})
    assert [round(one.shortfall, 9) for one in found] == [0, 0, 0.1, 0.1, 11.5 + 8]
    assert "| 2 | 70.00 | 41.60 |" in search.table("x", found, ["lr"]).markdown()


def test_settings_are_judged_by_the_mean_over_their_runs_and_those_that_lack_one_not_at_all():
    zeroshot = [judged(40, 40)]
    done = [
        judged(60, 50, lr=1),
        judged(70, 52, lr=1),
        judged(64, 55, lr=2),
        judged(66, 53, lr=2),
        judged(99, 99, lr=3),
    ]
    found = search.judge(done, zeroshot)
    assert [(one.settings["lr"], one.accuracy["base"], one.accuracy["new"], one.runs) for one in found] == [
        (2, 65, 54, 2),
        (1, 65, 51, 2),
    ]


def test_the_search_goes_on_from_the_best_of_each_part(tmp_path, monkeypatch):
    """Runs are made up: lr 0.015 keeps new classes, and of its settings scale 0.1 with consistency 10 has the most."""

    def made(planned, out, **_):
        results = []
        for run in planned:
            changes = run.changes
            if run.seed is None:
                results.append(judged(40, 40))
                continue
            best = ((changes["lr"], changes["lambda3"]) == (0.015, 10)) + (changes["scale"] == 0.1)
            settings = {name: changes[name] for name in ("lr", "scale", "lambda1", "lambda3")}
            new = 50 if changes["lr"] <= 0.015 else 30
            results.append(judged(80 + 5 * best - changes["lambda1"] / 10, new, 35, **settings))
        names.extend(run.name for run in planned)
        return results

    names = []
    monkeypatch.setattr(search, "run_planned", made)
    text = search.search(tmp_path)
    assert (tmp_path / "tables.md").read_text() == text
    assert "rmadapter/lr0.015-scale0.1-reconstruction10-consistency10/emoji_symbols-seed3" in names
    assert {name.split("/")[1].split("-")[0] for name in names if name.startswith("rmadapter/")} == {"lr0.015"}
    assert len({name for name in names if name.startswith("mma/") and name.endswith("seed2")}) == 2 * (
        search.MMA_FINALISTS + len(search.SCALES) - 1
    )
    assert "base 40.00, new 40.00" in text


def test_a_search_that_is_not_done_says_how_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run_planned", lambda planned, out, **_: [])
    with pytest.raises(InputError, match="0 of 2 runs are done; the same command goes on"):
        search.search(tmp_path)


@pytest.mark.parametrize("method", runs.COMPARED)
def test_methods_share_everything_but_what_they_are(method):
    config = runs.train_config("emoji_food", "emojione", 3, **runs.COMPARED[method])
    other = runs.train_config("emoji_food", "emojione", 3)
    assert method_name(config) == method
    same = ("data", "style", "seed", "model", "epochs", "lr", "batch_size", "shots", "augmentation", "classes")
    assert all(getattr(config, name) == getattr(other, name) for name in same)
    assert config.adapter.scale == other.adapter.scale
