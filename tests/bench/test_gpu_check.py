"""The GPU check without a GPU: what it runs in which order, that it ends in time, and what counts as a failure."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux alone")

from bench import gpu_check, measure
from bench.cases import Case, cases

SLOW_STEPS = {"compile_ahead": 55, "--shard": 145, "compute-sanitizer": 145, "bench.tune": 50}
ENVIRONMENT = {"device": "Stub", "torch": "2", "triton": "3", "commit": "abc"}


class Stub(gpu_check.Machine):
    """A machine whose commands take as long as they are told to, by its own clock.

    Args:
        seconds: of a command, by a word in it.
        statuses: of a command, by a word in it.
        contest_seconds: of one case and direction.
    """

    def __init__(self, seconds=None, statuses=None, contest_seconds=5.0, tools=True, fails=()):
        self.time, self.seconds, self.statuses = 0.0, seconds or {}, statuses or {}
        self.contest_seconds, self.tools, self.fails = contest_seconds, tools, fails
        self.commands, self.contests = [], []

    def now(self):
        return self.time

    def has_device(self):
        return True

    def has_tool(self, name):
        return self.tools

    def run(self, commands, logs, seconds):
        self.commands.append(commands)
        taken, found = 0.0, []
        for command in commands:
            own = next((value for word, value in self.seconds.items() if word in " ".join(command)), 1.0)
            status = next((value for word, value in self.statuses.items() if word in " ".join(command)), 0)
            found.append(status if own <= seconds else None)
            taken = max(taken, min(own, max(1.0, seconds)))
        self.time += taken
        return found

    def contest(self, names, case, direction, copy_rate):
        self.time += self.contest_seconds
        self.contests.append((tuple(names), case, direction))
        if (case, direction) in self.fails:
            raise AssertionError("out: error 0.5")
        return {name: {"cold_us": 1.0, "wall_us": 2.0, "gb_s": 3.0, "share_of_copy": 0.5} for name in names}

    def copy_rate(self):
        self.time += 1
        return 3e12

    def environment(self):
        return ENVIRONMENT

    def profile(self, out):
        self.time += 8


def run(machine, tmp_path, *more) -> int:
    return gpu_check.main(["--out", str(tmp_path), "--jobs", "12", *more], machine)


def test_everything_in_nine_minutes(tmp_path, capsys):
    """With steps that take all they may: the next one has its time still, and the whole ends in time."""
    machine = Stub(SLOW_STEPS, contest_seconds=11)
    assert run(machine, tmp_path) == 0
    assert machine.time <= 9 * 60
    together, ahead, sweep = machine.commands
    tests, sanitizers = together[:12], together[12:]
    assert {command[command.index("--shard") + 1] for command in tests} == {f"{i}/12" for i in range(1, 13)}
    assert {Path(file).name for command in tests for file in command if file.endswith(".py")} == {
        "test_triton_gpu.py",
        "test_triton_gpu_calls.py",
        "test_device_step.py",
        "test_gpu_runs.py",
    }
    # They end by themselves, and say what failed, before they are ended.
    share = gpu_check.BUDGETS["tests"] / sum(gpu_check.BUDGETS.values())
    assert 0 < float(tests[0][tests[0].index("--session-timeout") + 1]) < 9 * 60 * share
    assert len(ahead) == 12
    assert "bench.compile_ahead" in ahead[0]
    assert [command[:3:2] for command in sanitizers] == [
        ["compute-sanitizer", "memcheck"],
        ["compute-sanitizer", "racecheck"],
        ["compute-sanitizer", "initcheck"],
    ]
    assert "bench.tune" in sweep[0]
    printed = capsys.readouterr().out
    order = [printed.index(f"{name}: ") for name in gpu_check.BUDGETS]
    assert all(a < b for a, b in pairwise(order))
    assert "passed" in printed


@pytest.mark.parametrize("slow", ["-m pytest", "compute-sanitizer"])
def test_out_of_time_is_a_failure_and_the_rest_is_still_run(slow, tmp_path, capsys):
    machine = Stub({slow: 10_000})
    assert run(machine, tmp_path) == 1
    assert machine.time <= 9 * 60
    printed = capsys.readouterr().out
    assert "processes out of time" in printed
    assert machine.contests
    assert "sweep: tune.json" in printed


@pytest.mark.parametrize(("minutes", "status"), [("1", 1), ("9", 0)])
def test_a_minute_is_not_enough(minutes, status, tmp_path):
    machine = Stub({"-m pytest": 120})
    assert run(machine, tmp_path, "--minutes", minutes) == status
    assert machine.time <= float(minutes) * 60 + 3


def test_a_failing_test_or_row_is_a_failure(tmp_path, capsys):
    assert run(Stub(statuses={"--shard 3/12": 1}), tmp_path) == 1
    assert "FAILED: status 1" in capsys.readouterr().out
    assert run(Stub(statuses={"--shard 3/12": 5}), tmp_path) == 0  # a process without a test
    assert run(Stub(statuses={"bench.tune": 1}), tmp_path) == 0  # a sweep is a finding
    first = cases("cuda")[0]
    machine = Stub(fails=[(first, "forward")])
    assert run(machine, tmp_path) == 1
    assert "out: error 0.5" in (tmp_path / "failures.log").read_text()
    assert len(machine.contests) > 1


def test_the_most_telling_benchmarks_come_first(tmp_path):
    machine = Stub(contest_seconds=1.0)
    assert run(machine, tmp_path) == 0
    names = [names for names, _, _ in machine.contests]
    assert names[0] == ("triton", "compile")
    assert names == sorted(names, key=[("triton", "compile"), ("eager", "autograd"), ("compile-max",)].index)
    assert machine.contests[0][1:] == (Case(65536), "forward")
    machine = Stub({"-m pytest": 10_000}, contest_seconds=12.0)
    run(machine, tmp_path)
    assert {names for names, _, _ in machine.contests} == {("triton", "compile")}
    assert {case.tokens for _, case, _ in machine.contests} >= {65536, 6304}


def test_without_a_device_or_tools(tmp_path, capsys, monkeypatch):
    machine = Stub(tools=False)
    assert run(machine, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "there is no compute-sanitizer, so none is run" in printed
    assert "the kernels' own files alone are run" in printed
    assert machine.commands[0][0][-1].endswith("test_triton_gpu_calls.py")
    monkeypatch.setattr(Stub, "has_device", lambda self: False)
    assert run(Stub(), tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_steps_are_chosen(tmp_path, capsys):
    machine = Stub(SLOW_STEPS)
    assert run(machine, tmp_path, "--steps", "sweep,tests") == 0
    assert [len(commands) for commands in machine.commands] == [15, 1]
    assert not machine.contests
    with pytest.raises(SystemExit):
        run(machine, tmp_path, "--steps", "test")
    assert "--steps has 'test'; valid: any of tests,compilation,benchmarks,profile,sweep" in capsys.readouterr().err


def test_processes_run_at_the_same_time_and_are_ended(tmp_path):
    machine = gpu_check.Machine()
    here = __import__("sys").executable
    logs = [tmp_path / f"{i}.log" for i in range(3)]
    commands = [[here, "-c", "print('done')"], [here, "-c", "raise SystemExit(3)"], [here, "-c", "input()"]]
    commands[2] = [here, "-c", "import time; time.sleep(60)"]
    assert machine.run(commands, logs, 3.0) == [0, 3, None]
    assert logs[0].read_text() == "done\n"


def test_l2_is_cold_at_every_number_of_tokens():
    l2 = 50 << 20
    for tokens in (197, 788, 6304, 262144):
        for direction in ("forward", "both"):
            read = measure.bytes_read(Case(tokens), direction)
            sets = measure.sets_of_inputs(read, l2)
            assert sets >= 2
            assert sets * read >= 4 * l2 or sets == measure.MOST_SETS
    assert measure.sets_of_inputs(measure.bytes_read(Case(788), "forward"), l2) * 788 * 2 * 768 * 2 >= 4 * l2
    assert measure.bytes_read(Case(10, residual=False), "forward") == 10 * 768 * 2


def test_contenders_take_turns_and_a_share_above_one_is_refused():
    order = []

    def timed(replay):
        order.append(replay)
        return {"a": 1.0, "b": 2.0, "c": 3.0}[replay]

    assert measure.in_turns({"a": "a", "b": "b", "c": "c"}, timed, 4) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert "".join(order) == "abcbcacababc"
    assert measure.share_of_copy(100, 1.0, 100.0) == 1.0
    with pytest.raises(measure.WrongMeasurementError, match=r"1\.10 of a copy's bandwidth; valid: at most 1\.02"):
        measure.share_of_copy(110, 1.0, 100.0)


def test_contenders_have_the_same_inputs():
    import torch

    from bench.cases import Step

    case = Case(20, 64, 8, torch.float32)
    one = Step("eager", case, torch.device("cpu"))
    other = Step("autograd", case, torch.device("cpu"), data=one)
    assert other.x is one.x
    assert other.d_out is one.d_out
    assert all(torch.equal(a, b) for a, b in zip(one.adapter.parameters(), other.adapter.parameters(), strict=True))
