"""Options of methods: which each has, which of a sweep it gets, which are refused; help."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from rmadapter.cli import main
from rmadapter.errors import InputError
from rmadapter.methods import METHODS
from rmadapter.methods.options import configure, own_words, parse_command


def test_an_option_of_what_a_method_does_not_train_is_refused():
    with pytest.raises(InputError, match=r"option '--lora.rank' is none of method 'coop'; valid: --prompt\.\*"):
        configure("coop", ["--data", "x", "--lora.rank", "4"])
    with pytest.raises(InputError, match=r"'--no-adapter.reconstruct' is none of method 'maple'"):
        configure("maple", ["--data", "x", "--no-adapter.reconstruct"])


def test_what_a_config_file_trains_beside_a_method_is_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lora:\n  rank: 4\nprompt:\n  text_tokens: 0\n")
    words = ["--data", "x", "--config", str(file)]
    with pytest.raises(InputError, match=r"config trains something of 'lora', which method 'coop' does not have; val"):
        configure("coop", words)
    with pytest.raises(InputError, match="something of 'lora', which method 'rmadapter' does not have"):
        configure("rmadapter", words)
    assert configure("clip-lora", words).lora.rank == 4
    assert configure("rmadapter+lora", words).lora.rank == 4
    assert configure("zeroshot", words).lora.rank == 4  # it trains nothing, whatever the file says


def test_a_sweep_hands_sentences_on_to_the_methods_that_read_them():
    words = ["--loss.sentences", "s.json", "--lr", "1"]
    assert own_words("coprompt", words) == words
    assert own_words("kgcoop", words) == own_words("rmadapter", words) == ["--lr", "1"]
    assert own_words("rmadapter", [*words, "--loss.target=sentences"]) == [*words, "--loss.target=sentences"]
    with pytest.raises(InputError, match=r"loss.sentences is 's.json', but loss.target is 'published'; valid: loss"):
        configure("kgcoop", ["--data", "x", *words])


def test_a_sweep_hands_on_to_each_method_what_it_has():
    words = ["--lora.rank", "4", "--prompt.text_tokens=8", "--no-adapter.reconstruct", "--lr", "1"]
    assert own_words("coop", words) == ["--prompt.text_tokens=8", "--lr", "1"]
    assert own_words("clip-lora", words) == ["--lora.rank", "4", "--lr", "1"]
    assert own_words("rmadapter", words) == ["--no-adapter.reconstruct", "--lr", "1"]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        (
            "single",
            ["--loss.lambda3", "10"],
            "loss.lambda3 is 10.0, but method 'single' has 0.0; valid: 0.0, or another",
        ),
        ("single", ["--adapter.reconstruct"], "adapter.reconstruct is True, but method 'single' has False"),
        ("rmadapter-l1", ["--adapter.objective=cosine"], "adapter.objective is 'cosine', but method 'rmadapter-l1'"),
        ("maple", ["--no-prompt.coupled"], "prompt.coupled is False, but method 'maple' has True; valid: True, or"),
    ],
)
def test_an_option_of_what_makes_the_method_is_refused_with_another_value(name, words, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse_command(["--method", name, "--data", "x", *words])
    configure(name, ["--data", "x", *words])  # in a sweep it is meant for other methods


def test_what_makes_the_method_may_be_said_again(recwarn):
    words = ["--loss.lambda3", "0.0", "--no_adapter.reconstruct", "--lr", "0.1"]
    assert parse_command(["--method", "single", "--data", "x", *words])[1].lr == 0.1
    assert not recwarn.list


def test_what_a_config_file_has_otherwise_than_the_method_is_said_not_to_be_taken(tmp_path):
    """It may be one that ``--print_config`` wrote, with every option."""
    file = tmp_path / "run.yaml"
    file.write_text("lr: 0.1\nloss: {lambda3: 10, lambda4: 0}\nadapter: {reconstruct: true}\n")
    words = ["--method", "single", "--data", "x", "--config", str(file)]
    with pytest.warns(
        match=r"adapter\.reconstruct False, loss\.lambda3 0\.0 is what makes method 'single'; the config's"
    ):
        _, config = parse_command(words)
    assert (config.lr, config.loss.lambda3, config.adapter.reconstruct) == (0.1, 0, False)


@pytest.mark.parametrize("name", METHODS)
def test_what_print_config_writes_is_the_same_run(name, tmp_path, capsys):
    """Without ``--method``: a file of options that make none, such as zero-shot CLIP's, tells it by its label."""
    words = ["--method", name, "--data", "x", "--classes", "base"]
    with pytest.raises(SystemExit):
        main(["train", *words, "--print_config"])
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    (method, config), (again, written) = parse_command(words), parse_command(["--config", str(file)])
    assert (again.kind, written) == (method.kind, config)


def test_a_label_beside_a_method_is_refused_and_not_passed_over(tmp_path):
    words = ["--method", "coop", "--data", "x"]
    with pytest.raises(InputError, match="label is 'mine', but a run with --method is called 'coop'; valid: without"):
        parse_command([*words, "--label", "mine"])
    assert parse_command([*words, "--label", "coop"])[1].label == "coop"
    file = tmp_path / "run.yaml"
    file.write_text("label: mine\n")  # as that of a run of another method is
    assert parse_command([*words, "--config", str(file)])[1].label == "coop"


def test_a_folder_of_the_user_s_own_may_have_the_name_of_a_bundled_set(tmp_path):
    _, config = parse_command(["--data", "emoji_food", "--data-root", str(tmp_path)])
    assert (config.model, config.style) == ("ViT-B-16", None)


def test_mistakes(options, capsys):
    assert main(["train", "--method", "rmadapte", *options]) == 2
    assert "did you mean 'rmadapter'" in capsys.readouterr().err
    assert main(["train", *options, "--method"]) == 2
    assert "--method needs a value; valid: zeroshot" in capsys.readouterr().err
    assert main(["train", "--method", "mma"]) == 2
    assert "data is missing" in capsys.readouterr().err
    with pytest.raises(InputError, match="unknown option"):
        configure("mma", ["--data", "x", "--shotz", "3"])


@pytest.mark.parametrize("argv", [[], ["--method", "mma"]])
def test_help_lists_every_method(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *argv, "--help"])
    assert stopped.value.code == 0
    text = "".join(capsys.readouterr().out.split())  # without the line breaks, which may be inside a name
    assert "--methodMETHOD" in text
    for method in METHODS.values():
        assert f"{method.name}({method.summary})".replace(" ", "") in text
    with pytest.raises(SystemExit):
        main(["train", *argv, "--data", "x", "--print_config"])
    assert "method" not in yaml.safe_load(capsys.readouterr().out)


def test_the_registry_does_not_import_open_clip():
    """A mistyped option answers at once."""
    code = "import rmadapter.methods, sys; sys.exit('open_clip' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
