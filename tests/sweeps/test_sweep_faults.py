"""Sweeps whose devices fail under a worker: the run goes to another process, and one bad worker fails nothing."""

from __future__ import annotations

import json

import pytest
import torch
from small_sweeps import sweep

from rmadapter.errors import InputError
from rmadapter.sweeps import run_sweep as sweeps
from rmadapter.sweeps import worker
from rmadapter.sweeps.faults import FAULT_STATUS, DeviceFaultError, is_device_fault
from rmadapter.sweeps.jobs import _reason
from rmadapter.sweeps.manifest import enter
from rmadapter.sweeps.progress import state
from rmadapter.sweeps.settings import parse_sweep
from rmadapter.sweeps.worker import work_once

ILLEGAL = "CUDA error: an illegal memory access was encountered"


def fault():
    return torch.AcceleratorError(ILLEGAL)


def wrapped():
    error = InputError("cuda_graphs is True, but the step cannot be recorded")
    error.__cause__ = RuntimeError(ILLEGAL)
    return error


@pytest.mark.parametrize("make", [fault, wrapped, lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")])
def test_a_device_fault_is_told_from_other_errors(make):
    assert is_device_fault(make())
    for other in (InputError("lr is -1"), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shape")):
        assert not is_device_fault(other)


class Workers:
    """In place of a sweep's processes: each makes runs until its device fails, at the calls in ``faulty``."""

    def __init__(self, monkeypatch, faulty):
        self.faulty, self.made, self.started = faulty, [], 0
        monkeypatch.setattr(sweeps, "make_run", self.make_run)
        monkeypatch.setattr(sweeps, "run_jobs", self.run_jobs)
        monkeypatch.setattr(worker, "work", sweeps.work)

    def make_run(self, planned, run):
        self.made.append(run.key)
        if self.faulty(len(self.made) - 1, run):
            raise fault()
        folder = planned.folder(run) / "run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text("{}")
        return {"accuracy": {}}

    def run_jobs(self, argv, jobs, began):
        self.started += jobs
        return FAULT_STATUS in [work_once([repr(began), *argv]) for _ in range(jobs)]


KEYS = ["zeroshot/animals", "single/animals/seed1", "single/animals/seed2"]


@pytest.fixture
def words(sweep_words):
    return sweep_words(data="animals", seeds="1,2")


def test_a_worker_whose_device_fails_ends_and_leaves_its_run_to_others(words, tmp_path, monkeypatch):
    workers = Workers(monkeypatch, lambda number, _: number == 0)
    _, planned = parse_sweep(words)
    began = enter(planned)
    with pytest.raises(DeviceFaultError, match="zeroshot/animals: left to another process, since the device failed: "):
        sweeps.work(planned, began)
    assert [run.key for run in state(planned).open] == KEYS
    assert not list((tmp_path / "s").rglob("failed.json"))
    sweeps.work(planned, began)
    assert workers.made == [KEYS[0], *KEYS]
    assert [run.key for run in state(planned).done] == KEYS
    assert not list((tmp_path / "s").rglob("faults.json"))


@pytest.mark.parametrize(("jobs", "started"), [("1", 1), ("2", 2)])
def test_what_a_worker_leaves_another_makes_or_a_new_one(words, monkeypatch, capsys, jobs, started):
    workers = Workers(monkeypatch, lambda number, _: number == 0)
    assert sweep(*words, "--jobs", jobs) == 0
    out = capsys.readouterr().out
    assert ("3 runs are left by workers whose devices failed; new processes make them" in out) == (jobs == "1")
    assert "3 done, 0 failed" in out
    assert workers.started == started


def test_a_run_that_always_fails_its_device_fails_alone(words, monkeypatch, tmp_path, capsys):
    Workers(monkeypatch, lambda _, run: run.seed == 1)
    assert sweep(*words) == 1
    assert "2 done, 1 failed, 0 running, 0 open" in capsys.readouterr().out
    failed = json.loads((tmp_path / "s" / "runs" / KEYS[1] / "failed.json").read_text())
    assert ILLEGAL in failed["error"]


def test_a_machine_on_which_nothing_works_is_given_up(sweep_words, monkeypatch, capsys):
    workers = Workers(monkeypatch, lambda *_: True)
    assert sweep(*sweep_words(data="animals", seeds="1,2,3,4")) == 1
    assert workers.started == sweeps.FRUITLESS
    assert "0 done, 2 failed, 0 running, 3 open" in capsys.readouterr().out


def test_the_status_of_such_a_worker_has_a_reason():
    assert _reason(FAULT_STATUS) == "their device failed"
