"""Training runs on a small CLIP and a small folder: what they write, and that they can be stopped anywhere."""

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
import yaml
from conftest import write_images
from safetensors.torch import load_file

from rmadapter import InputError, LossConfig, RMAdapterConfig, TrainConfig, loop
from rmadapter import training as trainings
from rmadapter.batches import Waited
from rmadapter.loop import DivergedError
from rmadapter.step_config import StepConfig
from rmadapter.training import train


@pytest.fixture
def config(images, clip_folder, tmp_path):
    """Two epochs of four steps on the base half of four classes."""

    def make(**changes) -> TrainConfig:
        values = {
            "data": str(images),
            "model": f"local-dir:{clip_folder}",
            "classes": "base",
            "shots": 4,
            "batch_size": 2,
            "epochs": 2,
            "lr": 0.05,
            "precision": "fp32",
            "workers": 0,
            "log_every": 2,
            "checkpoint_every": 3,
            "grad_norm_every": 4,
            "out": str(tmp_path / "run"),
            "adapter": RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.1),
            "loss": LossConfig(1, 1, 1, 1),
        }
        return TrainConfig(**{**values, **changes})

    return make


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter.safetensors")


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_what_a_run_leaves_behind(config, tmp_path, capsys):
    results = train(config())
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter",
        "config.yaml",
        "environment.json",
        "few_shot.json",
        "metrics.jsonl",
        "results.json",
    ]
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["method"] == "rmadapter"
    assert set(results["accuracy"]) == {"base", "new", "hm"}
    assert results["images"] == {"base": 6, "new": 6}
    assert results["few_shot_hash"] == json.loads((folder / "few_shot.json").read_text())["hash"]
    assert results["trained_parameters"] == sum(t.numel() for t in adapter_of(folder).values())
    assert yaml.safe_load((folder / "config.yaml").read_text())["adapter"]["bottleneck"] == 8
    environment = json.loads((folder / "environment.json").read_text())
    assert {"torch", "git", "backend", "precision"} <= set(environment)
    lines = metrics_of(folder)
    assert [(m["kind"], m["epoch"], m["step"]) for m in lines] == [
        ("step", 1, 2),
        ("step", 1, 4),
        ("epoch", 1, 4),
        ("step", 2, 6),
        ("step", 2, 8),
        ("epoch", 2, 8),
    ]
    assert {"loss", "cross_entropy", "reconstruction_vision", "consistency_text", "accuracy", "lr"} <= set(lines[0])
    assert lines[0]["grad_norm_reconstruction"] > 0
    assert lines[0]["grad_norm_cross_entropy"] > 0
    assert [m["lr"] for m in lines if m["kind"] == "step"] == pytest.approx([0.05, 0.05, 0.025, 0.025])
    out = capsys.readouterr().out
    assert "adapters: backend" in out
    assert "epoch 2 of 2" in out


def test_same_seed_same_bits_whatever_the_workers(config, tmp_path):
    train(config(evaluate=False))
    train(config(evaluate=False, workers=2, out=str(tmp_path / "again")))
    train(config(evaluate=False, seed=2, out=str(tmp_path / "other")))
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "again"))
    other = adapter_of(tmp_path / "other")
    assert not torch.equal(other["vision.2.w_down"], adapter_of(tmp_path / "run")["vision.2.w_down"])


def test_training_learns(config):
    results = train(config(epochs=12, augmentation="none", lr=0.1, loss=LossConfig(0, 0, 0, 0)))
    assert results["accuracy"]["base"] >= 80


class Killed(BaseException):
    """Stands for the end of the process: nothing in between catches it."""


def stop(*arguments, **names):
    raise Killed


