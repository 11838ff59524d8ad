"""The sweep of launch configurations without a GPU: what is measured in which order, resume, entries of the table."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux alone")

from rmadapter_kernels.triton import devices, tuning
from rmadapter_kernels.triton.devices import KNOWN_DEVICES
from rmadapter_kernels.triton.dry import dry_launches
from rmadapter_kernels.triton.tuning import Config, config_for, model

DEVICE = KNOWN_DEVICES["sm_90"]


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from bench import tune

    return tune


class Fake:
    """Times by formula; fails where it is told to."""

    def __init__(self, tune, best: Config | None = None, failing: dict[Config, Exception] | None = None):
        self.tokens, self.best, self.failing = tune.TOKENS, best, failing or {}
        self.measured, self.prepared = [], []

    def expect(self, wanted):
        self.expected = wanted

    def prepare(self, group):
        self.prepared.append(group)

    def measure(self, group, config):
        self.measured.append((group, config))
        if config in self.failing:
            raise self.failing[config]
        return {bucket: tokens * (0.5e-9 if config == self.best else 1e-9) for bucket, tokens in self.tokens.items()}


def sweep(tune, chosen, bench, rows, most=6, time_left=lambda: math.inf):
    said = []
    whole = tune.sweep(
        chosen, DEVICE, bench, rows, most=most, time_left=time_left, save=lambda: None, say=said.append
    )  # fmt: skip
    return whole, said


def test_the_most_telling_problems_come_first(tune):
    found = tune.groups(["bf16", "ieee"], tune.WIDTHS, tune.BOTTLENECKS, tuning.KERNELS)
    assert len(found) == len(set(found)) == 2 * 3 * 4 * 3
    assert [str(group) for group in found[:4]] == [
        "forward bf16 D=768 r=32",
        "rows bf16 D=768 r=32",
        "weights bf16 D=768 r=32",
        "forward bf16 D=768 r=16",
    ]
    assert {group.kind for group in found[:36]} == {"bf16"}
    assert all(group.d == 768 or group.r == 32 for group in found[:18])


def test_every_usual_configuration_is_measured_and_then_its_neighbours(tune):
    for group in tune.groups(tune.KINDS, tune.WIDTHS, tune.BOTTLENECKS, tuning.KERNELS):
        found = tune.configurations(group, DEVICE, 24)
        assert len(found) == len(set(found)) <= 24
        usual = {model(group.problem(tokens), DEVICE) for tokens in tune.TOKENS.values()}
        assert set(found[: len(usual)]) == usual
        # A smaller sweep is the beginning of a larger one.
        assert tune.configurations(group, DEVICE, 8) == found[: max(8, len(usual))]


def test_a_sweep_goes_on_where_it_was_cut_off(tune):
    chosen = tune.groups(["bf16"], [768], [32, 16], ["forward", "rows"])
    rows = []
    clock = iter([9.0] * 12 + [0.0] * 100)
    first = Fake(tune)
    whole, said = sweep(tune, chosen, first, rows, time_left=lambda: next(clock))
    assert not whole
    assert "out of time" in said[-1]
    assert len(rows) == len(first.measured) * len(tune.TOKENS) > 0
    second = Fake(tune)
    whole, _ = sweep(tune, chosen, second, rows)
    assert whole
    assert not set(first.measured) & set(second.measured)
    whole_sweep = [(group, config) for group in chosen for config in tune.configurations(group, DEVICE, 6)]
    assert [*first.measured, *second.measured] == whole_sweep
    third = Fake(tune)
    assert sweep(tune, chosen, third, rows)[0]
    assert not third.measured
    assert not third.prepared


def test_what_fails_is_recorded_and_never_an_entry(tune):
    (group,) = tune.groups(["bf16"], [768], [32], ["forward"])
    usual, other, *_ = tune.configurations(group, DEVICE, 6)
    rows = []
    sweep(tune, [group], Fake(tune, failing={usual: AssertionError("out: error 0.5"), other: ValueError("x")}), rows)
    failed = [row for row in rows if row["outcome"] != tune.MEASURED]
    assert {tune.config_of(row) for row in failed} == {usual, other}
    assert {row["outcome"] for row in failed} == {"AssertionError: out: error 0.5", "ValueError: x"}
    assert {row["microseconds"] for row in failed} == {None}
    found = tune.entries(rows, DEVICE, 0.02)
    assert not {usual, other} & {entry.config for entry in found}
    # Where the model's fails, whatever runs is better.
    assert any(entry.usual_microseconds is None for entry in found)


def test_a_lost_device_ends_the_sweep_and_the_next_goes_on_behind_it(tune):
    (group,) = tune.groups(["bf16"], [768], [32], ["forward"])
    configs = tune.configurations(group, DEVICE, 6)
    rows = []
    with pytest.raises(tune.DeviceLostError):
        sweep(tune, [group], Fake(tune, failing={configs[1]: tune.DeviceLostError("illegal address")}), rows)
    assert [tune.config_of(row) for row in rows[:: len(tune.TOKENS)]] == configs[:2]
    bench = Fake(tune)
    assert sweep(tune, [group], bench, rows)[0]
    assert [config for _, config in bench.measured] == configs[2:]


def test_what_was_not_compiled_in_time_is_measured_by_the_next_sweep(tune):
    (group,) = tune.groups(["bf16"], [768], [32], ["forward"])
    configs = tune.configurations(group, DEVICE, 6)
    rows = []
    whole, said = sweep(tune, [group], Fake(tune, failing={configs[1]: tune.OutOfTimeError()}), rows)
    assert not whole
    assert "out of time at forward bf16 D=768 r=32, 1 of" in said[-1]
    assert [tune.config_of(row) for row in rows[:: len(tune.TOKENS)]] == configs[:1]
    bench = Fake(tune)
    assert sweep(tune, [group], bench, rows)[0]
    assert [config for _, config in bench.measured] == configs[1:]


def test_a_compilation_is_waited_for_as_long_as_there_is_time_and_left_behind(tune):
    """Workers are ended while they compile."""
    from bench import tune_device

    began = time.monotonic()
    (group,) = tune.groups(["bf16"], [768], [32], ["forward"])
    config = tune.configurations(group, DEVICE, 1)[0]
    bench = tune_device.OnCuda(1, time_left=lambda: 0.1)
    bench.ahead[group, config] = bench.pool.submit(time.sleep, 600)
    try:
        with pytest.raises(tune.OutOfTimeError):
            bench.measure(group, config)
    finally:
        bench.close()
    assert time.monotonic() - began < 60


def test_a_configuration_is_checked_with_prepared_weights_and_without(tune, monkeypatch):
    """As the buckets take them: a product may be wrong in one alone."""
    from bench import tune_device

    checked = []
    monkeypatch.setattr(tune_device, "Step", lambda name, case, device: case)
    monkeypatch.setattr(tune_device, "check", lambda step, case, direction: checked.append((step, direction)))
    bench = tune_device.OnCuda(1, time_left=lambda: 60)
    try:
        for group in tune.groups(["bf16"], [768], [32], tuning.KERNELS):
            bench.ahead[group, Config(32, 64, 4, 3)] = done = Future()
            done.set_result(None)
            assert bench.measure(group, Config(32, 64, 4, 3)) == {}
            cases, directions = zip(*checked, strict=True)
            assert {tuning.worth_preparing(case.tokens) for case in cases} == {
                tuning.worth_preparing(tokens) for tokens in tune.TOKENS.values()
            }
            assert set(directions) == {"both"}
            assert all(case.tokens % 16 and {case.d, case.r} == {768, 32} for case in cases)
            checked.clear()
    finally:
        bench.close()
    assert tuning.worth_preparing(tune_device.FEW_PREPARED)


def test_the_forward_with_a_norm_which_was_not_measured_is_launched_as_the_model_has_it(monkeypatch):
    here, measured = dataclasses.replace(DEVICE, name="Test GPU"), tuning.Config(128, 32, 8, 5)
    for kernel in tuning.KERNELS:
        problem = tuning.Problem(kernel, torch.bfloat16, "", 768, 32, 32, 65536)
        table = {tuning.table_key(problem): measured}
        monkeypatch.setattr(tuning, "table_of", lambda name, table=table: table)
        assert config_for(problem, here) == measured != model(problem, here)
        expected = model(problem, here) if kernel == "forward" else measured
        assert config_for(problem, here, norm=True) == expected


def test_a_device_is_launched_by_its_table(tune, monkeypatch, tmp_path):
    (group,) = tune.groups(["tf32"], [768], [64], ["rows"])
    best = tune.configurations(group, DEVICE, 6)[-1]
    rows = []
    sweep(tune, [group], Fake(tune, best), rows)
    found = tune.entries(rows, DEVICE, 0.02)
    table = tune.table_of(found, {"device": "Test GPU"})
    assert len(table["entries"]) == len(tune.TOKENS)
    assert [3.152, 6.304] in [[round(value, 3) for value in pair] for pair in table["microseconds"].values()]
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    (tmp_path / tuning.table_name("Test GPU")).write_text(json.dumps(table))
    here = dataclasses.replace(DEVICE, name="Test GPU")
    tuning.table_of.cache_clear()
    for tokens in (1, 788, 6304, 25216, 262144):
        assert config_for(group.problem(tokens), here) == best
        assert config_for(group.problem(tokens), dataclasses.replace(here, name="Other GPU")) != best
    assert tune.entries(rows, DEVICE, 0.6) == []  # half the time is not enough
    (tmp_path / tuning.table_name("Test GPU")).write_text("{ broken")
    tuning.table_of.cache_clear()
    assert config_for(group.problem(788), here) == model(group.problem(788), here)


def test_the_committed_tables_serve_their_devices(tune, monkeypatch, tmp_path):
    """Every entry is reached by the problem that it was measured on; fp16 takes bf16's, whose code is the same."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    tuning.table_of.cache_clear()
    files = list(Path(tuning.__file__).with_name("measured").glob("*.json"))
    assert files
    for file in files:
        table = json.loads(file.read_text())
        used = table["measured_with"]["sizes"]
        here = devices.Device(**used | {"capability": tuple(used["capability"])})
        assert file.name == tuning.table_name(here.name)
        reached = set()
        for group in tune.groups(tune.KINDS, tune.WIDTHS, tune.BOTTLENECKS, tuning.KERNELS):
            for tokens in tune.TOKENS.values():
                key = tuning.table_key(group.problem(tokens))
                if key in table["entries"]:
                    assert config_for(group.problem(tokens), here) == Config(*table["entries"][key])
                    reached.add(key)
        assert reached == table["entries"].keys()
    tuning.table_of.cache_clear()


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_the_configuration_under_test_is_the_one_that_is_launched(tune, kernel):
    from bench import tune_device

    here = devices.device_of(None)
    (group,) = tune.groups(["bf16"], [512], [16], [kernel])
    config = Config(32, 128, 8, 2)
    record = []
    with dry_launches(record):
        with tune_device.in_force(group, config):
            for call in tune_device.Inputs(group, 40, torch.device("cpu"), sets=1).calls():
                call()
            assert tuning.is_forced(kernel)
        for call in tune_device.Inputs(group, 40, torch.device("cpu"), sets=1).calls():
            call()
    names = {"forward": "forward_kernel", "rows": "backward_rows_kernel", "weights": "backward_weights_kernel"}
    found = []
    for launched in record:
        if launched.kernel.__name__ == f"rm_adapter_{names[kernel]}":
            arguments = dict(zip(launched.kernel.arg_names, launched.arguments, strict=True))
            options = launched.options["num_warps"], launched.options["num_stages"]
            found.append(Config(arguments["BLOCK_M"], arguments["BLOCK_D"], *options))
    assert found == [config, model(group.problem(40), here)]
    assert not tuning.is_forced(kernel)


