"""Whole runs that compare with a second view and with sentences: resumed, with kept views, and the plain way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_config
from small_runs import adapter_of, assert_equal, metrics_of, stop, stopped_before_step

from rmadapter import InputError, LossConfig
from rmadapter.cli import main
from rmadapter.config import HeadConfig, PromptConfig, RMAdapterConfig
from rmadapter.data.loading import TrainImages, drawn_number
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.train_step import TrainStep
from rmadapter.training.adapter_run import train

SENTENCES = {name: [f"{name} number {number}" for number in range(4)] for name in ("ant", "bee", "a third")}
# Which of them each of the two epochs' four steps compares with.
DRAWN = [drawn_number(1, epoch, step, 4) for epoch in range(2) for step in range(4)]


@pytest.fixture(scope="module")
def made(animals, clip_folder, tmp_path_factory):
    """Makes configurations of CoPrompt's kind in a folder of the module's; the run in ``whole`` is finished."""
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "s.json").write_text(json.dumps(SENTENCES))
    loss = LossConfig(0, 0, 1, 1, "cosine", target="sentences", sentences=str(folder / "s.json"), second_view=True)

    def config(out, **changes):
        own = {
            "adapter": RMAdapterConfig(layers="none"),
            "prompt": PromptConfig(2, text_depth=2, vision_tokens=2, vision_depth=2, coupled=True),
            "head": HeadConfig(image_ratio=0.1, text_ratio=0.2),
            "loss": loss,
            "augmentation": "randaugment",
            "checkpoint_every": 1,
            "log_every": 1,
            "grad_norm_every": 0,
            "warmup_epochs": 1,
            "decay_power": 2,
            "evaluate": False,
        }
        return run_config(animals, clip_folder, folder / out, **{**own, **changes})

    train(config("whole"))
    return config


def weights_of(config):
    return adapter_of(Path(config.out))


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of the sentences that steps are given, while they are taken."""
    numbers = []
    for kind in (TrainStep, RMAdapterCLIP):

        def forward(self, *inputs, real=kind.forward):
            numbers.append(int(inputs[-1]))
            return real(self, *inputs)

        monkeypatch.setattr(kind, "forward", forward)
    return numbers


def test_resumed_in_mid_epoch_it_ends_with_the_same_bits(made, monkeypatch, drawn):
    with stopped_before_step(6, monkeypatch):
        train(made("resumed"))
    assert drawn == DRAWN[:6]
    results = train(made("resumed", resume=True))
    assert drawn == DRAWN
    assert_equal(weights_of(made("resumed")), weights_of(made("whole")))
    assert len(results["sentences_hash"]) == 64


def test_kept_views_are_those_of_a_run_without(made, tmp_path, monkeypatch):
    """Both views of each epoch's; a second run reads them and draws none."""
    cache = str(tmp_path / "cache")
    train(made("kept", views=2, cache_dir=cache))
    assert_equal(weights_of(made("kept")), weights_of(made("whole")))
    monkeypatch.setattr(TrainImages, "__getitem__", stop)
    train(made("read", views=2, cache_dir=cache))
    assert_equal(weights_of(made("read")), weights_of(made("whole")))
    (key,) = [json.loads(path.read_text()) for path in tmp_path.rglob("key.json")]
    assert key["targets"] == "second view"
    assert "RandAugment" in key["transform"]


def test_the_plain_step_trains_the_same(made, drawn):
    train(made("plain", shortcuts=False))
    assert drawn == DRAWN
    plain, whole = (
        [line for line in metrics_of(Path(made(out).out)) if line["kind"] == "step"] for out in ("plain", "whole")
    )
    for name in ("loss", "consistency_image", "consistency_text"):
        assert [line[name] for line in plain] == pytest.approx([line[name] for line in whole], rel=1e-3)
    assert len(plain) == 8


def test_other_sentences_are_not_gone_on_with(made, monkeypatch, tmp_path):
    with stopped_before_step(2, monkeypatch):
        train(made("changed"))
    path = Path(made("changed").loss.sentences)
    before = path.read_text()
    try:
        path.write_text(before.replace("bee number 3", "bee number 5"))
        with pytest.raises(InputError, match=r"the sentences in .*s\.json are not those that this run began with"):
            train(made("changed", resume=True))
    finally:
        path.write_text(before)
    train(made("changed", resume=True))
    assert_equal(weights_of(made("changed")), weights_of(made("whole")))


def test_without_a_file_it_is_the_published_prompt(made):
    loss = LossConfig(0, 0, 0, 1, "cosine", target="sentences")
    train(made("prompt", loss=loss))
    train(made("published", loss=LossConfig(0, 0, 0, 1, "cosine", target="published")))
    assert_equal(weights_of(made("prompt")), weights_of(made("published")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"ant": ["an ant"]}', "loss.sentences has none for class 'bee'"),
        ('{"ant": ["an ant"], "bee": ["a bee", "it hums"]}', "loss.sentences has 2 for class 'bee', but 1 for 'ant'"),
        ("{}", "s.json names no class"),
    ],
)
def test_a_file_that_does_not_do_is_said_before_training(content, message, animals, clip_folder, tmp_path, capsys):
    (tmp_path / "s.json").write_text(content)
    words = ["--data", str(animals), "--model", f"local-dir:{clip_folder}", "--classes", "base", "--shots", "2"]
    words += [
        "--prompt.text_depth",
        "2",
        "--prompt.vision_depth",
        "2",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", "--method", "coprompt", *words, "--loss.sentences", str(tmp_path / "s.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
