"""``~`` in every option that names a file or a folder, of every command and however it is given."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from commands_options import COMMAND_OPTIONS

from rmadapter.cli import main
from rmadapter.config.help import docstring_of
from rmadapter.config.paths import ModelText, PathList, expand, path_fields
from rmadapter.errors import InputError
from rmadapter.files import cache_folder

MODEL, LIST = ModelText.__metadata__[0], PathList.__metadata__[0]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def text_of(form):
    """What a user writes; the home folder is what comes of its ``~``."""
    return {MODEL: "local-dir:~/m", LIST: "a,~/b"}.get(form, "~/x")


@pytest.mark.parametrize("command", COMMAND_OPTIONS)
@pytest.mark.parametrize("how", ["two words", "one word", "file"])
def test_it_is_the_home_folder_in_every_option_however_it_is_given(command, how, home, tmp_path):
    options = COMMAND_OPTIONS[command]
    texts = {name: text_of(form) for name, form in path_fields(options.config).items()}
    bare = [texts.pop(options.positional)] if options.positional in texts else []
    if how == "two words":
        words = [word for name, text in texts.items() for word in (f"--{name}", text)]
    elif how == "one word":
        words = [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]
    elif command in ("sweep", "search"):  # there a file is of the trainings
        return
    else:
        (tmp_path / "own.yaml").write_text("".join(f"{name}: {text}\n" for name, text in texts.items()))
        words = ["--config", str(tmp_path / "own.yaml")]
    config = options.parse([*options.words, *words, *bare])
    assert {name: getattr(config, name) for name in texts} == {
        name: text.replace("~", home) for name, text in texts.items()
    }
    if bare:
        assert getattr(config, options.positional)[-1] == f"{home}/x"


@pytest.mark.parametrize("text", ["ViT-B-16", "hf-hub:~/x", "local-dir"])
def test_a_model_is_a_folder_behind_its_scheme_alone(text):
    assert COMMAND_OPTIONS["train"].parse(["--data", "x", "--model", text]).model == text


def test_a_sweep_and_a_search_hand_paths_on_to_trainings(home):
    from rmadapter.sweeps.optuna_search import parse_search, trial_config
    from rmadapter.sweeps.settings import parse_sweep

    given = ["--cache-dir=~/c", "--model", "local-dir:~/m"]
    _, sweep = parse_sweep(["base2new", "--data=~/a,emoji_food", "--methods=single", "--seeds=1", *given])
    runs = [sweep.config(run) for run in sweep.runs()]
    assert [run.data for run in runs] == [f"{home}/a", "emoji_food"]
    trial = trial_config(parse_search(["--data", "x", *given]), Path("x"), 1, {})
    for run in (*runs, trial):
        assert (run.cache_dir, run.model) == (f"{home}/c", f"local-dir:{home}/m")


@pytest.mark.parametrize("command", COMMAND_OPTIONS)
def test_every_option_whose_sentence_speaks_of_files_is_known_as_a_path(command):
    config = COMMAND_OPTIONS[command].config
    said = {name for name, says in docstring_of(config)[1].items() if re.search(r"\b(files?|folders?|dir)\b", says)}
    others = {"steps", "batch_size", "bundle", "keep", "trust_base"}  # speak of them, name none
    assert said - others <= set(path_fields(config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nobody-here/x", r"out is '~nobody-here/x', and there is no home folder ~nobody-here; valid: another path"),
        ("", "out is ''; valid: a path, or no out at all"),
        (" ", "out is ' '; valid"),
        ("a\0b", r"out is 'a\\x00b', which no file can be called"),
        ("\ud800", r"out is '\\ud800', which no file can be called"),
    ],
)
def test_what_is_no_path_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        COMMAND_OPTIONS["train"].parse(["--data", "x", "--out", text])


def test_of_another_user_and_in_names_that_are_not_utf_8(home):
    root = os.path.expanduser("~root")
    assert [expand(path) for path in ("~root/x", "~", "./~/x", "a~b")] == [f"{root}/x", home, "./~/x", "a~b"]
    name = os.fsdecode(b"~/\xff")
    assert expand(name) == home + name[1:]


def test_the_file_of_config_itself(home, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own.yaml").write_text("shots: 3\n")
    for words in (["--config", "~/own.yaml"], ["--config=~/own.yaml"]):
        assert COMMAND_OPTIONS["train"].parse(["--data", "x", *words]).shots == 3


def test_no_folder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "sets").mkdir(parents=True)
    assert main(["datasets", "check", "--data-root=~/sets"]) == 0
    assert main(["report", "~nobody-here/runs"]) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert cache_folder(None, "views") == tmp_path / "home" / ".cache" / "rmadapter" / "views"
    assert not (tmp_path / "~").exists()


def test_without_a_home_folder(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(InputError, match="no home folder; valid: --cache-dir"):
        cache_folder(None, "images")