def test_command(tune, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device is here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for arguments, message in (
        (["--print"], "tune.json is missing; run without --print on a CUDA device first"),
        (["--dtype", "int8"], "--dtype is 'int8'; valid: bf16, fp16, tf32, ieee"),
        (["--r", "20"], "--r is '20'; valid: 32, 16, 64, 128"),
    ):
        with pytest.raises(SystemExit, match=message):
            tune.main(["--out", str(tmp_path), *arguments])

    fake = Fake(tune)
    fake.close = lambda: None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(tune.results, "environment", dict)
    monkeypatch.setattr(devices, "device_of", lambda index: dataclasses.replace(DEVICE, name="Test GPU"))
    monkeypatch.setattr(tune, "OnCuda", lambda jobs, time_left: fake)
    command = ["--out", str(tmp_path), "--dtype", "bf16", "--d", "768", "--r", "32", "--most", "4"]
    assert tune.main(command) == 0
    count = len(fake.measured)
    state = json.loads((tmp_path / "tune.json").read_text())
    with (tmp_path / "tune.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(state["rows"]) == count * len(tune.TOKENS)
    assert tune.main(command) == 0
    assert len(fake.measured) == count
    (tmp_path / "Test-GPU.json").unlink()
    fake.failing = dict.fromkeys(tune.configurations(*tune.groups(["bf16"], [768], [16], ["rows"]), DEVICE, 4))
    fake.failing |= dict.fromkeys(fake.failing, tune.DeviceLostError("illegal address"))
    with pytest.raises(SystemExit, match="the device's context is lost: illegal address; run again to go on behind it"):
        tune.main([*command, "--r", "16", "--kernel", "rows"])
    assert (tmp_path / "Test-GPU.json").exists()  # of what there was
    capsys.readouterr()
    assert tune.main(["--out", str(tmp_path), "--print"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_with"]["device"] == "Test GPU"
    assert json.loads((tmp_path / "Test-GPU.json").read_text())["entries"].keys() >= set()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Other GPU")
    with pytest.raises(SystemExit, match="device 'Test GPU', here it is 'Other GPU'; choose another --out"):
        tune.main(command)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_before_timing_finds_a_wrong_gradient(tune, dtype, monkeypatch):
    from bench import cases

    case = cases.Case(20, 64, 8, dtype, norm=True)
    step = cases.Step("eager", case, torch.device("cpu"))
    cases.check(step, case, "both")
    both = step.both
    monkeypatch.setattr(step, "both", lambda: [*both()[:-1], 1.05 * both()[-1]])
    with pytest.raises(AssertionError, match="b_rec2: error"):
        cases.check(step, case, "both")
