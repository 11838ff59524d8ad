"""Odd values for every option of every command: each is taken or refused with a sentence, never with a traceback."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from commands_options import COMMAND_OPTIONS

from rmadapter.config import RMAdapterConfig, TrainConfig
from rmadapter.config.arguments import option_fields
from rmadapter.config.seeds import LARGEST_SEED, seed_list
from rmadapter.errors import InputError
from rmadapter.runtime import resolve_device

TEXTS = [
    "",
    "\n",
    "~",
    "null",
    "#1",
    "{}",
    "-",
    "--help",
    "\0",
    "\x1b[31m",
    "\u202e",
    "\udcff",
    "猫😀",
    "a" * 5000,
    ",",
    "@",
]
NUMBERS = [
    "-1",
    "0",
    "nan",
    "-inf",
    "1e400",
    "9" * 25,
    "9" * 5000,
    "1:30",
    "0x10",
    "1_0",
    "1.5",
    "٣",
    "²",
    "[1, 2]",
    "[[",
]
ODD = [*TEXTS, *NUMBERS, "true", "!!python/name:os.system", "&a [*a]", "last:" + "9" * 30, "local-dir:", "${HOME}"]


@pytest.mark.parametrize("command", COMMAND_OPTIONS)
def test_no_traceback(command):
    """Some of the values for an option, others for the next; all of them over the options."""
    options = COMMAND_OPTIONS[command]
    fields = [name for name, kind in option_fields(options.config).items() if not dataclasses.is_dataclass(kind)]
    step = max(8, len(fields) // 2)
    for number, name in enumerate(fields):
        for odd in ODD[number % step :: step]:
            words = [odd] if name == options.positional else [f"--{name}={odd}"]
            with contextlib.suppress(InputError, SystemExit):
                options.parse([*options.words, *words])


@pytest.mark.parametrize("group", ["adapter", "adapter.vision", "loss", "step"])
def test_a_group_is_no_option(group):
    with pytest.raises(InputError, match=rf"option --{group} is a group of options; valid: --{group}\."):
        COMMAND_OPTIONS["train"].parse(["--data", "x", f"--{group}", "{}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "010x"], "shots is '010x'; valid: a whole number"),
        (["--epochs", "9" * 12], "epochs is 9+; valid: a number >= 1 and <= 2147483647"),
        (["--lr", "inf"], "^lr is inf; valid: a number$"),
        (["--lr", "nan", "--lr", "1"], "^lr is nan; valid: a number$"),
        (["--lr="], "^lr is ''; valid: a number$"),
        (["--cuda-graphs=auto", "--seed", "3"], "^cuda_graphs is auto; valid: true or false or null$"),
        (["--seed", "9" * 23], "^seed is 9{23}; valid: a number >= 0 and <= 9223372036854775807$"),
        (["--seed", "9" * 5000], r"^seed is '9+\.\.\.9+'; valid: a whole number of fewer digits$"),
        (["--loss.lambda1", "1e999"], r"loss\.lambda1 is inf; valid: a number >= 0"),
        (["--seed", str(2**63)], "seed is 9223372036854775808; valid: a number >= 0 and <= 9223372036854775807"),
        (["--label", "a/b"], "label is 'a/b'; valid: a text of one line without /"),
        (["--label", "\x1b[2J"], "label is .*; valid: a text of one line"),
        (["--template", "a \udcff {}"], "template is .*; valid: a text with one"),
    ],
)
def test_what_would_fail_later_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        COMMAND_OPTIONS["train"].parse(["--data", "x", *words])


def test_numbers_are_read_as_people_write_them():
    config = COMMAND_OPTIONS["train"].parse(["--data", "x", "--seed", "010", "--shots", "+4", "--lr", "1e-3"])
    assert (config.seed, config.shots, config.lr) == (10, 4, 1e-3)


def test_options_of_the_environment_are_none(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("COMMAND_BATCH_SIZE", "3")
    assert COMMAND_OPTIONS["eval"].parse(["--data", "x", "--adapter", "y"]).batch_size == 64


def test_seeds():
    assert seed_list("1, 2,3") == [1, 2, 3]
    for text in ("", "a", "-1", "1.5", str(LARGEST_SEED + 1), "9" * 5000):
        with pytest.raises(InputError, match="seeds "):
            seed_list(text)


@pytest.mark.parametrize(
    "name", ["", " ", "cpu:1", "cpu:99999", "cuda:", "cuda:-1", "cuda:" + "9" * 30, "\udcff", "CPU"]
)
def test_devices(name):
    with pytest.raises(InputError, match=r"device is .*; valid: auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_a_whole_number_that_no_float_holds_is_refused():
    with pytest.raises(InputError, match="lr is 1000"):
        TrainConfig(data="x", lr=10**400)
    with pytest.raises(InputError, match=r"adapter\.scale is 1000"):
        RMAdapterConfig(scale=10**400)
