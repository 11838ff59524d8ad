"""Training runs on a small CLIP and a small folder: what they write, and that they can be stopped anywhere."""

from __future__ import annotations

import json
import locale

import pytest
import torch
import yaml
from conftest import run_config, write_images
from small_runs import Killed, adapter_of, assert_equal, metrics_of, stop

from rmadapter import InputError, LossConfig, RMAdapterConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.data import load_data
from rmadapter.step.batches import Waited
from rmadapter.training import loop
from rmadapter.training.adapter_run import few_shot, train
from rmadapter.training.run_errors import DivergedError
from rmadapter.training.run_folder import RunFolder


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
        "run.json",
    ]
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["method"] == "rmadapter"
    assert set(results["accuracy"]) == {"base", "new", "hm"}
    assert results["images"] == {"base": 6, "new": 6}
    assert results["few_shot_hash"] == json.loads((folder / "few_shot.json").read_text())["hash"]
    assert results["trained_parameters"] == sum(t.numel() for t in adapter_of(folder).values())
    configured = yaml.safe_load((folder / "config.yaml").read_text())
    assert configured["adapter"]["bottleneck"] == 8
    settings = results["settings"]
    assert results["text_memory"] is None  # all prompts fit
    assert settings == {name: configured[name] for name in settings}
    assert {"lr", "epochs", "batch_size", "template", "augmentation", "adapter", "loss"} <= settings.keys()
    # Those that stand beside them, that say where and how fast, and what is written down.
    assert not {"data", "seed", "precision", "out", "device", "workers", "log_every", "cuda_graphs"} & settings.keys()
    environment = json.loads((folder / "environment.json").read_text())
    assert {"torch", "git", "backend", "precision", "text_memory"} <= set(environment)
    assert environment["cuda_graphs"] is False
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


def test_same_seed_same_bits_whatever_the_workers(config, base_run, tmp_path):
    train(config(evaluate=False, workers=2, out=str(tmp_path / "again")))
    train(config(evaluate=False, seed=2, out=str(tmp_path / "other")))
    assert_equal(adapter_of(base_run), adapter_of(tmp_path / "again"))
    other = adapter_of(tmp_path / "other")
    assert not torch.equal(other["vision.2.w_down"], adapter_of(base_run)["vision.2.w_down"])


def test_names_may_be_in_letters_that_the_locale_lacks(clip_folder, tmp_path):
    images = write_images(tmp_path / "desserts", ["crème brûlée", "jalebi", "しるこ", "trifle"], 10)
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")  # files that are opened without an encoding are ASCII from here on
    try:
        train(run_config(images, clip_folder, tmp_path / "run", epochs=1, evaluate=False))
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert "しるこ" in (tmp_path / "run" / "few_shot.json").read_text(encoding="utf-8")


def test_training_learns(config):
    results = train(config(epochs=12, augmentation="none", lr=0.1, loss=LossConfig(0, 0, 0, 0)))
    assert results["accuracy"]["base"] >= 80


def test_a_folder_with_a_run_is_not_written_over_unasked(config, tmp_path):
    train(config())
    before = adapter_of(tmp_path / "run")
    with pytest.raises(InputError, match="where a run is already; valid: --resume to go on with it, --overwrite"):
        train(config())
    with pytest.raises(InputError, match=r"already: seed is 2, but .* has 1; valid: --overwrite to replace it,"):
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


