"""``rmadapter train --help`` and ``--help-all``."""

from __future__ import annotations

import dataclasses
import re

import pytest

from rmadapter.cli import main
from rmadapter.config import TRAIN_HELP, TrainConfig
from rmadapter.config.arguments import option_fields

GROUPS = {"adapter", "prompt", "space", "lora", "head", "loss", "step"}


def shown(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *argv])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_every_option_is_in_one_place():
    listed = [*TRAIN_HELP.first, *(name for names in TRAIN_HELP.groups.values() for name in names)]
    assert sorted(listed) == sorted(field.name for field in dataclasses.fields(TrainConfig) if field.name not in GROUPS)
    assert 10 <= len(TRAIN_HELP.first) <= 15


def test_help_shows_first_what_people_set(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(capsys, "--help")
    assert len(text.splitlines()) < 125  # with all that can be set it is three times as long
    places = [text.index(part) for part in ("--data STR", "--shots INT", "--method METHOD", "Optimiser and schedule:")]
    assert places == sorted(places)
    assert "(default: 0.0015)" in " ".join(text.split())
    assert "momentum, weight-decay, adam-eps" in " ".join(text.split())
    assert "--momentum" not in text
    assert "rmadapter train --help-all" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("word", ["--help-all", "--help_all"])
def test_help_all_says_what_every_option_is(word, capsys):
    text = shown(capsys, word)
    for name in option_fields(TrainConfig):
        if name not in {*GROUPS, "adapter.vision", "adapter.text"}:
            assert re.search(rf"^  --{re.escape(name.replace('_', '-'))}[ ,]", text, re.MULTILINE), name
    assert "width r of the shared down-projection" in " ".join(text.split())


def test_a_mistyped_help_is_told(capsys):
    assert main(["train", "--hepl-all"]) == 2
    assert "did you mean '--help_all'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "predict", "export", "sweep", "search", "datasets", "report"])
def test_the_other_commands_have_one_help(command, capsys):
    texts = set()
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            main([command, word])
        assert stopped.value.code == 0
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert text.startswith(f"usage: rmadapter {command}")
