"""A run's folder: one process at a time, one run on the data that it began with, and nothing lost in it."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import shlex
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import write_images
from small_runs import FullDisk, Killed, metrics_of, stop, stopped_before_step

from rmadapter import InputError
from rmadapter.cli import main
from rmadapter.config.seeds import LARGEST_SEED
from rmadapter.data import load_data
from rmadapter.data.loading import EvalImages, TrainImages
from rmadapter.errors import StoppedError
from rmadapter.locks import ProcessLock
from rmadapter.methods import METHODS
from rmadapter.training import adapter_run, loop
from rmadapter.training.adapter_run import train
from rmadapter.training.by_method import train_method
from rmadapter.training.metrics_log import MetricsLog
from rmadapter.training.probe_run import train_probe
from rmadapter.training.run_errors import DivergedError
from rmadapter.training.run_folder import LOCK, RunFolder

KINDS = ("rmadapter", "linear-probe", "zeroshot")


@pytest.fixture
def config(config):
    """One epoch of two steps, without a test."""
    return functools.partial(config, epochs=1, shots=2, checkpoint_every=1, grad_norm_every=0, evaluate=False)


def trained(config, method, **changes):
    """By a method of any kind, of which one does nothing without a test."""
    changes = {"evaluate": True, **changes} if method == "zeroshot" else changes
    return train_method(METHODS[method], config(label=method, **changes))


@pytest.fixture
def step(monkeypatch):
    """Calls a function before the training step of that number, from 0, or each; the last call counts."""
    real = loop.TrainingLoop._step

    def at(number, function):
        def step(self, *arguments):
            if number in (None, self.step):
                function(self)
            return real(self, *arguments)

        monkeypatch.setattr(loop.TrainingLoop, "_step", step)

    return at


@pytest.mark.parametrize("method", KINDS)
def test_a_folder_that_another_process_has_is_left_to_it(config, tmp_path, method):
    with RunFolder(tmp_path / "new" / "run").held():
        with pytest.raises(InputError, match=rf"another run is going on \(process {os.getpid()} on .*, since 20"):
            trained(config, method, out=str(tmp_path / "new" / "run"))
        assert {path.name for path in (tmp_path / "new" / "run").iterdir()} == {".lock", ".lock.holder"}
    assert not (tmp_path / "new").exists()  # nothing came of it


def test_a_run_has_its_folder_to_its_end(config, tmp_path, step):
    seen = []
    step(1, lambda _: seen.append(ProcessLock(tmp_path / "run" / LOCK).holder))
    train(config())
    assert [holder.pid for holder in seen] == [os.getpid()]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_one_that_lost_its_lock_stops_before_it_writes(config, tmp_path, step):
    step(1, lambda _: (tmp_path / "run" / LOCK).unlink())
    with pytest.raises(StoppedError, match=r"\.lock was deleted, or its folder moved"):
        train(config())
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("method", KINDS)
def test_overwriting_deletes_a_runs_own_files_alone(config, tmp_path, method):
    folder = tmp_path / "run"
    trained(config, method)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"beside a run there is 'notes\.txt'"):
        trained(config, method, overwrite=True)
    with pytest.raises(InputError, match="valid: --resume to go on with it, another --out"):
        trained(config, method)
    (folder / "notes.txt").rename(tmp_path / "notes.txt")
    (folder / ".git").mkdir()
    trained(config, method, overwrite=True)
    assert (folder / ".git").is_dir()
    # What has only a configuration in it is nobody's run.
    for path in ("run.json", "results.json"):
        (folder / path).unlink()
    with pytest.raises(InputError, match="a folder with other files in it"):
        trained(config, method, overwrite=True)
    assert (folder / "config.yaml").is_file()


def test_overwriting_follows_no_link(config, tmp_path):
    train(config())
    (tmp_path / "run" / "adapter").rename(tmp_path / "kept")
    (tmp_path / "run" / "adapter").symlink_to(tmp_path / "kept")
    with pytest.raises(InputError, match="beside a run there is 'adapter'"):
        train(config(overwrite=True))
    assert len(list((tmp_path / "kept").iterdir())) == 2


def change(images):
    """Another image, and so another split; returns the first digits of the hashes before and after it."""
    before = load_data(str(images)).content_hash
    (images / "ant" / "new.png").write_bytes((images / "ant" / "00.png").read_bytes())
    (images / "split_rmadapter.json").unlink()
    return before[:12], load_data(str(images)).content_hash[:12]


@pytest.mark.parametrize("method", KINDS)
def test_a_finished_run_on_other_data_is_not_the_one_that_was_asked_for(config, images, method):
    trained(config, method)
    trained(config, method, resume=True)
    before, after = change(images)
    with pytest.raises(InputError, match=rf"data animals .* its content hash is {after}, and was {before}; valid with"):
        trained(config, method, resume=True)


def test_a_run_of_an_earlier_version_had_the_defaults_of_options_that_have_come_since(config, tmp_path, monkeypatch):
    with stopped_before_step(1, monkeypatch):
        train(config())
    file = tmp_path / "run" / "config.yaml"
    options = yaml.safe_load(file.read_text())
    del options["residual"], options["space"], options["adapter"]["objective"]
    file.write_text(yaml.safe_dump(options))
    assert train(config(resume=True))
    for missing, said in (("lr", "lr is 0.05, but the run in .* has 0.0015"), (None, "it holds no options")):
        file.write_text(yaml.safe_dump({k: v for k, v in options.items() if k != missing}) if missing else "")
        with pytest.raises(InputError, match=said):
            train(config(resume=True))


def test_a_run_does_not_go_on_with_other_data(config, images, monkeypatch):
    with stopped_before_step(1, monkeypatch):
        train(config())
    before, after = change(images)
    with pytest.raises(
        InputError, match=f"its content hash is {after}, and was {before}; valid with --resume: the same"
    ):
        train(config(resume=True))


@pytest.mark.parametrize("method", KINDS)
def test_a_test_image_may_be_put_right_until_the_run_has_results(method, config, images):
    data = load_data(str(images))
    spoilt = images / data.test[0].path
    content = spoilt.read_bytes()
    spoilt.write_bytes(b"spoilt")
    with pytest.raises((StoppedError, InputError), match="cannot be read"):
        trained(config, method, evaluate=True)
    spoilt.write_bytes(content)
    assert trained(config, method, evaluate=True, resume=True)["data_hash"] == data.content_hash
    trained(config, method, evaluate=True, resume=True)
    spoilt.write_bytes(content + bytes(1))
    with pytest.raises(InputError, match="or has files of other sizes"):
        trained(config, method, evaluate=True, resume=True)


def test_a_copy_of_the_data_elsewhere_is_the_same_data(config, images, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    data = {"data": "animals", "data_root": str(tmp_path)}
    with stopped_before_step(1, monkeypatch):
        train(config(**data))
    images.rename(tmp_path / "elsewhere" / "animals")
    assert train(config(**data | {"data_root": str(tmp_path / "elsewhere")}, resume=True))


def test_a_data_set_is_told_by_its_name_and_hash_and_not_by_its_path(config, images, tmp_path, monkeypatch):
    """As a cluster gives each job a scratch folder of its own, and a shell ends a folder's name with a slash."""
    with stopped_before_step(1, monkeypatch):
        train(config())
    (tmp_path / "elsewhere").mkdir()
    images.rename(tmp_path / "elsewhere" / "animals")
    monkeypatch.chdir(tmp_path / "elsewhere")
    results = train(config(data="animals/", resume=True))
    assert results["data"] == "animals"
    images = (tmp_path / "elsewhere" / "animals").rename(tmp_path / "elsewhere" / "beasts")
    with pytest.raises(InputError, match=r"data is '.*beasts', but the run in .* has '.*animals'"):
        train(config(data=str(images), resume=True))
    write_images(tmp_path / "animals", ["ant", "bee", "cat", "dog"], 10, seed=1)
    with pytest.raises(InputError, match="its content hash is"):
        train(config(data=str(tmp_path / "animals"), resume=True))