@contextlib.contextmanager
def stopped_before_step(at: int, monkeypatch):
    """A run in it ends before the step of that number, from 0."""
    real = loop.TrainRun._step

    def step(self, *arguments):
        if self.step == at:
            raise Killed
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainRun, "_step", step)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("at", [1, 3, 4, 5, 7, 8])
def test_resumed_after_any_step_it_ends_with_the_same_bits(config, tmp_path, monkeypatch, at):
    whole = tmp_path / "whole"
    train(config(out=str(whole)))
    real, steps = loop.TrainRun._step, []

    def step(self, *arguments):
        if len(steps) == at:
            raise Killed
        steps.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(loop.TrainRun, "_step", step)
    try:
        train(config())
    except Killed:
        assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.undo()
    train(config(resume=True))
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(whole))
    clean = [{k: v for k, v in m.items() if k != "images_per_second"} for m in metrics_of(whole)]
    again = [{k: v for k, v in m.items() if k != "images_per_second"} for m in metrics_of(tmp_path / "run")]
    assert [m["step"] for m in again] == [m["step"] for m in clean]
    for one, other in zip(clean, again, strict=True):
        for key in set(one) & set(other):
            assert one[key] == pytest.approx(other[key])
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_killed_in_mid_epoch_resumed_bit_equal(images, clip_folder, tmp_path):
    """A real process, a real SIGKILL, once its first state is on the disk."""

    def command(out, *more):
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
        words = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "rmadapter.train", *words, "--no-evaluate", *more]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True, timeout=120)
    process = subprocess.Popen(
        command(tmp_path / "run"), env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    state = tmp_path / "run" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (tmp_path / "run" / "adapter").exists()
    again = subprocess.run(
        command(tmp_path / "run", "--resume"), check=True, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "resuming at epoch" in again.stdout
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "whole"))
    done = subprocess.run(
        command(tmp_path / "run", "--resume"), check=True, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "is finished" in done.stdout


def test_another_thread_count_is_said_on_resumption(config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "save_adapter", stop)
        with pytest.raises(Killed):
            train(config())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        train(config(resume=True))
    finally:
        torch.set_num_threads(threads)
    assert "will not be bit-equal" in capsys.readouterr().out


def test_a_folder_with_a_run_is_not_written_over_unasked(config, tmp_path):
    train(config())
    before = adapter_of(tmp_path / "run")
    with pytest.raises(InputError, match="--resume to go on with it, --overwrite"):
        train(config(seed=2))
    with pytest.raises(InputError, match=r"seed is 2, but the run in .* has 1"):
        train(config(seed=2, resume=True))
    assert_equal(adapter_of(tmp_path / "run"), before)
    train(config(seed=2, overwrite=True))
    assert not torch.equal(adapter_of(tmp_path / "run")["text.3.w_up"], before["text.3.w_up"])


def test_a_folder_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match="a folder with other files in it"):
            train(config(**changes))
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_changed_base_or_a_damaged_state_is_refused(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "save_adapter", stop)
        with pytest.raises(Killed):
            train(config())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "base_hash", lambda clip: "other")
        with pytest.raises(InputError, match="base model's weights are not those"):
            train(config(resume=True))
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"is damaged .*delete it to start the run anew"):
        train(config(resume=True))


