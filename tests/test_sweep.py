"""Sweeps: all runs of a table, killed and continued, by several workers, with failures, and mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import write_images
from safetensors.torch import load_file

from rmadapter import evaluation, sweep_jobs
from rmadapter import sweep as sweeps
from rmadapter.cli import main
from rmadapter.sweep_config import parse_sweep


@pytest.fixture
def words(tmp_path, clip_folder):
    """The options of a small sweep; two data sets of four classes."""
    for seed, name in enumerate(("animals", "plants")):
        write_images(tmp_path / name, ["ant", "bee", "cat", "dog"], 8, seed)

    def make(protocol="base2new", out="s", data="animals,plants", **options):
        values = {
            "data": ",".join(str(tmp_path / name) for name in data.split(",")),
            "methods": "zeroshot,single",
            "seeds": "1",
            "out": str(tmp_path / out),
            "model": f"local-dir:{clip_folder}",
            "shots": 2,
            "epochs": 1,
            "workers": 0,
            "adapter.layers": "2-3",
            **options,
        }
        return [protocol, *(word for name, value in values.items() for word in (f"--{name}", str(value)))]

    return make


def sweep(*argv):
    return main(["sweep", *argv])


def results_of(folder):
    found = {}
    for file in sorted((folder / "runs").rglob("results.json")):
        values = json.loads(file.read_text())
        found[str(file.relative_to(folder))] = (values["accuracy"], values["images"], values.get("few_shot_hash"))
    return found


def test_base_to_new_writes_every_run_once(words, tmp_path, capsys):
    assert sweep(*words(seeds="1,2")) == 0
    out = capsys.readouterr().out
    assert "6 runs in" in out
    assert "6 done, 0 failed, 0 running, 0 open" in out
    assert out.count("single/animals/seed1: base") == 1
    folder = tmp_path / "s"
    assert set(results_of(folder)) == {
        f"runs/{run}/run/results.json"
        for run in (
            "zeroshot/animals",
            "zeroshot/plants",
            *(f"single/{name}/seed{n}" for name in ("animals", "plants") for n in (1, 2)),
        )
    }
    assert "adapters: backend" in (folder / "runs" / "single" / "plants" / "seed2" / "log.txt").read_text()
    written = {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("results.json")}
    assert sweep(*words(seeds="1,2")) == 0
    assert "[1/6]" not in capsys.readouterr().out
    assert written == {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("results.json")}


def test_it_is_extended_by_seeds_and_methods(words, tmp_path, capsys):
    assert sweep(*words(data="animals")) == 0
    assert sweep(*words(data="plants", methods="mma", seeds="2")) == 0
    manifest = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [name.rpartition("/")[2] for name in manifest["data"]] == ["animals", "plants"]
    assert (manifest["methods"], manifest["seeds"]) == (["zeroshot", "single", "mma"], [1, 2])
    assert "mma/plants/seed2: base" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["cross", "domain"])
def test_trained_on_one_and_tested_on_the_others(words, tmp_path, protocol):
    assert sweep(*words(protocol, source="plants".join((str(tmp_path) + "/", "")))) == 0
    folder = tmp_path / "s" / "runs"
    assert not (folder / "single" / "animals").exists()
    for run in ("single/plants/seed1", "zeroshot/plants"):
        values = json.loads((folder / run / "on" / "animals" / "results.json").read_text())
        assert (values["data"], values["trained_on"], values["classes"]) == ("animals", "plants", "all")
        assert set(values["accuracy"]) == {"all"}
        at_home = json.loads((folder / run / "run" / "results.json").read_text())
        assert (at_home["data"], set(at_home["accuracy"])) == ("plants", {"all"})


def test_the_targets_of_a_run_are_tested_with_one_model(words, tmp_path, monkeypatch):
    """It is loaded once for them, and finds what it finds when it is loaded for each by ``rmadapter eval``."""
    write_images(tmp_path / "stones", ["ore", "tin", "zinc"], 8, 7)
    calls, real = [], evaluation.load_backbone
    argv = words("cross", data="animals,plants,stones", methods="single", source="animals")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "load_backbone", lambda *a: calls.append(a) or real(*a))
        assert sweep(*argv) == 0
    assert len(calls) == 1
    run = tmp_path / "s" / "runs" / "single" / "animals" / "seed1"
    for target in ("plants", "stones"):
        found = json.loads((run / "on" / target / "results.json").read_text())
        options = ["--data", str(tmp_path / target), "--classes", "all", "--workers", "0", "--out", str(tmp_path / "e")]
        assert main(["eval", "--adapter", str(run / "run" / "adapter"), *options]) == 0
        alone = json.loads((tmp_path / "e" / "results.json").read_text())
        assert found.pop("trained_on") == "animals"
        del found["seconds"], alone["seconds"]
        assert found == alone


def test_killed_and_continued_equals_one_that_was_not(words, tmp_path):
    options = {"data": "animals", "methods": "single,rmadapter", "epochs": 3, "batch_size": 2, "checkpoint_every": 1}
    command = [sys.executable, "-m", "rmadapter", "sweep", *words(out="killed", **options)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    state = tmp_path / "killed" / "runs" / "rmadapter" / "animals" / "seed1" / "run" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (state.parent / "results.json").exists()
    first = tmp_path / "killed" / "runs" / "single" / "animals" / "seed1" / "run" / "results.json"
    written = first.stat().st_mtime_ns
    assert sweep(*words(out="killed", **options)) == 0
    assert first.stat().st_mtime_ns == written
    assert "resuming at epoch" in (state.parent.parent / "log.txt").read_text()
    assert sweep(*words(out="whole", **options)) == 0
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
    run = "runs/rmadapter/animals/seed1/run/adapter/adapter.safetensors"
    one, other = load_file(tmp_path / "killed" / run), load_file(tmp_path / "whole" / run)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_workers_share_a_sweep(words, tmp_path):
    command = [sys.executable, "-m", "rmadapter", "sweep", *words(seeds="1,2"), "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    keys = [key for key in (line.rpartition("] ")[2] for line in done.stdout.splitlines()) if key.endswith(" s)")]
    assert len(keys) == len(set(keys)) == 6
    assert done.stdout.count("6 runs in") == done.stdout.count("6 done, 0 failed") == 1
    assert len(results_of(tmp_path / "s")) == 6


def test_a_run_that_another_has_is_left_to_it(words, tmp_path, capsys):
    _, planned = parse_sweep(words(data="animals"))
    (single,) = [run for run in planned.runs() if run.method == "single"]
    sweeps.enter(planned)
    with sweeps.claim(planned, single) as mine:
        assert mine
        # As another process: the lock of this one would be taken again by the same object alone.
        assert sweep(*words(data="animals")) == 0
    out = capsys.readouterr().out
    assert "1 done, 0 failed, 1 running, 0 open" in out
    assert not sweeps.is_done(planned, single)


def test_a_run_whose_worker_is_killed_is_made_by_one_that_lives(words, tmp_path, monkeypatch):
    _, planned = parse_sweep(words(data="animals"))
    began, real = sweeps.enter(planned), sweeps.make_run
    first, second = planned.runs()
    with contextlib.ExitStack() as other:
        assert other.enter_context(sweeps.claim(planned, first))
        made = []

        def make_run(planned, run):
            other.close()  # the other worker ends, and its lock with it
            made.append(run)
            return real(planned, run)

        monkeypatch.setattr(sweeps, "make_run", make_run)
        sweeps.work(planned, began)
    assert made == [second, first]
    assert sweeps.is_done(planned, first)


def test_workers_that_end_early_are_said(words, tmp_path, monkeypatch, capsys):
    killed = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(sweep_jobs, "worker_command", lambda argv, began: [sys.executable, "-c", killed])
    assert sweep(*words(data="animals"), "--jobs", "2") == 1
    out = capsys.readouterr().out
    assert "2 of 2 workers ended early (signal 9, often too little memory)" in out
    assert "0 done, 0 failed, 0 running, 2 open" in out
    refused = "import sys; sys.exit(2 if sys.argv[1] > '1' else 0)"
    monkeypatch.setattr(sweep_jobs, "worker_command", lambda argv, began: [sys.executable, "-c", refused, repr(began)])
    assert sweep(*words(data="animals"), "--jobs", "2") == 1
    assert "2 of 2 workers ended early (exit status 2)" in capsys.readouterr().out


def test_threads_are_shared_among_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert [sweep_jobs.threads_each(jobs) for jobs in (1, 2, 4, 8)] == [6, 3, 1, 1]
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert sweep_jobs.threads_each(2) == 32


def test_a_failed_run_is_reported_and_the_rest_go_on(words, tmp_path, capsys):
    options = {"methods": "single,rmadapter", "data": "animals", "loss.lambda1": 1e38, "lr": 1e3, "epochs": 6}
    assert sweep(*words(**options)) == 1
    out = capsys.readouterr().out
    assert "1 done, 1 failed" in out
    assert "failed: rmadapter/animals/seed1: the loss is not finite" in out
    failed = json.loads((tmp_path / "s" / "runs" / "rmadapter" / "animals" / "seed1" / "failed.json").read_text())
    assert failed["kind"] == "DivergedError"
    assert "Traceback" in failed["traceback"]


def test_a_failed_run_is_tried_again(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "make_run", lambda *_: (_ for _ in ()).throw(OSError("disk is gone")))
    assert sweep(*words(data="animals")) == 1
    assert "2 failed" in capsys.readouterr().out
    monkeypatch.undo()
    assert sweep(*words(data="animals")) == 0
    assert not list((tmp_path / "s").rglob("failed.json"))


def test_workers_of_one_command_try_a_failing_run_once(words, tmp_path, monkeypatch):
    tried = []

    def make_run(_, run):
        tried.append(run.key)
        raise OSError("disk is gone")

    monkeypatch.setattr(sweeps, "make_run", make_run)
    _, planned = parse_sweep(words(data="animals"))
    began = sweeps.enter(planned)
    sweeps.work(planned, began)
    sweeps.work(planned, began)
    assert tried == ["zeroshot/animals", "single/animals/seed1"]
    sweeps.work(planned, sweeps.enter(planned))
    assert tried == 2 * ["zeroshot/animals", "single/animals/seed1"]


def test_dry_run(words, tmp_path, capsys):
    argv = words(methods="zeroshot,single,linear-probe")
    assert sweep(*argv, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "   open  single/plants/seed1: 1 steps, 8 test images" in out
    assert "   open  zeroshot/plants: 0 steps, 8 test images" in out
    assert "6 runs, 0 done; left: 2 steps, 48 test images" in out
    assert not (tmp_path / "s").exists()
    assert sweep(*words(data="animals")) == 0
    capsys.readouterr()
    assert sweep(*argv, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "   done  single/animals/seed1" in out
    assert "6 runs, 2 done" in out
    assert "on one worker" in out
    assert "2 runs of methods without a finished one" in out


def test_a_dry_run_refuses_what_the_sweep_would_and_writes_nothing(words, tmp_path, capsys):
    _, planned = parse_sweep(words(data="animals"))
    sweeps.enter(planned)
    (tmp_path / "taken").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    before = files_of(tmp_path)
    cases = {
        "shots is 4, but the sweep in": words(data="plants", shots=4),
        "where a sweep base2new is": words("cross"),
        "a folder with other files in it (thesis.txt)": words(out="other"),
        "which is a file": words(out="taken"),
    }
    for message, argv in cases.items():
        for dry in (["--dry-run"], []):
            assert sweep(*argv, *dry) == 2
            assert message in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_where_a_run_is_computed_is_not_what_it_computes(words, tmp_path, capsys):
    _, planned = parse_sweep(words(data="animals", device="cuda:0"))
    sweeps.enter(planned)
    others = {"device": "cuda:1", "cache_dir": str(tmp_path / "c"), "max_bad_steps": 1}
    _, planned = parse_sweep([*words(data="animals", **others), "--image_cache"])
    sweeps.enter(planned)
    manifest = tmp_path / "s" / "sweep.json"
    values = json.loads(manifest.read_text())
    assert "device" not in values["settings"]
    assert "cache_limit" in values["settings"]  # where views are kept, their number depends on it
    # It may have been otherwise when the sweep began.
    manifest.write_text(json.dumps({**values, "settings": {**values["settings"], "device": "cuda:0"}}))
    sweeps.enter(planned)


@pytest.mark.parametrize(
    ("protocol", "data", "line", "runs"),
    [
        ("base2new", "testbed", "open  rmadapter/emoji_food@fluent/seed1: ", 18),
        ("base2new", "testbed,testbed@emojione", "open  rmadapter/emoji_food@emojione/seed1: ", 36),
        ("cross", "testbed@openmoji", "open  rmadapter/emoji_animals@openmoji/seed1: ", 3),
        ("domain", "testbed", "open  rmadapter/emoji_animals@fluent/seed1: ", 18),
        ("domain", "testbed@noto", "open  rmadapter/emoji_travel@noto/seed1: ", 18),
    ],
)
def test_the_test_bed_has_a_name(protocol, data, line, runs, tmp_path, capsys):
    assert sweep(protocol, "--data", data, "--seeds", "1", "--out", str(tmp_path / "s"), "--dry-run") == 0
    out = capsys.readouterr().out
    assert line in out
    assert f"{runs} runs, 0 done" in out


@pytest.mark.slow
def test_domain_on_the_test_bed(tmp_path, capsys):
    argv = ["--data", "emoji_travel@fluent,emoji_travel@openmoji", "--methods", "zeroshot,single", "--seeds", "1"]
    argv += ["--shots", "1", "--epochs", "1", "--out", str(tmp_path / "s")]
    assert sweep("domain", *argv) == 0
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "## Trained on emoji_travel@fluent" in out
    assert "emoji_travel@openmoji" in out
    folder = tmp_path / "s" / "runs" / "single" / "emoji_travel@fluent" / "seed1"
    found = json.loads((folder / "on" / "emoji_travel@openmoji" / "results.json").read_text())
    assert (found["style"], found["trained_on"]) == ("openmoji", "emoji_travel@fluent")
    assert sweep("base2new", *argv[:1], "emoji_travel", *argv[2:-1], str(tmp_path / "b")) == 0
    assert main(["report", str(tmp_path / "b"), "--out", str(tmp_path / "report")]) == 0
    assert "## emoji_travel@fluent" in (text := capsys.readouterr().out)
    assert "retained new" in text


def test_what_a_configuration_file_says_of_what_the_sweep_decides_is_passed_over(words, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: x\nstyle: noto\nseed: 7\nout: {tmp_path / 'x'}\nresume: true\nexplain: true\nevaluate: false\n"
    )
    assert sweep(*words(data="animals", config=file)) == 0
    assert not (tmp_path / "x").exists()
    (single,) = (found for name, found in results_of(tmp_path / "s").items() if "single/animals/seed1" in name)
    assert set(single[0]) == {"base", "new", "hm"}
    file.write_text("overwrite: true\nresume: false\n")
    assert sweep(*words(data="animals", config=file)) == 0
    file.write_text("style: noto\n")
    _, planned = parse_sweep(["base2new", "--data", "emoji_food", "--config", str(file)])
    assert {planned.config(run).style for run in planned.runs()} == {"fluent"}  # as its folder's name says


def test_mistakes(words, tmp_path, capsys):
    assert sweep(*words(data="animals")) == 0
    capsys.readouterr()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("")
    cases = {
        "protocol is 'base2old'": words("base2old"),
        "sweep takes one protocol": words()[1:],
        "methods is 'mmaa'": words(methods="mmaa"),
        "seeds has 'x'": words(seeds="1,x"),
        "jobs is 0": words(jobs=0),
        "unknown option '--shotz'; did you mean '--shots'": [*words(), "--shotz", "3"],
        "option '--seed' is decided by this command": words(seed=3),
        "option '--no-evaluate' is decided by this command": [*words(), "--no-evaluate"],
        "option '--explain' is decided by this command": [*words(), "--explain"],
        "shots is 0": words(shots=0),
        "nowhere": words(data="nowhere"),
        "style is 'notto'; valid: ": ["base2new", "--data", "testbed@notto"],
        "data has 'emoji_food@fluent' twice": ["base2new", "--data", "emoji_food,emoji_food@fluent"],
        "keep is 'all'; valid: ": words(keep="all"),
        "where a sweep base2new is": words("cross"),
        "shots is 3, but the sweep in": words(data="animals", shots=3),
        "lr is 0.5, but the sweep in": words(data="animals", lr=0.5),
        "a folder with other files in it (thesis.txt)": words(out="other"),
        "option --shots needs a value": [*words(), "--shots"],
    }
    for message, argv in cases.items():
        assert sweep(*argv) == 2, argv
        assert message in capsys.readouterr().err
    manifest = tmp_path / "s" / "sweep.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    assert sweep(*words(data="animals")) == 2
    assert "was made by another version (format 0, this one has 1)" in capsys.readouterr().err


def files_of(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_results_alone_are_kept_on_request(words, tmp_path):
    argv = words("cross", source="animals", methods="zeroshot,single")
    assert sweep(*argv) == 0
    whole = {name: found for name, found in results_of(tmp_path / "s").items() if "/on/plants/run/" not in name}
    assert any(name.endswith("adapter.safetensors") for name in files_of(tmp_path / "s"))
    assert sweep(*argv, "--keep", "results") == 0  # of what is finished too
    expected = {
        *("sweep.json", "environments.json", ".sweep.lock"),
        *(
            f"runs/{run}/{place}/results.json"
            for run in ("zeroshot/animals", "single/animals/seed1")
            for place in ("run", "on/plants")
        ),
    }
    assert files_of(tmp_path / "s") == expected
    assert results_of(tmp_path / "s") == whole
    (environment,) = json.loads((tmp_path / "s" / "environments.json").read_text())
    assert {"torch", "git", "threads"} <= environment.keys()
    assert sweep(*words("cross", out="t", source="animals", methods="zeroshot,single"), "--keep", "results") == 0
    assert files_of(tmp_path / "t") == expected
    assert results_of(tmp_path / "t") == whole


def test_what_was_not_kept_is_made_again_for_new_targets(words, tmp_path):
    assert sweep(*words("cross", source="animals"), "--keep", "results") == 0
    before = results_of(tmp_path / "s")
    write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    assert sweep(*words("cross", source="animals", data="animals,plants,stones")) == 0
    after = results_of(tmp_path / "s")
    assert "runs/single/animals/seed1/on/stones/results.json" in after
    assert {name: after[name] for name in before} == before
    assert (tmp_path / "s" / "runs" / "single" / "animals" / "seed1" / "run" / "adapter").is_dir()
    log = tmp_path / "s" / "runs" / "single" / "animals" / "seed1" / "log.txt"
    assert "was not kept: it is trained and tested again" in log.read_text()


def test_a_failed_run_keeps_its_log(words, tmp_path):
    options = {"methods": "rmadapter", "data": "animals", "loss.lambda1": 1e38, "lr": 1e3, "epochs": 6}
    assert sweep(*words(**options), "--keep", "results") == 1
    assert {"failed.json", "log.txt"} <= files_of(tmp_path / "s" / "runs" / "rmadapter" / "animals" / "seed1")
