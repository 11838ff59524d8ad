"""The GPU check without a GPU: what it runs in which order, that it ends in time, and what counts as a failure."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux alone")

from bench import gpu_check, measure, results
from bench.cases import Case, cases, contenders
from rmadapter_kernels.triton import tuning

SLOW_STEPS = {"compile_ahead": 55, "--shard": 185, "compute-sanitizer": 185, "bench.tune": 45}
ENVIRONMENT = {
    "device": "Stub", "uuid": "1", "torch": "2", "triton": "3", "code": "0f", "table": "e3", "commit": "abc",
}  # fmt: skip


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
        self.commands, self.contests, self.asked = [], [], 0

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
        self.asked += 1
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
    first = cases("cuda")[0]
    machine = Stub(fails=[(first, "forward")])
    assert run(machine, tmp_path) == 1
    assert "out: error 0.5" in (tmp_path / "failures.log").read_text()
    assert len(machine.contests) > 1
    steps = ["--steps", "tests,sweep"]
    assert run(Stub(statuses={"--shard 3/12": 1}), tmp_path, *steps) == 1
    assert "FAILED: status 1" in capsys.readouterr().out
    assert run(Stub(statuses={"--shard 3/12": 5}), tmp_path, *steps) == 0  # a process without a test
    assert run(Stub(statuses={"bench.tune": 1}), tmp_path, *steps) == 0  # a sweep is a finding


def test_the_most_telling_benchmarks_come_first(tmp_path):
    machine = Stub(contest_seconds=1.0)
    assert run(machine, tmp_path) == 0
    names = [names for names, _, _ in machine.contests]
    assert names[0] == ("triton", "compile")
    assert names == sorted(names, key=[("triton", "compile"), ("eager", "autograd"), ("compile-max",)].index)
    assert machine.contests[0][1:] == (Case(65536), "forward")
    machine = Stub({"-m pytest": 10_000}, contest_seconds=12.0)
    run(machine, tmp_path / "slow")
    assert {names for names, _, _ in machine.contests} == {("triton", "compile")}
    assert {case.tokens for _, case, _ in machine.contests} >= {65536, 6304}


def test_benchmarks_go_on_where_an_earlier_call_has_left_them(tmp_path, capsys, monkeypatch):
    """On the same card with the same code; nvidia-smi and git are asked once, not at every row."""
    first = cases("cuda")[0]
    before, again = Stub(contest_seconds=11, fails=[(first, "both")]), Stub(contest_seconds=11)
    command = ["--steps", "benchmarks", "--minutes", "3"]
    assert run(before, tmp_path, *command) == 1
    assert before.asked == 1
    kept = json.loads((tmp_path / "benchmark.json").read_text())
    reached = len(kept["rows"]) + 2 * len(kept["failures"])
    assert reached == 2 * len(before.contests)
    assert kept["not_reached"] == 3 * len(cases("cuda")) * len(contenders("cuda")) - reached > 0
    assert run(again, tmp_path, *command) == 0
    said = f"{len(kept['rows'])} rows of {tmp_path / 'benchmark.json'} are of this card and code"
    assert said in capsys.readouterr().out
    assert set(before.contests) & set(again.contests) == {(("triton", "compile"), first, "both")}
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["rows"]) == reached - 2 + 2 * len(again.contests)
    left = (tmp_path / "benchmark.json").read_bytes()
    for number, name in enumerate(results.SAME, start=1):
        monkeypatch.setitem(ENVIRONMENT, name, "another")
        anew = Stub(contest_seconds=11)
        assert run(anew, tmp_path, *command, "--minutes", "0.5") == 0
        assert 0 < len(anew.contests) == len(set(anew.contests) & set(before.contests))
        assert "0 rows of" in capsys.readouterr().out
        assert (tmp_path / "benchmark-before1.json").read_bytes() == left
        assert (tmp_path / f"benchmark-before{number}.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"environment": {}, "rows": []}'])
def test_a_damaged_or_an_earlier_file_of_benchmarks_is_kept_beside_the_new_one(tmp_path, text):
    """It is no reason to measure nothing."""
    path = tmp_path / "benchmark.json"
    path.write_text(text)
    assert results.rows_to_keep(path, ENVIRONMENT) == []
    assert not path.exists()
    assert (tmp_path / "benchmark-before1.json").read_text() == text
    assert results.rows_to_keep(path, ENVIRONMENT) == []


def test_which_configurations_a_table_has_is_told_by_them(tmp_path, monkeypatch):
    """The user's own too, which no file of the tree says."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    found = set()
    for entries in ({}, {"a": [32, 64, 4, 3]}, {"a": [32, 64, 4, 2]}, {"b": [32, 64, 4, 2]}):
        (tmp_path / tuning.table_name("Test GPU")).write_text(json.dumps({"entries": entries}))
        tuning.table_of.cache_clear()  # as in another process
        found.add(results._table("Test GPU"))
    tuning.table_of.cache_clear()
    assert len(found) == 4