def test_the_run_of_another_method_is_not_gone_on_with(config):
    trained(config, "linear-probe")
    for method in ("zeroshot", "rmadapter"):
        with pytest.raises(InputError, match=r"method is one of kind .*, but that of the run in .* is 'probe'"):
            trained(config, method, resume=True)


def test_what_changes_no_weight_may_change(config, monkeypatch):
    with stopped_before_step(1, monkeypatch):
        train(config(log_every=4, grad_norm_every=1))
    found = train(config(label="mine", log_every=1, evaluate=True, skip_bad_images=True, resume=True))
    assert (found["method"], set(found["accuracy"])) == ("mine", {"base", "new", "hm"})


def test_only_what_would_be_accepted_is_recommended(config, tmp_path):
    train(config())
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"lr is 0\.1, but the run in .* has 0\.05; valid: another --out$"):
        train(config(lr=0.1))


@pytest.fixture
def untrained(monkeypatch):
    """No model may be loaded."""
    monkeypatch.setattr(adapter_run, "load_backbone", stop)
    monkeypatch.setattr("rmadapter.training.probe_run.load_backbone", stop)


@pytest.mark.parametrize(("test", "which"), [((), " of the base classes"), ((0, 1), " of the new classes")])
def test_without_test_images_nothing_is_trained(config, images, tmp_path, untrained, test, which):
    data = load_data(str(images))
    data = replace(data, test=[item for item in data.test if item.label in test])
    with pytest.raises(InputError, match=f"data animals has no test images{which}, .*; valid: .*--no-evaluate"):
        train(config(evaluate=True), data=data)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Killed):
        train(config(), data=data)
    if not test:
        with pytest.raises(InputError, match="no test images of the base classes"):
            train_probe(config(evaluate=True), data=data)


