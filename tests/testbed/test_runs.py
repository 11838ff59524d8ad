"""Search and claim: what they plan, what they keep, and the arithmetic of their tables."""

from __future__ import annotations

import json

import pytest

from rmadapter.data import base_new_names
from rmadapter.data.emoji.emoji_data import load_emoji
from rmadapter.errors import InputError
from rmadapter.methods.naming import method_name
from rmadapter.reports.run_report import report
from rmadapter.runtime import git_revision
from rmadapter.testbed import claim, demo, runs, search

BRIEF = {"epochs": 1, "shots": 1}


def test_a_run_is_kept_with_its_settings_and_not_made_again(tmp_path, monkeypatch):
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
    assert trained["second_half"]["grad_norm_reconstruction"] > 0
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
    assert search.ranking([found]) == []


def test_the_search_sees_base_classes_of_groups_that_demo_and_claim_do_not_show():
    assert not set(search.DATA) & {*claim.DATA, demo.DemoConfig().data}
    data = load_emoji(search.DATA[0], search.STYLE)
    base = base_new_names(data.class_names, "base")
    seen = search.base_only(data)
    assert seen.class_names == base
    assert {item.name for item in [*seen.train, *seen.val, *seen.test]} == set(base)
    assert seen.retention.class_names == base
    assert seen.read(seen.test[0].path).size == (48, 48)


def test_the_search_covers_its_grids_within_method_md():
    training = [
        *search.plan_training("single", search.COMPARED["single"]),
        *(mma := search.plan_training("mma", search.MMA)),
    ]
    assert len({run.name for run in training}) == len(training)
    assert all(run.changes["reconstruct"] is False for run in training)
    assert all(run.changes["shared_layer"] and run.changes["activation"] == "relu" for run in mma)
    rows = [{"lr": rate, "scale": scale} for scale in (0.1, 0.3) for rate in search.LEARNING_RATES]
    assert search.slower(rows) == [{"lr": rate, "scale": 0.1} for rate in search.SLOWER]
    losses = search.plan_losses({"epochs": 3, "lr": 0.1, "scale": 0.2, "hm": 1})
    assert len({run.name for run in losses}) == len(losses)
    assert len(losses) == len(search.RECONSTRUCTION) * len(search.CONSISTENCY) * len(search.DATA) * len(search.SEEDS)
    for run in losses:
        changes = run.changes
        assert (changes["epochs"], changes["lr"], changes["scale"]) == (3, 0.1, 0.2)
        assert changes["lambda1"] == changes["lambda2"]
        assert changes["lambda4"] == 2.5 * changes["lambda3"]


def test_ranking_is_by_the_mean_harmonic_mean():
    def result(lr, hm, **more):
        return {"settings": {"lr": lr}, "accuracy": {"hm": hm}, "second_half": {}, **more}

    done = [result(1, 50), result(1, 60), result(2, 54), result(2, 58), result(3, 90, diverged="x"), result(4, 99)]
    found = search.ranking(done)  # of 4 a run is missing
    assert [(row["lr"], row["hm"], row["runs"]) for row in found] == [(2, 56, 2), (1, 55, 2)]


def test_every_prefix_of_the_claim_is_balanced():
    plan = claim.plan()
    methods = len(claim.CONTROLLED)
    controlled = 8 + 8 * methods * claim.CONTROL_SEEDS
    assert len(plan) == controlled + 8 * (methods - 1) * (10 - claim.CONTROL_SEEDS)
    assert len({run.name for run in plan}) == len(plan)
    first_seed = plan[8 : 8 + 8 * methods]
    assert {run.seed for run in first_seed} == {1}
    for pair in range(8, controlled, methods):
        assert len({(run.data, run.style, run.seed) for run in plan[pair : pair + methods]}) == 1
    for pair in range(controlled, len(plan), methods - 1):
        assert len({(run.data, run.style, run.seed) for run in plan[pair : pair + methods - 1]}) == 1


def test_the_control_is_rmadapter_without_reconstruction():
    config = runs.train_config("emoji_food", "fluent", 1, **claim.CONTROLLED[claim.CONTROL])
    whole = runs.train_config("emoji_food", "fluent", 1)
    assert method_name(config) == claim.CONTROL
    assert (config.loss.lambda3, config.loss.lambda4) == (whole.loss.lambda3, whole.loss.lambda4)


def results(differences: dict[tuple[str, str, int], float]) -> list[dict]:
    parts = dict.fromkeys(claim.PARTS, 50.0)
    zeroshot = [
        {"data": data, "style": style, "seed": None, "method": "zeroshot", "accuracy": dict.fromkeys(parts, 40.0)}
        for data, style in sorted({key[:2] for key in differences})
    ]
    single, both = (
        [
            {
                "data": d,
                "style": s,
                "seed": n,
                "method": method,
                "accuracy": {**parts, "new": 50 + add * value},
                "second_half": {"grad_norm_cross_entropy": 2.0, "grad_norm_reconstruction": 0.5} if add else {},
            }
            for (d, s, n), value in differences.items()
        ]
        for method, add in (("single", 0), ("rmadapter", 1))
    )
    return [*zeroshot, *single, *both]


def test_differences_are_paired_and_their_error_is_over_groups():
    found = claim.summary(
        results(
            {
                ("a", "fluent", 1): 1.0,
                ("a", "fluent", 2): 3.0,  # group a: 2
                ("b", "fluent", 1): 6.0,  # group b: 6
            }
        )
    )
    lines = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in found.splitlines() if line.startswith("| ")}
    assert [cell.strip() for cell in lines["rmadapter - single"]][:2] == ["+0.00 ± 0.00", "+4.00 ± 2.00"]
    assert lines["zero-shot"][0].strip() == "40.00 ± 0.00"
    assert lines["rmadapter"][1].strip() == "54.00 ± 2.00"
    assert lines["groups in which rmadapter is higher"][1].strip() == "2 of 2"
    assert "3 pairs" in found
    assert "RMAdapter's 3 runs: 2 from cross-entropy, 0.5 from reconstruction" in found


def test_the_control_tells_consistency_from_reconstruction():
    found = results({("a", "fluent", 1): 5.0, ("b", "fluent", 1): 5.0})
    control = [
        {**one, "method": claim.CONTROL, "accuracy": {**one["accuracy"], "new": 53.0}}
        for one in found
        if one["method"] == "single"
    ]
    assert "reconstruction, 2 triples" not in claim.summary(found)
    text = claim.summary([*found, *control])
    assert "reconstruction, 2 triples" in text
    rows = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if line[:2] == "| "}
    assert rows["single+consistency - single"] == "+3.00 ± 0.00"
    assert rows["rmadapter - single+consistency"] == "+2.00 ± 0.00"


def test_a_run_without_its_partner_does_not_count():
    found = results({("a", "fluent", 1): 1.0, ("b", "fluent", 1): 2.0})
    assert len(claim.complete(found[:-1])) == 1
    assert "No seed is complete yet" in claim.summary(found[:3])


@pytest.mark.parametrize("method", runs.COMPARED)
def test_methods_share_everything_but_what_they_are(method):
    config = runs.train_config("emoji_food", "emojione", 3, **runs.COMPARED[method])
    other = runs.train_config("emoji_food", "emojione", 3)
    assert method_name(config) == method
    same = ("data", "style", "seed", "model", "epochs", "lr", "batch_size", "shots", "augmentation", "classes")
    assert all(getattr(config, name) == getattr(other, name) for name in same)
    assert config.adapter.scale == other.adapter.scale
