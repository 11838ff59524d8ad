"""A run that was ended and goes on: the same bits as one that was not, and what stands against going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import run_config
from small_runs import Killed, adapter_of, assert_equal, metrics_of, stop, stopped_before_step

from rmadapter import AdaptedCLIP, InputError, LossConfig, RMAdapterConfig
from rmadapter.cli import main
from rmadapter.clip.backbone import Backbone
from rmadapter.config import LoraConfig
from rmadapter.data.loading import seed_dropout
from rmadapter.training import adapter_run as trainings
from rmadapter.training import loop
from rmadapter.training.adapter_run import train


@pytest.mark.parametrize("at", [1, 3, 4, 5, 7, 8])
def test_resumed_after_any_step_it_ends_with_the_same_bits(config, base_run, tmp_path, monkeypatch, at):
    real, steps = loop.TrainingLoop._step, []

    def step(self, *arguments):
        if len(steps) == at:
            raise Killed
        steps.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(loop.TrainingLoop, "_step", step)
    try:
        train(config())
    except Killed:
        assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.undo()
    train(config(resume=True))
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(base_run))
    clean = [{k: v for k, v in m.items() if k != "images_per_second"} for m in metrics_of(base_run)]
    again = [{k: v for k, v in m.items() if k != "images_per_second"} for m in metrics_of(tmp_path / "run")]
    assert [m["step"] for m in again] == [m["step"] for m in clean]
    for one, other in zip(clean, again, strict=True):
        for key in set(one) & set(other):
            assert one[key] == pytest.approx(other[key])
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_norms_that_no_line_has_yet_are_kept(config, tmp_path, monkeypatch):
    """Those of step 6, saved behind it and written at the end of the epoch."""
    seldom = {"grad_norm_every": 5, "log_every": 100, "checkpoint_every": 6, "evaluate": False}

    def norms(name, **changes):
        train(config(out=str(tmp_path / name), **seldom, **changes))
        lines = metrics_of(tmp_path / name)
        return [{k: v for k, v in line.items() if k.startswith("grad_norm")} for line in lines]

    whole = norms("whole")
    assert [bool(line) for line in whole if line] == [True, True]
    with stopped_before_step(7, monkeypatch):
        norms("stopped")
    assert norms("stopped", resume=True) == whole


def test_a_state_of_another_version_is_refused_by_what_it_lacks(config, monkeypatch):
    with stopped_before_step(6, monkeypatch):
        train(config(checkpoint_every=2))
    real = loop.TrainingLoop.state
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "state", lambda run: (s := real(run)).values.update(more=1) or s)
        with pytest.raises(InputError, match="whose state lacks more; valid: that version, --overwrite, or"):
            train(config(resume=True))


def test_dropout_is_drawn_again_as_it_was(config, tmp_path, monkeypatch):
    """By a second run, whatever was drawn before it, and by one that is resumed."""

    def run(name, **changes):
        values = {"lora": LoraConfig(2, dropout=0.5), "adapter": RMAdapterConfig(layers="none"), "evaluate": False}
        train(config(out=str(tmp_path / name), loss=LossConfig(0, 0, 0, 0), **values, **changes))
        return adapter_of(tmp_path / name)

    whole = run("whole")
    torch.rand(3)
    assert_equal(run("again"), whole)
    with stopped_before_step(5, monkeypatch):
        run("stopped")
    assert_equal(run("stopped", resume=True), whole)
    monkeypatch.setattr(loop, "seed_dropout", lambda *of: None)
    with pytest.raises(AssertionError):
        assert_equal(run("undrawn"), whole)


def test_every_process_draws_dropout_of_its_own():
    numbers = []
    for number in ((1, 0, 0, 0), (1, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0), (2, 0, 0, 0), (1, 0, 0, 0)):
        seed_dropout(torch.device("cpu"), *number)
        numbers.append(torch.rand(1).item())
    assert numbers[0] == numbers[-1]
    assert len(set(numbers)) == 5


@pytest.mark.slow
def test_killed_in_mid_epoch_resumed_bit_equal(images, clip_folder, tmp_path, capsys):
    """A real process, a real SIGKILL, once its first state is on the disk; what is compared runs in this process."""

    def words(out):
        options = {
            "--data": images,
            "--model": f"local-dir:{clip_folder}",
            "--shots": 4,
            "--batch-size": 1,
            "--epochs": 2,
            "--checkpoint-every": 3,
            "--workers": 1,
            "--adapter.layers": "2-3",
            "--out": out,
        }
        return [*(str(word) for option in options.items() for word in option), "--no-evaluate"]

    assert main(["train", *words(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "rmadapter.train", *words(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    state = tmp_path / "run" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (tmp_path / "run" / "adapter").exists()
    capsys.readouterr()
    assert main(["train", *words(tmp_path / "run"), "--resume"]) == 0
    assert "resuming at epoch" in capsys.readouterr().out
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "whole"))
    assert main(["train", *words(tmp_path / "run"), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_another_thread_count_is_said_on_resumption(config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(AdaptedCLIP, "save_adapter", stop)
        with pytest.raises(Killed):
            train(config())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        train(config(resume=True))
    finally:
        torch.set_num_threads(threads)
    assert "will not be bit-equal" in capsys.readouterr().out


def test_a_changed_base_or_a_damaged_state_is_refused(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(AdaptedCLIP, "save_adapter", stop)
        with pytest.raises(Killed):
            train(config())
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "base_hash", "other")
        with pytest.raises(InputError, match="base model's weights are not those"):
            train(config(resume=True))
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"is damaged .*delete it to start the run anew"):
        train(config(resume=True))


def test_a_resumed_run_keeps_its_chunks_whatever_the_machine_has_now(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(AdaptedCLIP, "save_adapter", stop)
        patch.setattr("rmadapter.step.plan.total_bytes", lambda device: 120_000)
        with pytest.raises(Killed):
            train(config(classes="all"))
    made = []
    real = trainings.make_step
    monkeypatch.setattr(trainings, "make_step", lambda *arguments: made.append(arguments[3]) or real(*arguments))
    assert train(config(classes="all", resume=True))["text_memory"] == 30_000
    assert made == [30_000]


def views_in(folder):
    return {"views": 1, "cache_dir": str(folder), "evaluate": False}


@pytest.fixture(scope="module")
def run_with_views(animals, clip_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    train(run_config(animals, clip_folder, folder / "run", **views_in(folder / "cache")))
    return folder / "run"


@pytest.mark.parametrize("at", [2, 5, 6])
def test_resumed_with_views_it_ends_with_the_same_bits(config, run_with_views, tmp_path, monkeypatch, at):
    views = views_in(tmp_path / "cache")
    with stopped_before_step(at, monkeypatch):
        train(config(**views))
    train(config(**views, resume=True))
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(run_with_views))


@pytest.fixture
def stopped(config, monkeypatch):
    """A run that was ended after its last step, in the folder of ``config``."""
    with monkeypatch.context() as patch:
        patch.setattr(AdaptedCLIP, "save_adapter", stop)
        with pytest.raises(Killed):
            train(config())


def test_it_may_go_on_elsewhere_with_less_memory_and_what_may_change_its_bits_is_said(stopped, config, capsys):
    train(config(resume=True, device="cpu", text_memory="100MB", grad_checkpointing=True))
    out = capsys.readouterr().out
    assert "resuming at epoch" in out
    assert "goes on with 0.10 GB: it may not be bit-equal" in out


def test_a_precision_that_auto_resolves_to_differently_is_refused(stopped, config, monkeypatch):
    monkeypatch.setattr(trainings, "resolve_precision", lambda *_: "bf16")
    with pytest.raises(InputError, match="precision is 'bf16' here, but this run began with 'fp32'"):
        train(config(resume=True))


def test_the_plan_of_a_run_that_is_there_is_explained_without_touching_it(stopped, config, tmp_path, capsys):
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train(config(explain=True)) == {}
    assert "expected" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
