"""``rmadapter train`` and ``eval`` on the bundled data sets: their own defaults, styles, retention."""

from __future__ import annotations

import json

import pytest
import yaml

from rmadapter.cli import main
from rmadapter.data.emoji import TRAIN_CONFIG
from rmadapter.methods.naming import folder_of
from rmadapter.methods.options import configure, parse_train
from rmadapter.tuners.adapted_classifier import AdaptedClassifier

pytestmark = pytest.mark.usefixtures("few_emoji")


def parse(*options):
    return parse_train(list(options), prog="train")


def test_the_test_bed_has_its_own_defaults_and_options_go_before_them(tmp_path):
    defaults = yaml.safe_load(TRAIN_CONFIG.read_text())
    config = parse("--data", "emoji_food")
    assert config.model == "emoji-clip"
    assert config.classes == "base"
    assert config.lr == defaults["lr"]
    assert config.adapter.scale == defaults["adapter"]["scale"]
    assert config.loss.lambda3 == defaults["loss"]["lambda3"]
    changed = parse("--lr", "0.5", "--data", "emoji_food", "--style", "emojione", "--loss.lambda3", "7")
    assert (changed.lr, changed.style, changed.loss.lambda3) == (0.5, "emojione", 7)
    assert changed.epochs == defaults["epochs"]
    file = tmp_path / "mine.yaml"
    file.write_text("data: emoji_food\nepochs: 77\nadapter: {scale: 0.9}\n")
    mine = parse("--config", str(file))
    assert (mine.epochs, mine.adapter.scale, mine.lr) == (77, 0.9, defaults["lr"])
    assert parse("--data", str(tmp_path)).lr == 0.0015


def test_a_method_s_own_defaults_lie_between_the_test_bed_s_and_the_options():
    words = ["--data", "emoji_food"]
    assert (configure("mma", words).lr, configure("mma", words).adapter.scale) == (0.0015, 0.03)
    assert configure("mma", [*words, "--lr", "0.3"]).lr == 0.3
    assert configure("single", words).adapter.scale == parse(*words).adapter.scale
    assert configure("single", words).lr == parse(*words).lr
    assert configure("mma", ["--data", "elsewhere"]).lr == parse("--data", "elsewhere").lr


def test_a_printed_configuration_is_the_one_that_runs(capsys, tmp_path):
    with pytest.raises(SystemExit):
        parse("--data", "emoji_food", "--print_config")
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse("--config", str(file)) == parse("--data", "emoji_food")


def test_the_default_folder_names_the_style():
    assert folder_of(parse("--data", "emoji_food", "--style", "noto")).name == (
        "emoji_food-noto-emoji-clip-rmadapter-base-16shot-seed1"
    )


def test_train_then_eval_in_another_style_and_on_another_group(tmp_path, capsys, monkeypatch):
    encoded = []
    real = AdaptedClassifier.text_features
    monkeypatch.setattr(AdaptedClassifier, "text_features", lambda self: encoded.append(1) or real(self))
    out = tmp_path / "b"
    command = ["--data", "emoji_activities", "--style", "fluent", "--epochs", "1", "--shots", "2", "--out", str(out)]
    assert main(["train", *command]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["data"], results["style"], results["retention_style"]) == ("emoji_activities", "fluent", "emojione")
    assert "retention: the same classes drawn by emojione" in capsys.readouterr().out
    assert len(encoded) == 3  # base, new, and both together; once for both styles

    def evaluate(*options):
        assert main(["eval", "--adapter", str(out / "adapter"), "--out", str(tmp_path / "eval"), *options]) == 0
        return json.loads((tmp_path / "eval" / "results.json").read_text())

    same = evaluate("--classes", "base_new")
    assert same["accuracy"] == pytest.approx(results["accuracy"])
    other = evaluate("--classes", "base_new", "--style", "emojione")
    assert (other["data"], other["style"], other["method"]) == ("emoji_activities", "emojione", "rmadapter")
    # What training saw measures no retention; what was retention is now the accuracy.
    assert other["accuracy"].keys() == {"base", "new", "hm"}
    assert other["accuracy"]["base"] == pytest.approx(results["accuracy"]["retained_base"])
    across = evaluate("--data", "emoji_food", "--no-retention")
    assert (across["data"], across["style"], across["images"]) == ("emoji_food", "fluent", {"all": 16})


def test_a_linear_probe_is_tested_by_default_on_what_it_was_trained_on(tmp_path):
    command = ["--method", "linear-probe", "--data", "emoji_activities", "--style", "openmoji", "--shots", "1"]
    assert main(["train", *command, "--no-evaluate", "--out", str(tmp_path / "run")]) == 0

    def evaluate(*options):
        command = ["--adapter", str(tmp_path / "run" / "adapter"), "--classes", "base", "--out", str(tmp_path / "eval")]
        assert main(["eval", *command, *options]) == 0
        return json.loads((tmp_path / "eval" / "results.json").read_text())

    same = evaluate()
    assert (same["data"], same["style"], same["retention_style"]) == ("emoji_activities", "openmoji", "fluent")
    assert same["accuracy"].keys() == {"base", "retained_base"}
    other = evaluate("--style", "fluent", "--no-retention")
    assert (other["style"], other["accuracy"].keys()) == ("fluent", {"base"})
    assert other["accuracy"]["base"] == same["accuracy"]["retained_base"]


def test_zero_shot_needs_no_model_name(tmp_path):
    command = [
        "eval",
        "--data",
        "emoji_activities",
        "--style",
        "openmoji",
        "--method",
        "zeroshot",
        "--classes",
        "base",
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["model"], results["style"], results["retention_style"]) == ("emoji-clip", "openmoji", "fluent")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--data", "emoji_foo"], "data is 'emoji_foo'"),
        (["train", "--data", "emoji_food", "--style", "apple"], "style is 'apple'"),
        (["train", "--data", "emoji_food", "--shots", "33"], "shots is 33"),
        (["train", "--method", "linear-probe", "--data", "emoji_food", "--shots", "33"], "shots is 33"),
        (["eval", "--method", "zeroshot"], "data is missing"),
    ],
)
def test_bad_input_exits_with_2(command, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_data_set_needs_one_named(tmp_path, images, clip_folder, capsys):
    out = tmp_path / "run"
    command = ["train", "--data", str(images), "--model", f"local-dir:{clip_folder}", "--adapter.layers", "2-3"]
    assert main([*command, "--shots", "1", "--epochs", "1", "--workers", "0", "--out", str(out)]) == 0
    assert main(["eval", "--adapter", str(out / "adapter")]) == 2
    assert "data is missing, and the adapter was trained on 'animals'" in capsys.readouterr().err
