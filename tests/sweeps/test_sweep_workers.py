"""Sweeps that are killed and continued, by several workers, and with runs that fail."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from small_runs import stopped_before_step
from small_sweeps import results_of, sweep

from rmadapter import runtime
from rmadapter.errors import InputError
from rmadapter.sweeps import jobs as sweep_jobs
from rmadapter.sweeps import manifest
from rmadapter.sweeps import run_sweep as sweeps
from rmadapter.sweeps.manifest import enter
from rmadapter.sweeps.progress import hold, is_done
from rmadapter.sweeps.run_sweep import work
from rmadapter.sweeps.settings import parse_sweep


@pytest.mark.slow
def test_killed_and_continued_equals_one_that_was_not(sweep_words, tmp_path):
    options = {"data": "animals", "methods": "single,rmadapter", "epochs": 3, "batch_size": 2, "checkpoint_every": 1}
    command = [sys.executable, "-m", "rmadapter", "sweep", *sweep_words(out="killed", **options)]
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
    assert sweep(*sweep_words(out="killed", **options)) == 0
    assert first.stat().st_mtime_ns == written
    assert "resuming at epoch" in (state.parent.parent / "log.txt").read_text()
    assert sweep(*sweep_words(out="whole", **options)) == 0
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
    run = "runs/rmadapter/animals/seed1/run/adapter/adapter.safetensors"
    one, other = load_file(tmp_path / "killed" / run), load_file(tmp_path / "whole" / run)
    assert all(torch.equal(one[name], other[name]) for name in one)


def precisions(folder):
    return [json.loads(file.read_text())["precision"] for file in sorted((folder / "runs").rglob("results.json"))]


@pytest.mark.parametrize(("first", "later"), [(True, False), (False, True)])
def test_a_run_half_done_on_another_kind_of_device_goes_on_in_its_precision(
    first, later, sweep_words, tmp_path, monkeypatch, capsys
):
    """Workers of two kinds, of which one computes in bf16 where the precision is ``auto``."""
    expected = "bf16" if first else "fp32"
    words = sweep_words(data="animals", seeds="1,2", batch_size=2, checkpoint_every=1)
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: first)
    with stopped_before_step(1, monkeypatch):
        sweep(*words)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["settings"]["precision"] == expected
    said = f"precision {expected}, as this sweep began with"
    assert said not in capsys.readouterr().out
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: later)
    assert sweep(*words) == 0
    assert said in capsys.readouterr().out
    assert precisions(tmp_path / "s") == [expected] * 3
    assert "resuming at epoch" in (tmp_path / "s" / "runs" / "single" / "animals" / "seed1" / "log.txt").read_text()
    assert sweep(*words, "--precision", expected) == 0
    other = "fp32" if first else "bf16"
    assert sweep(*words, "--precision", other) == 2
    assert f"precision is '{other}', but the sweep in" in capsys.readouterr().err


def test_a_worker_whose_device_lacks_the_precision_leaves_the_runs_to_others(
    sweep_words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: True)
    assert sweep(*sweep_words(data="animals", methods="zeroshot")) == 0

    def resolve(name, device):
        if name == "bf16":
            raise InputError("precision is 'bf16', which this old GPU lacks")
        return "fp32"

    monkeypatch.setattr(manifest, "resolve_precision", resolve)
    assert sweep(*sweep_words(data="animals")) == 2
    error = capsys.readouterr().err
    assert "which this old GPU lacks; the sweep in" in error
    assert "is of this precision in all its runs" in error
    assert not list((tmp_path / "s").rglob("failed.json"))
    assert sweep(*sweep_words(data="animals", methods="zeroshot")) == 0  # where nothing is left to make


@pytest.mark.slow  # the next ones have workers in processes of their own too
def test_two_workers_share_a_sweep(sweep_words, tmp_path, capfd):
    assert sweep(*sweep_words(seeds="1,2"), "--jobs", "2") == 0
    out = capfd.readouterr().out  # the workers' too
    # Both write to one file: a line's end may come behind the beginning of the other's line.
    keys = re.findall(r"\] ([\w/]+): base [^()]*\(\d+ s\)", out)
    assert len(keys) == len(set(keys)) == 6
    assert out.count("6 runs in") == out.count("6 done, 0 failed") == 1
    assert len(results_of(tmp_path / "s")) == 6


def test_a_run_that_another_has_is_left_to_it(sweep_words, tmp_path, capsys):
    _, planned = parse_sweep(sweep_words(data="animals"))
    (single,) = [run for run in planned.runs() if run.method == "single"]
    enter(planned)
    with hold(planned, single) as mine:
        assert mine
        # As another process: the lock of this one would be taken again by the same object alone.
        assert sweep(*sweep_words(data="animals")) == 0
    out = capsys.readouterr().out
    assert "1 done, 0 failed, 1 running, 0 open" in out
    assert not is_done(planned, single)


def test_a_run_whose_worker_is_killed_is_made_by_one_that_lives(sweep_words, tmp_path, monkeypatch):
    _, planned = parse_sweep(sweep_words(data="animals"))
    began, real = enter(planned), sweeps.make_run
    first, second = planned.runs()
    with contextlib.ExitStack() as other:
        assert other.enter_context(hold(planned, first))
        made = []

        def make_run(planned, run):
            other.close()  # the other worker ends, and its lock with it
            made.append(run)
            return real(planned, run)

        monkeypatch.setattr(sweeps, "make_run", make_run)
        work(planned, began)
    assert made == [second, first]
    assert is_done(planned, first)


def test_workers_that_end_early_are_said(sweep_words, tmp_path, monkeypatch, capsys):
    killed = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(sweep_jobs, "worker_command", lambda argv, began: [sys.executable, "-c", killed])
    assert sweep(*sweep_words(data="animals"), "--jobs", "2") == 1
    out = capsys.readouterr().out
    assert "2 of 2 workers ended early (signal 9, often too little memory)" in out
    assert "0 done, 0 failed, 0 running, 2 open" in out
    refused = "import sys; sys.exit(2 if sys.argv[1] > '1' else 0)"
    monkeypatch.setattr(sweep_jobs, "worker_command", lambda argv, began: [sys.executable, "-c", refused, repr(began)])
    assert sweep(*sweep_words(data="animals"), "--jobs", "2") == 1
    assert "2 of 2 workers ended early (exit status 2)" in capsys.readouterr().out


def test_threads_are_shared_among_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert [sweep_jobs.threads_each(jobs) for jobs in (1, 2, 4, 8)] == [6, 3, 1, 1]
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert sweep_jobs.threads_each(2) == 32


def test_a_failed_run_is_reported_and_the_rest_go_on(sweep_words, tmp_path, capsys):
    options = {"methods": "single,rmadapter", "data": "animals", "loss.lambda1": 1e38, "lr": 1e3, "epochs": 6}
    assert sweep(*sweep_words(**options)) == 1
    out = capsys.readouterr().out
    assert "1 done, 1 failed" in out
    assert re.search("failed: rmadapter/animals/seed1: the .*is not finite at", out)
    failed = json.loads((tmp_path / "s" / "runs" / "rmadapter" / "animals" / "seed1" / "failed.json").read_text())
    assert failed["kind"] == "DivergedError"
    assert "Traceback" in failed["traceback"]


def test_a_failed_run_is_tried_again(sweep_words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "make_run", lambda *_: (_ for _ in ()).throw(OSError("disk is gone")))
    assert sweep(*sweep_words(data="animals")) == 1
    assert "2 failed" in capsys.readouterr().out
    monkeypatch.undo()
    assert sweep(*sweep_words(data="animals")) == 0
    assert not list((tmp_path / "s").rglob("failed.json"))


def test_workers_of_one_command_try_a_failing_run_once(sweep_words, tmp_path, monkeypatch):
    tried = []

    def make_run(_, run):
        tried.append(run.key)
        raise OSError("disk is gone")

    monkeypatch.setattr(sweeps, "make_run", make_run)
    _, planned = parse_sweep(sweep_words(data="animals"))
    began = enter(planned)
    work(planned, began)
    work(planned, began)
    assert tried == ["zeroshot/animals", "single/animals/seed1"]
    work(planned, enter(planned))
    assert tried == 2 * ["zeroshot/animals", "single/animals/seed1"]