def test_a_diverging_run_says_so(config, tmp_path):
    message = r"not finite at step \d+ .*after 2 such steps.*images: (ant|bee)/\d\d\.png, .*smaller --lr"
    with pytest.raises(DivergedError, match=message):
        train(config(lr=1e6, epochs=4, max_bad_steps=2))
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_step_without_a_finite_loss_is_skipped_and_counted(config, tmp_path, monkeypatch):
    """One bad batch: the run goes on, its means leave the step out, and the weights are as if it had not been."""
    real = loop.TrainRun._step

    def step(self, batch, wants_norms):
        before = [p.clone() for p in self.parameters.values()]
        if self.step == 3:
            batch.images *= float("nan")
        norms = real(self, batch, wants_norms)
        if self.step == 3:
            assert all(torch.equal(p, b) for p, b in zip(self.parameters.values(), before, strict=True))
            assert norms == {}
        return norms

    monkeypatch.setattr(loop.TrainRun, "_step", step)
    results = train(config(grad_norm_every=1))
    assert results["bad_steps"] == 1
    lines = metrics_of(tmp_path / "run")
    assert "bad_steps" not in lines[0]
    assert lines[1]["bad_steps"] == 1
    assert all(line["loss"] == line["loss"] for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"model": "ViT-B-23"}, "did you mean 'ViT-B-32'"),
        ({"precision": "fp16", "device": "cpu"}, "precision is 'fp16'"),
        ({"adapter": RMAdapterConfig(layers="last:8")}, "last:8.*the tower has 3 blocks"),
        ({"template": "word " * 80 + "{}"}, "longer than the model's context"),
        ({"backend": "nonesuch"}, "backend is 'nonesuch'"),
        ({"text_memory": "much"}, "text_memory is 'much'; valid: a size such as 800MB"),
        ({"views": 1, "cache_limit": "10KB"}, r"cache_limit is '10KB', but one view of 8 images takes"),
        ({"text_memory": "1KB"}, r"text_memory is 1024 bytes, but a class takes \d+"),
    ],
)
def test_what_cannot_work_stops_before_anything_is_written(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(config(**changes))
    assert not (tmp_path / "run").exists()


def test_views_need_the_prefix(config):
    for changes in ({"shortcuts": False}, {"step": StepConfig(image_prefix=False)}):
        with pytest.raises(InputError, match=r"views is 2, which are kept for step.image_prefix"):
            config(views=2, **changes)


def test_compile_needs_a_compiler_and_the_fast_step(config, monkeypatch):
    with pytest.raises(InputError, match=r"compile is True, which the plain step \(--no-shortcuts\) does not have"):
        train(config(compile=True, shortcuts=False))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"compile is True, but there is no C\+\+ compiler \(no-such-compiler\)"):
        train(config(compile=True))


def test_a_half_of_one_class_is_refused(clip_folder, config, tmp_path):
    folder = write_images(tmp_path / "three", ["ant", "bee", "cat"], 6)
    with pytest.raises(InputError, match="classes is 'new', which leaves 1 of 3 classes"):
        train(config(data=str(folder), classes="new"))


def test_unreadable_images(config, images, tmp_path, capsys):
    for path in sorted((images / "ant").iterdir())[:9]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"ant/0\d\.png.*--skip-bad-images"):
        train(config())
    assert not (tmp_path / "run").exists()
    results = train(config(skip_bad_images=True))
    assert "unreadable training images left out" in capsys.readouterr().out
    assert results["skipped"] > 0
    assert results["images"]["base"] + results["skipped"] == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "bf16", "residual": "compute"},
        {"precision": "bf16", "shortcuts": False},
        {"grad_checkpointing": True},
        {"grad_checkpointing": True, "shortcuts": False},
        {"fused": False},
        {"text_memory": "100KB"},
    ],
)
def test_other_ways_to_run(config, changes):
    assert train(config(**changes))["accuracy"]["base"] >= 0


def test_fused_and_eager_give_the_same_training_run(config, tmp_path):
    """The whole curve of losses, on whatever backend --fused takes here."""
    train(config(evaluate=False))
    train(config(evaluate=False, fused=False, out=str(tmp_path / "eager")))
    for one, other in zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "eager"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_with_and_without_shortcuts_it_is_the_same_run(config, tmp_path):
    train(config(evaluate=False))
    train(config(evaluate=False, shortcuts=False, out=str(tmp_path / "plain")))
    for one, other in zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "plain"), strict=True):
        for key in set(one) - {"images_per_second", "kind"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3), key
    plain = adapter_of(tmp_path / "plain")
    for name, tensor in adapter_of(tmp_path / "run").items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-3, atol=1e-4)


def test_a_resumed_run_keeps_its_chunks_whatever_is_free_now(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "save_adapter", stop)
        patch.setattr("rmadapter.plan.free_bytes", lambda device: 400_000)
        with pytest.raises(Killed):
            train(config())
    made = []
    real = trainings.make_step
    monkeypatch.setattr(trainings, "make_step", lambda *arguments: made.append(arguments[3]) or real(*arguments))
    train(config(resume=True))
    assert made == [100_000]


