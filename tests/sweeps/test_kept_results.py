"""``rmadapter sweep --keep results``: what is left of finished runs, and that everything still finds it there."""

from __future__ import annotations

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from conftest import write_images
from fake_sweeps import fake
from small_runs import Killed, stop
from small_sweeps import kept_of, results_of, sweep

from rmadapter.cli import main
from rmadapter.evaluation import results_file
from rmadapter.evaluation.results_table import ResultsTable
from rmadapter.reports.run_report import report
from rmadapter.reports.sweep.page import sweep_report
from rmadapter.sweeps import progress
from rmadapter.sweeps.dry_run import _seconds
from rmadapter.sweeps.manifest import read_manifest
from rmadapter.sweeps.progress import hold, is_done, keep_results_alone
from rmadapter.sweeps.settings import Sweep, parse_sweep

KEEP = ("--keep", "results")


def files_of(folder):
    """Without locks."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"}


LEFT = {"sweep.json", "environments.json", "results.jsonl"}


def test_results_alone_are_kept_on_request(sweep_words, tmp_path, capsys):
    argv = sweep_words("cross", source="animals", methods="zeroshot,single")
    assert sweep(*argv) == 0
    whole = {name: found for name, found in results_of(tmp_path / "s").items() if "/on/plants/run/" not in name}
    assert any(name.endswith("adapter.safetensors") for name in files_of(tmp_path / "s"))
    more = [*sweep_words("cross", source="animals", methods="zeroshot,single", seeds="1,2"), "--dry-run"]
    capsys.readouterr()
    assert sweep(*more) == 0
    plan = capsys.readouterr().out
    assert "3 runs, 2 done" in plan
    assert "about " in plan
    assert sweep(*argv, *KEEP) == 0  # of what is finished too
    capsys.readouterr()
    assert sweep(*more) == 0
    assert capsys.readouterr().out == plan
    assert files_of(tmp_path / "s") == LEFT
    assert not (tmp_path / "s" / "runs").exists()
    assert kept_of(tmp_path / "s") == whole
    assert set(whole) == {
        f"runs/{run}/{place}/results.json"
        for run in ("zeroshot/animals", "single/animals/seed1")
        for place in ("run", "on/plants")
    }
    (environment,) = json.loads((tmp_path / "s" / "environments.json").read_text())
    assert {"torch", "git", "threads"} <= environment.keys()
    assert sweep(*sweep_words("cross", out="t", source="animals", methods="zeroshot,single"), *KEEP) == 0
    assert files_of(tmp_path / "t") == LEFT
    assert kept_of(tmp_path / "t") == whole
    before = (tmp_path / "t" / "results.jsonl").read_bytes()
    capsys.readouterr()
    for keep in ((), KEEP):
        assert sweep(*sweep_words("cross", out="t", source="animals", methods="zeroshot,single"), *keep) == 0
        out = capsys.readouterr().out
        assert "2 done, 0 failed, 0 running, 0 open" in out
        assert "[1/2]" not in out
    assert (tmp_path / "t" / "results.jsonl").read_bytes() == before


def planned_of(folder):
    manifest = read_manifest(folder)
    lists = [tuple(manifest[name]) for name in ("data", "methods", "seeds", "sources")]
    return Sweep(manifest["protocol"], *lists, options=(), data_root=None, out=folder, keep="results")


@pytest.mark.parametrize(("protocol", "source"), [("base2new", None), ("cross", "dtd")])
def test_reports_and_estimates_say_what_they_said_of_the_folders(protocol, source, tmp_path):
    folder = fake(tmp_path / "s", protocol, ["dtd", "eurosat"], ["zeroshot", "mma", "rmadapter"], source=source)
    planned = planned_of(folder)

    def said():
        rows = report([folder]).rows
        accuracies = [(row.group, [(run.seed, run.accuracy) for run in row.runs]) for row in rows]
        return sweep_report(folder), accuracies, _seconds(planned, planned.runs())

    before = said()
    assert before[-1]["mma", None, "dtd"] == (63 if source is None else 126)
    for run in planned.runs()[:3]:
        keep_results_alone(planned, run)
    assert said() == before  # of both
    for run in planned.runs():
        keep_results_alone(planned, run)
    assert files_of(folder) == {"sweep.json", "results.jsonl"}
    assert said() == before
    table = folder / "results.jsonl"
    table.write_text(re.sub(r'("accuracy": {"\w+": )', r"\g<1>1", table.read_text(), count=1))  # 80 % is 180 %
    text, *_ = said()
    assert f"Unreadable, left out: results table {table}, line 1 (zeroshot/dtd): accuracy of" in text


def test_a_report_says_what_its_table_has_of_runs_that_are_not_the_sweep_s(tmp_path):
    folder = fake(tmp_path / "s", "cross", ["dtd", "eurosat"], ["zeroshot", "mma"], source="dtd")
    planned = planned_of(folder)
    for run in planned.runs():
        keep_results_alone(planned, run)
    before = sweep_report(folder)
    assert "not in the sweep's plan" not in before
    table = folder / "results.jsonl"
    first, second = table.read_text().splitlines()[:2]
    foreign = [first.replace('"zeroshot/dtd"', '"mma/dtd/seed9"'), second.replace('"on": "eurosat"', '"on": "sun397"')]
    count = len(table.read_text().splitlines())
    table.write_text(table.read_text() + "".join(line + "\n" for line in foreign))
    said = (
        "Left out, since they are not in the sweep's plan: 2 lines of results.jsonl, such as line "
        f"{count + 1}, mma/dtd/seed9."
    )
    assert said in sweep_report(folder)


def test_workers_that_claim_and_delete_at_once_are_not_in_each_others_way(tmp_path):
    """Each goes through all runs, as ``work`` does; a folder may go while another makes it for its claim."""
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "mma", "rmadapter"], seeds=range(8))

    def go_through(_):
        planned = planned_of(folder)
        for run in planned.runs():
            with hold(planned, run):
                pass
            keep_results_alone(planned, run)

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(go_through, range(4)))
    assert len((folder / "results.jsonl").read_text().splitlines()) == 34
    assert files_of(folder) == {"sweep.json", "results.jsonl"}
    assert not (folder / "runs").exists()


def test_a_result_that_goes_into_the_table_while_it_is_looked_for_is_there(tmp_path, monkeypatch):
    """Another worker does it between the look into the table and that into the folder, or between two of those."""
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot", "mma"], seeds=(1,))
    planned = planned_of(folder)
    of, read = ResultsTable.of, progress.read_json
    zeroshot, mma = planned.runs()

    def after_the_first_look(self, run):
        found = of(self, run)
        monkeypatch.setattr(ResultsTable, "of", of)
        keep_results_alone(planned_of(folder), zeroshot)
        return found

    def before_the_file_is_read(*arguments):
        monkeypatch.setattr(progress, "read_json", read)
        keep_results_alone(planned_of(folder), mma)
        return read(*arguments)

    monkeypatch.setattr(ResultsTable, "of", after_the_first_look)
    assert is_done(planned, zeroshot)
    monkeypatch.setattr(progress, "read_json", before_the_file_is_read)
    assert is_done(planned, mma)
    assert not (folder / "runs").exists()


def test_a_claim_waits_for_the_end_of_a_deletion(tmp_path, monkeypatch):
    """Else the folder might go between its making and the lock in it."""
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot"])
    (run,) = planned_of(folder).runs()
    claims = []

    def claimed():
        with hold(planned_of(folder), run) as mine:
            return mine

    def rmtree(path):
        claims.append(other.submit(claimed))
        time.sleep(0.3)
        assert not claims[0].done()
        shutil.rmtree(path)

    monkeypatch.setattr(progress, "shutil", SimpleNamespace(rmtree=rmtree))
    with ThreadPoolExecutor(1) as other:
        keep_results_alone(planned_of(folder), run)
        assert claims[0].result()


def test_what_was_not_kept_is_made_again_for_new_targets(sweep_words, tmp_path):
    assert sweep(*sweep_words("cross", source="animals"), *KEEP) == 0
    before = kept_of(tmp_path / "s")
    write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    assert sweep(*sweep_words("cross", source="animals", data="animals,plants,stones")) == 0
    folder = tmp_path / "s" / "runs" / "single" / "animals" / "seed1"
    assert (folder / "run" / "adapter").is_dir()
    assert "was not kept: it is trained and tested again" in (folder / "log.txt").read_text()
    # Of zero-shot, which trains nothing, the new target's result alone is new.
    assert set(kept_of(tmp_path / "s")) == {name for name in before if "zeroshot" in name}
    assert sweep(*sweep_words("cross", source="animals", data="animals,plants,stones"), *KEEP) == 0
    after = kept_of(tmp_path / "s")
    assert set(after) - set(before) == {
        f"runs/{run}/on/stones/results.json" for run in ("zeroshot/animals", "single/animals/seed1")
    }
    assert {name: after[name] for name in before} == before
    assert files_of(tmp_path / "s") == LEFT


@pytest.mark.parametrize(
    ("targets", "half"),
    [("animals,plants", False), ("animals,plants", True), ("animals,plants,stones", True)],
)
def test_killed_between_the_table_and_the_folder(targets, half, sweep_words, tmp_path, monkeypatch, capsys):
    """Of the folder all is left, or what a stopped deletion has left: an adapter without its configuration."""
    write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    assert sweep(*sweep_words("cross", out="whole", source="animals", data=targets, methods="single"), *KEEP) == 0
    words = sweep_words("cross", source="animals", methods="single")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "shutil", SimpleNamespace(rmtree=stop))
        with pytest.raises(Killed):
            sweep(*words, *KEEP)
    folder = tmp_path / "s" / "runs" / "single" / "animals" / "seed1"
    assert (folder / "run" / "adapter").is_dir()
    assert len(kept_of(tmp_path / "s")) == 2
    if half:
        (folder / "run" / "adapter" / "adapter_config.json").unlink()
        (folder / "on" / "plants" / "results.json").unlink()
    capsys.readouterr()
    assert sweep(*sweep_words("cross", source="animals", data=targets, methods="single"), *KEEP) == 0
    assert ("[1/1]" in capsys.readouterr().out) == ("stones" in targets)
    assert kept_of(tmp_path / "s") == kept_of(tmp_path / "whole")
    assert files_of(tmp_path / "s") == LEFT


def test_a_table_names_the_code_that_found_a_result_not_the_one_that_put_it_there(sweep_words, tmp_path, monkeypatch):
    for revision, words in (("old", sweep_words(data="animals")), ("new", [*sweep_words(seeds="1,2"), *KEEP])):
        monkeypatch.setattr(results_file, "git_revision", lambda revision=revision: revision)
        assert sweep(*words) == 0
    lines = [json.loads(text) for text in (tmp_path / "s" / "results.jsonl").read_text().splitlines()]
    assert {line["run"]: line["commit"] for line in lines} == {
        "zeroshot/animals": "old",
        "single/animals/seed1": "old",
        "zeroshot/plants": "new",
        "single/animals/seed2": "new",
        "single/plants/seed1": "new",
        "single/plants/seed2": "new",
    }


def test_results_on_targets_that_a_later_command_does_not_name_are_kept(sweep_words, tmp_path):
    write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    words = sweep_words("cross", source="animals", data="animals,plants,stones", methods="zeroshot")
    assert sweep(*words) == 0
    assert sweep(*sweep_words("cross", source="animals", methods="zeroshot"), *KEEP) == 0
    assert "runs/zeroshot/animals/on/stones/results.json" in kept_of(tmp_path / "s")
    _, planned = parse_sweep(words)
    assert all(is_done(planned, run) for run in planned.runs())


def test_the_folder_of_a_run_that_another_has_stays(sweep_words, tmp_path):
    words = sweep_words(data="animals", methods="single")
    assert sweep(*words) == 0
    _, planned = parse_sweep(words)
    (run,) = planned.runs()
    with hold(planned, run):
        assert sweep(*words, *KEEP) == 0
        assert (planned.folder(run) / "run" / "adapter").is_dir()
        assert not (tmp_path / "s" / "results.jsonl").exists()
    assert sweep(*words, *KEEP) == 0
    assert files_of(tmp_path / "s") == LEFT


def test_a_damaged_result_is_made_again(sweep_words, tmp_path, capsys):
    """As a full disk or a stop may leave one; it does not count as done."""
    words = sweep_words(data="animals")
    assert sweep(*words) == 0
    damaged = tmp_path / "s" / "runs" / "single" / "animals" / "seed1" / "run" / "results.json"
    before = json.loads(damaged.read_text())["accuracy"]
    damaged.write_text("{")
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    assert "1 of 2 runs are not done" in capsys.readouterr().out
    assert sweep(*words, "--dry-run") == 0
    assert sweep(*words) == 0
    assert json.loads(damaged.read_text())["accuracy"] == before
    assert f"results file {damaged} cannot be read and is made again" in (damaged.parents[1] / "log.txt").read_text()


def test_a_damaged_table_stops_what_would_go_on_without_it(sweep_words, tmp_path, capsys):
    words = sweep_words(data="animals", methods="zeroshot")
    assert sweep(*words, *KEEP) == 0
    table = tmp_path / "s" / "results.jsonl"
    table.write_text(table.read_text() + "{\n")
    capsys.readouterr()
    report_words = ["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]
    for command in (["sweep", *words], ["sweep", *words, "--dry-run"], report_words):
        assert main(command) == 2
        assert f"results table {table}, line 2, is damaged" in capsys.readouterr().err
    assert not (tmp_path / "s" / "runs").exists()


def test_a_failed_run_keeps_its_log(sweep_words, tmp_path):
    options = {"methods": "rmadapter", "data": "animals", "loss.lambda1": 1e38, "lr": 1e3, "epochs": 6}
    assert sweep(*sweep_words(**options), *KEEP) == 1
    assert {"failed.json", "log.txt"} <= files_of(tmp_path / "s" / "runs" / "rmadapter" / "animals" / "seed1")
