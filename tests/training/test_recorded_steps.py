"""``--cuda-graphs`` in a whole run, with recordings that a CPU can make."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import yaml
from small_runs import adapter_of, assert_equal, metrics_of, stopped_before_step

from rmadapter import InputError, LossConfig
from rmadapter.config import LoraConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.distributed import Ranks
from rmadapter.step.plan import with_graphs_settled
from rmadapter.training import adapter_run, loop
from rmadapter.training.adapter_run import train
from rmadapter.training.run_errors import DivergedError


@pytest.fixture
def called_graphs(monkeypatch):
    """``cuda_graphs`` on a CPU: a recording is the call itself, made again at each replay."""

    class Recorder:
        replays = 0

        def __init__(self, device):
            pass

        def run(self, call):
            call()

        def record(self, call):
            def replay():
                Recorder.replays += 1
                call()

            return replay

    monkeypatch.setattr(loop, "CudaRecorder", Recorder)
    monkeypatch.setattr("rmadapter.step.plan.check_graphs", lambda device, processes: None)
    return Recorder


@pytest.mark.parametrize("views", [0, 1])
def test_recorded_steps_give_the_same_run(config, tmp_path, called_graphs, views):
    """Metrics, gradient norms and weights over four epochs of a cosine schedule, each with a short last batch."""
    same = {"epochs": 4, "batch_size": 3, "views": views, "cache_dir": str(tmp_path / "cache"), "evaluate": False}
    train(config(**same))
    assert called_graphs.replays == 0
    train(config(**same, cuda_graphs=True, out=str(tmp_path / "graphed")))
    # Of 12 steps 4 have a short batch, 3 measure norms; 3 of each layout warm it up.
    assert called_graphs.replays >= 3
    lines = metrics_of(tmp_path / "graphed")
    assert len(lines) == len(metrics_of(tmp_path / "run"))
    for one, other in zip(lines, metrics_of(tmp_path / "run"), strict=True):
        assert set(one) == set(other)
        for key in set(one) - {"images_per_second", "kind"}:
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    expected = adapter_of(tmp_path / "run")
    for name, tensor in adapter_of(tmp_path / "graphed").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [3, 4, 6])
def test_a_run_of_recorded_steps_is_resumed(config, tmp_path, monkeypatch, called_graphs, at):
    """A state that is saved in mid epoch has what was summed on the device until then."""
    train(config(cuda_graphs=True, epochs=3, out=str(tmp_path / "whole")))
    with stopped_before_step(at, monkeypatch):
        train(config(cuda_graphs=True, epochs=3))
    train(config(cuda_graphs=True, epochs=3, resume=True))
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "whole"))
    for one, other in zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "whole"), strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_a_recorded_step_without_a_finite_loss_is_counted_and_named(config, tmp_path, monkeypatch, called_graphs):
    """It is judged while the next is under way, and still it is the bad batch that is named, not the next one."""
    real = loop.TrainingLoop._step
    bad = {}

    def step(self, batch, wants_norms):
        if self.step in (5, 6):
            batch.images *= float("nan")
            bad[self.step + 1] = [self.items[n].path for n in self.batches.numbers(self.epoch, self.step_in_epoch)]
        return real(self, batch, wants_norms)

    monkeypatch.setattr(loop.TrainingLoop, "_step", step)
    results = train(config(cuda_graphs=True))
    assert results["bad_steps"] == 2
    lines = metrics_of(tmp_path / "run")
    assert [line.get("bad_steps") for line in lines if line["kind"] == "step"] == [None, None, 1, 2]
    assert all(line["loss"] == line["loss"] for line in lines)
    with pytest.raises(DivergedError, match=r"at step 7 .*total nan.*after 1 such steps") as error:
        train(config(cuda_graphs=True, max_bad_steps=1, overwrite=True))
    assert all(path in str(error.value) for path in bad[7])
    assert not any(path in str(error.value) for path in bad[6])


def test_recorded_steps_need_cuda_and_the_fast_step(config, tmp_path):
    with pytest.raises(InputError, match="cuda_graphs is True, which needs a CUDA device, and device is cpu"):
        train(config(cuda_graphs=True, device="cpu"))
    with pytest.raises(InputError, match=r"cuda_graphs is True, which the plain step \(--no-shortcuts\) does not have"):
        train(config(cuda_graphs=True, shortcuts=False))
    assert not (tmp_path / "run").exists()


ON_CUDA = Ranks(device=torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("changes", "ranks", "on"),
    [
        ({}, ON_CUDA, True),
        ({"compile": True, "views": 1}, ON_CUDA, True),
        ({}, Ranks(), False),
        ({}, dataclasses.replace(ON_CUDA, world=2), False),
        ({"shortcuts": False}, ON_CUDA, False),
        ({"optimizer": "adamw"}, ON_CUDA, False),
        ({"loss": LossConfig(target="sentences"), "step": StepConfig(frozen_targets=False)}, ON_CUDA, False),
        ({"loss": LossConfig(distillation=1, projected=1)}, ON_CUDA, False),
        ({"lora": LoraConfig(2, dropout=0.1)}, ON_CUDA, False),
        ({"lora": LoraConfig(2, dropout=0.0)}, ON_CUDA, True),
        ({"cuda_graphs": False}, ON_CUDA, False),
        ({"cuda_graphs": True}, Ranks(), True),
    ],
)
def test_steps_are_recorded_where_they_can_be_unless_it_says_otherwise(config, changes, ranks, on):
    assert with_graphs_settled(config(**changes), ranks).cuda_graphs is on


def test_a_run_takes_what_was_settled_and_keeps_what_was_asked(config, tmp_path, called_graphs, monkeypatch):
    """And goes on with other steps where the machine has changed."""
    cuda = dataclasses.replace(config(epochs=3), cuda_graphs=True)
    monkeypatch.setattr(adapter_run, "with_graphs_settled", lambda asked, ranks: cuda)
    with stopped_before_step(6, monkeypatch):
        train(config(epochs=3))
    assert called_graphs.replays > 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["cuda_graphs"] is None
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["cuda_graphs"] is True
    train(config(epochs=3, resume=True))
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["cuda_graphs"] is False


def test_a_recording_that_nobody_asked_for_may_fail(config, monkeypatch, called_graphs, capsys):
    """Neither the run's error nor the memory's advice says that it was asked for."""

    def record(self, call):
        raise RuntimeError("operation not permitted")

    settled = dataclasses.replace(config(), cuda_graphs=True)
    monkeypatch.setattr(adapter_run, "with_graphs_settled", lambda asked, ranks: settled)
    monkeypatch.setattr(called_graphs, "record", record)
    train(config())
    assert capsys.readouterr().out.count("cannot be recorded as a CUDA graph and runs as it is: operation not") == 1
    with pytest.raises(InputError, match="cuda_graphs is True, but the step cannot be recorded"):
        train(config(cuda_graphs=True, overwrite=True))

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.TrainingLoop, "_step", full)
    with pytest.raises(InputError, match="less with --no-cuda-graphs, a smaller --text-memory"):
        train(config(overwrite=True))