def test_a_new_class_whose_prompt_is_too_long_is_said_before_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_run, "_make_model", stop)
    write_images(tmp_path / "zoo", ["ant", "bee", "cat", "_".join("x" * 80)], 10)
    with pytest.raises(InputError, match="longer than the model's context of 77 tokens"):
        train(config(data=str(tmp_path / "zoo"), evaluate=True))


def test_a_disk_without_room_is_said_before_training(config, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(loop.TrainingLoop, "fit", stop)
    with pytest.raises(InputError, match=r"where the 1\.1 MB that a run needs cannot be written: No space left"):
        train(config())


def test_a_disk_that_fills_up_is_said_with_the_file(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log._file = io.BufferedWriter(FullDisk(log._file))

    def fill():
        with contextlib.closing(log):
            log.write({"loss": 1.0})

    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be written: No space left"):
        fill()


@pytest.mark.parametrize("method", ["rmadapter", "linear-probe"])
def test_what_cannot_be_tested_is_kept_and_tested_later(config, images, tmp_path, monkeypatch, method):
    spoilt = next(item for item in load_data(str(images)).test if item.name == "bee")
    (images / spoilt.path).write_bytes(b"spoilt")
    with pytest.raises(StoppedError, match=r"saved in .*adapter, but its test failed: .*--resume goes on") as raised:
        trained(config, method, evaluate=True)
    assert not (tmp_path / "run" / "results.json").exists()
    # The command that it names does what it says.
    command = str(raised.value).rpartition("test it with rmadapter ")[2]
    assert main([*shlex.split(command), "--workers", "0"]) == 0
    if method == "rmadapter":
        monkeypatch.setattr(loop.TrainingLoop, "_step", stop)
        with pytest.raises(StoppedError):
            trained(config, method, resume=True, evaluate=True)
    found = trained(config, method, resume=True, skip_bad_images=True, evaluate=True)
    assert found["skipped"] == 1
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_finished_run_without_a_test_names_the_command_for_it(config, capsys):
    train(config())
    train(config(resume=True, evaluate=True))
    command = re.search("it was made without a test, which this does: rmadapter (.*)", capsys.readouterr().out)
    assert main([*shlex.split(command.group(1)), "--workers", "0"]) == 0
    assert "harmonic mean" in capsys.readouterr().out


def end_in_worker(self, *_):
    assert torch.utils.data.get_worker_info() is not None
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", KINDS)
def test_a_killed_worker_of_a_loader_is_said(config, monkeypatch, method):
    monkeypatch.setattr(TrainImages if method == "rmadapter" else EvalImages, "__getitem__", end_in_worker)
    with pytest.raises(StoppedError, match=r"decodes images has ended .*--resume goes on .*--workers 0"):
        trained(config, method, workers=1)


def test_a_worker_that_is_killed_in_the_test_loses_no_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr(EvalImages, "__getitem__", end_in_worker)
    with pytest.raises(
        StoppedError, match=r"adapter is trained and saved in .*, both with --workers 0 too; or test it"
    ):
        train(config(workers=1, evaluate=True))
    monkeypatch.undo()
    monkeypatch.setattr(loop.TrainingLoop, "_step", stop)
    assert train(config(resume=True, evaluate=True))["accuracy"]


def test_metrics_that_vanish_under_a_run_end_it_and_it_goes_on_without_their_lines(config, tmp_path, step, capsys):
    step(1, lambda _: (tmp_path / "run" / "metrics.jsonl").unlink())
    with pytest.raises(StoppedError, match=r"metrics\.jsonl was deleted while the run was writing to it; --resume"):
        train(config(log_every=1))
    step(-1, stop)
    train(config(log_every=1, resume=True))
    assert "has 0 bytes of the" in capsys.readouterr().out
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [2, 2]


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(config, tmp_path, step):
    kept = {}

    def spoil(run):
        parameter = next(iter(run.parameters.values()))
        handle = parameter.register_hook(lambda gradient: handle.remove() or gradient * float("inf"))
        kept.update({name: p.detach().clone() for name, p in run.parameters.items()})

    def compare(run):
        assert all(torch.equal(parameter, kept[name]) for name, parameter in run.parameters.items())
        assert run.bad_steps == 1

    def around(run):
        spoil(run) if run.step == 0 else compare(run)

    step(None, around)
    assert train(config(max_bad_steps=1))["bad_steps"] == 1
    assert metrics_of(tmp_path / "run")[0]["bad_steps"] == 1
    step(0, spoil)
    with pytest.raises(DivergedError, match="the gradient of the loss is not finite at step 1 "):
        train(config(overwrite=True, max_bad_steps=0))


@pytest.mark.parametrize("method", ["linear-probe", "zeroshot"])
def test_under_torchrun_what_has_no_training_step_runs_once(config, tmp_path, monkeypatch, capsys, method):
    places = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "none", "MASTER_PORT": "1"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    assert trained(config, method) == {}
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    assert trained(config, method)["data"] == "animals"
    assert "one of the 2 processes does all" in capsys.readouterr().out


def test_a_seed_has_as_many_bits_as_every_generator_takes(config):
    assert train(config(seed=LARGEST_SEED))["seed"] == LARGEST_SEED
    with pytest.raises(InputError, match=f"seed is {LARGEST_SEED + 1}; valid: a number >= 0 and <= {LARGEST_SEED}"):
        config(seed=LARGEST_SEED + 1)


def test_a_probe_takes_no_more_shots_than_the_data_set_may_have(config, images, tmp_path):
    data = replace(load_data(str(images)), max_shots=2)
    with pytest.raises(InputError, match="shots is 3; valid: a number >= 1 and <= 2"):
        train_probe(config(shots=3), data=data)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_json_of_others_is_no_run(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "results.json", "metrics.jsonl"):
        (folder / name).write_text("{}")
    (folder / "run.json").write_text('{"wandb": 1}')
    with pytest.raises(InputError, match="other files in it"):
        train(config(overwrite=True))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "results.json",
        "run.json",
    ]


def test_what_is_hidden_beside_an_adapter_does_not_stop_overwriting(config, tmp_path):
    train(config(evaluate=False))
    (tmp_path / "run" / "adapter" / ".DS_Store").write_text("x")
    train(config(evaluate=False, overwrite=True))
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()