def test_a_temporary_file_that_a_kill_has_left_is_no_other_file(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.123.tmp").write_text("")
    RunFolder(tmp_path / "run").check(config())


def test_a_diverging_run_says_so(config, tmp_path):
    message = r"not finite at step \d+ .*after 2 such steps.*images: (ant|bee)/\d\d\.png, .*smaller --lr"
    with pytest.raises(DivergedError, match=message):
        train(config(lr=1e6, epochs=4, max_bad_steps=2))
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_step_without_a_finite_loss_is_skipped_and_counted(config, tmp_path, monkeypatch):
    """One bad batch: the run goes on, its means leave the step out, and the weights are as if it had not been."""
    real = loop.TrainingLoop._step

    def step(self, batch, wants_norms):
        before = [p.clone() for p in self.parameters.values()]
        if self.step == 3:
            batch.images *= float("nan")
        norms = real(self, batch, wants_norms)
        if self.step == 3:
            assert all(torch.equal(p, b) for p, b in zip(self.parameters.values(), before, strict=True))
            assert norms == {}
        return norms

    monkeypatch.setattr(loop.TrainingLoop, "_step", step)
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
        (
            {"views": 1, "cache_limit": "10KB"},
            r"cache_limit is '10KB', but one view of 8 images takes \d+\.\d\d [KM]B; valid",
        ),
        ({"cache_limit": "abc"}, "cache_limit is 'abc'; valid: a size such as 800MB"),
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
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(InputError, match=r"compile is True, but there is no C\+\+ compiler \(no-such-compiler\)"):
        train(config(compile=True))


def test_a_run_that_is_all_warm_up_is_refused_or_says_so(config, tmp_path, capsys):
    with pytest.raises(InputError, match="warmup_epochs is 5, but epochs is 5; valid: less than epochs"):
        config(epochs=5, warmup_epochs=5)
    # 8 steps in batches of 2 of 8 images; how many images there are is known with the data alone.
    with pytest.raises(InputError, match="warmup_epochs is 2, but epochs is 2 by steps_per_shot 2; valid: less"):
        train(config(steps_per_shot=2, warmup_epochs=2))
    assert not (tmp_path / "run").exists()
    # Of --epochs 1 with a recipe that has one epoch of warm-up.
    train(config(epochs=1, warmup_epochs=1, evaluate=False))
    assert "warm-up: the whole run is at warmup_lr 1e-05; --warmup-epochs 0, or" in capsys.readouterr().out


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
    assert "training images cannot be read, such as" in capsys.readouterr().out
    assert results["skipped"] > 0
    assert results["images"]["base"] + results["skipped"] == 6


def test_a_class_without_a_readable_image_moves_no_other_into_its_half(config, images):
    data = load_data(str(images))
    for item in data.train:
        if item.name == "ant":
            (images / item.path).write_bytes(b"no image")
    _, items, names, _ = few_shot(config(skip_bad_images=True), data, data.read)
    assert names == ["ant", "bee"]
    assert {(item.label, item.name) for item in items} == {(1, "bee")}


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


def test_fused_and_eager_give_the_same_training_run(config, base_run, tmp_path):
    """The whole curve of losses, on whatever backend --fused takes here."""
    train(config(evaluate=False, fused=False, out=str(tmp_path / "eager")))
    for one, other in zip(metrics_of(base_run), metrics_of(tmp_path / "eager"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_with_and_without_shortcuts_it_is_the_same_run(config, base_run, tmp_path):
    train(config(evaluate=False, shortcuts=False, out=str(tmp_path / "plain")))
    for one, other in zip(metrics_of(base_run), metrics_of(tmp_path / "plain"), strict=True):
        for key in set(one) - {"images_per_second", "kind"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3), key
    plain = adapter_of(tmp_path / "plain")
    for name, tensor in adapter_of(base_run).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-3, atol=1e-4)


def test_explain_says_what_is_on_and_trains_nothing(config, tmp_path, capsys):
    train(config(explain=True, views=3))
    assert "from epoch 4 on (this run has 2), " in capsys.readouterr().out
    train(config(explain=True, views=1))
    out = capsys.readouterr().out
    for words in ("text_prefix", "image_prefix", "last_token", "times fewer operations", "plain step", "views at hand"):
        assert words in out
    assert not (tmp_path / "run").exists()
    train(config(explain=True, shortcuts=False))
    assert "expected 1.00 times fewer" in capsys.readouterr().out


def test_views_are_those_of_fresh_augmentation_and_read_from_the_cache(config, base_run, tmp_path, monkeypatch, capsys):
    """Two views in two epochs are what fresh augmentation has; a second run decodes nothing and ends the same."""
    kept = {"views": 2, "cache_dir": str(tmp_path / "cache"), "evaluate": False}
    train(config(**kept, out=str(tmp_path / "cold")))
    assert "views: 2 an image" in capsys.readouterr().out
    monkeypatch.setattr("rmadapter.data.loading.TrainImages.__getitem__", stop)
    train(config(**kept, workers=1, out=str(tmp_path / "warm")))
    assert_equal(adapter_of(tmp_path / "cold"), adapter_of(base_run))
    assert_equal(adapter_of(tmp_path / "warm"), adapter_of(base_run))
    with pytest.raises(Killed):
        train(config(**{**kept, "workers": 0}, augmentation="crop", out=str(tmp_path / "other")))


def test_kept_views_are_of_these_images_alone(images, clip_folder, tmp_path):
    """Another data set of as many images, with the same cache: nothing that it trains on is the first one's."""
    others = write_images(tmp_path / "others", [folder.name for folder in sorted(images.iterdir())], 10, seed=1)
    kept = {"views": 2, "cache_dir": str(tmp_path / "cache"), "evaluate": False}
    for name, data in (("first", images), ("second", others)):
        train(run_config(data, clip_folder, tmp_path / name, **kept))
    train(run_config(others, clip_folder, tmp_path / "alone", evaluate=False))
    assert_equal(adapter_of(tmp_path / "second"), adapter_of(tmp_path / "alone"))


def test_waiting_for_images_is_measured_and_said(config, monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr("rmadapter.step.batches.time.perf_counter", lambda: float(next(clock)))
    waited = Waited(["first", "second"])
    assert list(waited) == ["first", "second"]
    assert waited.seconds == 3.0  # the third found the end
    monkeypatch.undo()
    for share, said in ((0.0, True), (1.0, False)):
        monkeypatch.setattr(loop, "SAID_WAITING", share)
        train(config(evaluate=False, overwrite=True))
        assert ("of the epoch waiting for images" in capsys.readouterr().out) == said


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_give_the_same_run_and_are_decoded_once(config, base_run, tmp_path, monkeypatch, capsys, workers):
    kept = {"image_cache": True, "cache_dir": str(tmp_path / "cache"), "evaluate": False, "workers": workers}
    train(config(**kept, out=str(tmp_path / "cold")))
    assert "image cache: 16 of 16 images" in capsys.readouterr().out
    monkeypatch.setattr("rmadapter.data.items.read_image", stop)
    train(config(**kept, out=str(tmp_path / "warm")))
    for name in ("cold", "warm"):
        assert_equal(adapter_of(tmp_path / name), adapter_of(base_run))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_during_training_is_said_in_a_sentence(config, images, monkeypatch, workers):
    real = loop.TrainingLoop._step

    def step(*arguments):
        for path in images.rglob("*.png"):
            path.write_bytes(b"no image")
        return real(*arguments)

    monkeypatch.setattr(loop.TrainingLoop, "_step", step)
    with pytest.raises(
        InputError, match=r"^image [^\n]*\.png cannot be read: it is no image of a format that is read$"
    ):
        train(config(workers=workers))


def test_memory_that_is_full_is_said_with_what_is_needed(config, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.TrainingLoop, "_step", full)
    with pytest.raises(
        InputError,
        match=r"keeps about \d.\d GB of activations.*--text-memory, --grad-checkpointing or a smaller --batch-size",
    ) as said:
        train(config())
    assert "--no-cuda-graphs" not in str(said.value)


def test_workers_live_as_long_as_the_run(config, monkeypatch):
    """New ones at every epoch would cost more than the few steps of one."""
    started = []
    loader = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    real = loader.__init__
    monkeypatch.setattr(loader, "__init__", lambda self, *arguments: started.append(1) or real(self, *arguments))
    train(config(evaluate=False, workers=1, epochs=3))
    assert len(started) == 1
