"""Whole training runs on a CUDA device: as on the CPU, the same bits again and resumed, in every precision.

bench/gpu_check.py runs it.
"""

from __future__ import annotations

import pytest
import torch
from method_runs import training_of
from small_runs import adapter_of, assert_equal, metrics_of, stopped_before_step

from rmadapter import LossConfig, RMAdapterConfig
from rmadapter.cli import main
from rmadapter.config import LoraConfig
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED
from rmadapter.training.adapter_run import train

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


def losses_of(folder) -> list[float]:
    return [line["loss"] for line in metrics_of(folder) if line["kind"] == "step"]


@pytest.mark.telling
def test_its_steps_are_those_of_the_cpu(config, tmp_path):
    """In fp32, over whole runs of eight steps, from the same draws, order and augmentation."""
    for folder, device in (("theirs", "cpu"), ("ours", DEVICE)):
        train(config(device=device, log_every=1, out=str(tmp_path / folder), evaluate=False))
    ours, theirs = losses_of(tmp_path / "ours"), losses_of(tmp_path / "theirs")
    assert len(ours) == 8
    assert ours == pytest.approx(theirs, rel=1e-4)
    expected = adapter_of(tmp_path / "theirs")
    for name, tensor in adapter_of(tmp_path / "ours").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.telling
@pytest.mark.parametrize("name", [method.name for method in METHODS.values() if method.kind == TUNED])
def test_every_method_s_steps_are_those_of_the_cpu(options, tmp_path, name):
    # Dropout's masks are a device's own.
    own = ["--lora.dropout", "0"] if "lora" in METHODS[name].groups else []
    words = ["--method", name, *options, *training_of(name), *own, "--precision", "fp32", "--log_every", "1"]
    for folder, device in (("theirs", "cpu"), ("ours", DEVICE)):
        assert main(["train", *words, "--no-evaluate", "--device", device, "--out", str(tmp_path / folder)]) == 0
    assert losses_of(tmp_path / "ours") == pytest.approx(losses_of(tmp_path / "theirs"), rel=1e-3)
    expected = adapter_of(tmp_path / "theirs")
    for key, tensor in adapter_of(tmp_path / "ours").items():
        assert (tensor - expected[key]).double().norm() <= 1e-2 * expected[key].double().norm() + 1e-6, key


@pytest.mark.telling
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("graphs", [False, True], ids=["", "graphs"])
def test_again_and_resumed_it_ends_with_the_same_bits(config, tmp_path, monkeypatch, precision, graphs):
    def run(name, **changes):
        train(config(device=DEVICE, precision=precision, cuda_graphs=graphs, evaluate=False, out=str(tmp_path / name),
                     **changes))  # fmt: skip

    run("one")
    run("again")
    assert_equal(adapter_of(tmp_path / "again"), adapter_of(tmp_path / "one"))
    with stopped_before_step(5, monkeypatch):
        run("stopped")
    run("stopped", resume=True)
    assert_equal(adapter_of(tmp_path / "stopped"), adapter_of(tmp_path / "one"))


@pytest.mark.parametrize("graphs", [False, True], ids=["", "graphs"])
def test_dropout_is_drawn_again_as_it_was(config, tmp_path, monkeypatch, graphs):
    """By a second run and by one that is resumed, from the device's own generator."""

    def run(name, **changes):
        values = {"lora": LoraConfig(2, dropout=0.5), "adapter": RMAdapterConfig(layers="none"), "evaluate": False}
        train(config(device=DEVICE, cuda_graphs=graphs, out=str(tmp_path / name), loss=LossConfig(0, 0, 0, 0), **values,
                     **changes))  # fmt: skip
        return adapter_of(tmp_path / name)

    whole = run("whole")
    torch.rand(3, device=DEVICE)
    assert_equal(run("again"), whole)
    with stopped_before_step(5, monkeypatch):
        run("stopped")
    assert_equal(run("stopped", resume=True), whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("graphs", "compiled"), [(False, False), (True, False), (False, True), (True, True)])
def test_in_16_bits_it_learns_what_fp32_learns(config, tmp_path, precision, graphs, compiled):
    """Losses of every step within a few roundings of the weights' dtype, though momentum adds them up."""
    same = {"device": DEVICE, "log_every": 1, "evaluate": False}
    train(config(**same, cuda_graphs=False, out=str(tmp_path / "fp32")))
    own = {"precision": precision, "cuda_graphs": graphs, "compile": compiled}
    train(config(**same, **own, out=str(tmp_path / "own")))
    assert losses_of(tmp_path / "own") == pytest.approx(losses_of(tmp_path / "fp32"), rel=2e-2)


@pytest.mark.parametrize("graphs", [False, True], ids=["", "graphs"])
def test_stored_views_come_from_the_disk_as_they_were(config, tmp_path, graphs):
    """Written by the first run, read into pinned memory by the second; batches of two layouts."""
    changes = {"device": DEVICE, "views": 1, "epochs": 4, "batch_size": 3, "cache_dir": str(tmp_path / "cache"),
               "log_every": 1, "evaluate": False}  # fmt: skip
    train(config(**changes, out=str(tmp_path / "written"), cuda_graphs=False))
    train(config(**changes, out=str(tmp_path / "read"), cuda_graphs=graphs))
    assert losses_of(tmp_path / "read") == pytest.approx(losses_of(tmp_path / "written"), rel=1e-4)