def test_explain_says_what_is_on_and_trains_nothing(config, tmp_path, capsys):
    train(config(explain=True, views=1))
    out = capsys.readouterr().out
    for words in ("text_prefix", "image_prefix", "last_token", "times fewer operations", "plain step", "views at hand"):
        assert words in out
    assert not (tmp_path / "run").exists()
    train(config(explain=True, shortcuts=False))
    assert "expected 1.00 times fewer" in capsys.readouterr().out


def test_views_are_those_of_fresh_augmentation_and_read_from_the_cache(config, tmp_path, monkeypatch, capsys):
    """Two views in two epochs are what fresh augmentation has; a second run decodes nothing and ends the same."""
    kept = {"views": 2, "cache_dir": str(tmp_path / "cache"), "evaluate": False}
    train(config(evaluate=False))
    train(config(**kept, out=str(tmp_path / "cold")))
    assert "views: 2 an image" in capsys.readouterr().out
    monkeypatch.setattr("rmadapter.data.loading.TrainImages.__getitem__", stop)
    train(config(**kept, workers=1, out=str(tmp_path / "warm")))
    assert_equal(adapter_of(tmp_path / "cold"), adapter_of(tmp_path / "run"))
    assert_equal(adapter_of(tmp_path / "warm"), adapter_of(tmp_path / "run"))
    with pytest.raises(Killed):
        train(config(**{**kept, "workers": 0}, augmentation="crop", out=str(tmp_path / "other")))


def test_waiting_for_images_is_measured_and_said(config, monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr("rmadapter.batches.time.perf_counter", lambda: float(next(clock)))
    waited = Waited(["first", "second"])
    assert list(waited) == ["first", "second"]
    assert waited.seconds == 3.0  # the third found the end
    monkeypatch.undo()
    for share, said in ((0.0, True), (1.0, False)):
        monkeypatch.setattr(loop, "SAID_WAITING", share)
        train(config(evaluate=False, overwrite=True))
        assert ("of the epoch waiting for images" in capsys.readouterr().out) == said


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_give_the_same_run_and_are_decoded_once(config, tmp_path, monkeypatch, capsys, workers):
    kept = {"image_cache": True, "cache_dir": str(tmp_path / "cache"), "evaluate": False, "workers": workers}
    train(config(evaluate=False))
    train(config(**kept, out=str(tmp_path / "cold")))
    assert "image cache: 16 of 16 images" in capsys.readouterr().out
    monkeypatch.setattr("rmadapter.data.items.read_image", stop)
    train(config(**kept, out=str(tmp_path / "warm")))
    for name in ("cold", "warm"):
        assert_equal(adapter_of(tmp_path / name), adapter_of(tmp_path / "run"))


@pytest.mark.parametrize("at", [2, 5, 6])
def test_resumed_with_views_it_ends_with_the_same_bits(config, tmp_path, monkeypatch, at):
    def views(name):
        return {"views": 1, "cache_dir": str(tmp_path / name), "evaluate": False}

    train(config(**views("a"), out=str(tmp_path / "whole")))
    with stopped_before_step(at, monkeypatch):
        train(config(**views("b")))
    train(config(**views("b"), resume=True))
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "whole"))


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
    monkeypatch.setattr("rmadapter.plan.check_graphs", lambda device, processes: None)
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
    real = loop.TrainRun._step
    bad = {}

    def step(self, batch, wants_norms):
        if self.step in (5, 6):
            batch.images *= float("nan")
            bad[self.step + 1] = [self.items[n].path for n in self.batches.numbers(self.epoch, self.step_in_epoch)]
        return real(self, batch, wants_norms)

    monkeypatch.setattr(loop.TrainRun, "_step", step)
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


def test_memory_that_is_full_is_said_with_what_is_needed(config, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.TrainRun, "_step", full)
    with pytest.raises(InputError, match=r"keeps about \d.\d GB of activations.*--text-memory or --batch-size"):
        train(config())