def test_what_the_code_is_is_told_by_its_bytes(tmp_path, monkeypatch):
    """Where a copy of the tree has no commit, too."""
    for name in ("rmadapter_kernels/triton/plans.py", "bench/cases.py", "bench/measure.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    found = {results.code()}
    for name in ("rmadapter_kernels/triton/plans.py", "bench/measure.py"):
        (tmp_path / name).write_text("another")
        found.add(results.code())
    assert len(found) == 3


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


def test_what_is_told_to_end_ends_what_it_has_started(tmp_path, monkeypatch):
    """They are in groups of their own, and would go on to use the device."""
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            started.append(self)

        def wait(self, timeout=None):
            if timeout is not None:
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(gpu_check.subprocess, "Popen", Interrupted)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(KeyboardInterrupt):
        gpu_check.Machine().run([command] * 2, [tmp_path / "0.log", tmp_path / "1.log"], 50.0)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_processes_beside_each_other_have_a_thread_each(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = [sys.executable, "-c", "import os; print(os.environ.get('OMP_NUM_THREADS'))"]
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    gpu_check.Machine().run([command] * 2, logs, 30.0)
    assert [log.read_text() for log in logs] == ["1\n"] * 2
    gpu_check.Machine().run([command], logs[:1], 30.0)
    assert logs[0].read_text() == "None\n"


class FakeDevice:
    """Events of a device that has worked off what lies before them after so many cycles' time.

    A launch takes ``launch_cycles``; what of them the device has waited for is between the events, unless the launch
    ``waits`` for the device.
    """

    def __init__(self, launch_cycles: int, waits: bool = False):
        self.launch_cycles, self.waits, self.backlogs = launch_cycles, waits, []

    def put_in(self, monkeypatch):
        monkeypatch.setattr(measure.torch.cuda, "_sleep", self.backlogs.append)
        monkeypatch.setattr(measure.torch.cuda, "Event", lambda enable_timing: self)
        return self

    def record(self):
        pass

    synchronize = record

    def query(self):
        return self.backlogs[-1] < self.launch_cycles

    def elapsed_time(self, other):
        return 5.0 if self.waits else 5.0 + max(0, self.launch_cycles - self.backlogs[-1]) / 1e6


def test_a_graph_that_the_device_has_waited_for_does_not_count(monkeypatch):
    """Its launch takes longer than the work it was queued behind: it is queued again behind more."""
    quick, slow = FakeDevice(1_000).put_in(monkeypatch), FakeDevice(5_000_000)
    assert measure.timed_once(lambda: None) == 0.005
    assert quick.backlogs == [measure.BACKLOG_CYCLES]
    slow.put_in(monkeypatch)
    assert measure.timed_once(lambda: None) == 0.005
    assert slow.backlogs == [measure.BACKLOG_CYCLES, 4 * measure.BACKLOG_CYCLES]
    FakeDevice(2 * measure.MOST_BACKLOG_CYCLES).put_in(monkeypatch)
    with pytest.raises(measure.WrongMeasurementError, match="the device waits for a graph"):
        measure.timed_once(lambda: None)
    # The queue was full: no launch is there before the device, and the time is its own.
    FakeDevice(2 * measure.MOST_BACKLOG_CYCLES, waits=True).put_in(monkeypatch)
    assert measure.timed_once(lambda: None) == 0.005


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
