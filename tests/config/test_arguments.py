"""The command line's conventions: each on the real training configuration."""

from __future__ import annotations

import pytest
import yaml

from rmadapter.config import RMAdapterConfig, TrainConfig
from rmadapter.config.arguments import parse_arguments
from rmadapter.errors import InputError
from rmadapter.evaluation.predict import PredictConfig


def parse(*argv: str) -> TrainConfig:
    return parse_arguments(TrainConfig, ["--data", "animals", *argv], prog="rmadapter train")


def test_defaults_are_the_dataclass_defaults():
    assert parse() == TrainConfig(data="animals")


def test_dashes_and_underscores_are_alike():
    assert parse("--batch-size", "3", "--eval_batch_size=5", "--adapter.rec-hidden", "7") == TrainConfig(
        data="animals", batch_size=3, eval_batch_size=5, adapter=RMAdapterConfig(rec_hidden=7)
    )


def test_switches():
    assert parse("--no-fused").fused is False
    assert parse("--fused").fused is True
    assert parse("--fused=false").fused is False
    assert parse("--no-adapter.local-reconstruction").adapter.local_reconstruction is False
    assert parse("--grad-checkpointing", "--shots", "4") == TrainConfig(
        data="animals", grad_checkpointing=True, shots=4
    )


def test_a_switch_that_may_say_neither(tmp_path, capsys):
    """On the line, in a file, and printed to be read back; it takes no word that follows it."""
    for words, on in (
        ((), None),
        (("--cuda-graphs",), True),
        (("--no-cuda-graphs",), False),
        (("--cuda-graphs=null",), None),
    ):
        assert parse(*words, "--seed", "3") == TrainConfig(data="animals", cuda_graphs=on, seed=3)
        with pytest.raises(SystemExit):
            parse(*words, "--print_config")
        (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
        assert parse("--config", str(tmp_path / "config.yaml")).cuda_graphs is on
    with pytest.raises(InputError, match="cuda_graphs"):
        parse("--cuda-graphs=auto")


def test_values_keep_their_dashes_and_may_look_like_anything():
    assert parse("--template", "--a {}-b_c").template == "--a {}-b_c"
    assert parse("--adapter.layers", "last:3").adapter.layers == "last:3"
    assert parse("--adapter.layers", "[2, 3]").adapter.layers == [2, 3]
    assert parse("--adapter.text.layers", "2-3").adapter.text.layers == "2-3"
    assert parse("--lr", "1e-3").lr == 1e-3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shotz", "3"], "unknown option '--shotz'; did you mean '--shots'"),
        (["--no-fuzed"], "did you mean '--no_fused'"),
        (["--adapter.botleneck", "3"], "did you mean '--adapter.bottleneck'"),
        (["--sho", "3"], "unknown option '--sho'"),
        (["--no-shots"], "unknown option"),
        (["--shots"], "option --shots needs a value"),
        (["--shots", "many"], "shots is 'many'; valid: a whole number"),
        (["--fused=perhaps"], "fused"),
        (["stray"], "'stray' belongs to no option"),
        (["-s", "3"], "'-s' belongs to no option"),
        (["--config", "nowhere.yaml"], "config nowhere.yaml is missing"),
        (["--adapter.bottleneck", "200"], r"adapter\.bottleneck is 200"),
    ],
)
def test_refusals(argv, message):
    with pytest.raises(InputError, match=message):
        parse(*argv)


def test_yaml_file_and_overrides_after_it(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "shots: 4\nbatch-size: 3\nadapter:\n  layers: [1, 2]\n  text: {bottleneck: 16}\nloss: {lambda1: 0}\n"
    )
    config = parse("--config", str(path), "--shots", "8")
    assert (config.shots, config.batch_size, config.adapter.layers, config.loss.lambda1) == (8, 3, [1, 2], 0)
    assert config.adapter.tower("text").bottleneck == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shotz: 4", "unknown key 'shotz'.*did you mean 'shots'"),
        ("adapter: {vision: {bottlneck: 3}}", r"unknown key 'adapter\.vision\.bottlneck'.*did you mean 'bottleneck'"),
        ("[1, 2]", "holds list"),
        ("a: [", "is not YAML"),
        ("shots: many", "shots"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        parse("--config", str(path))


def test_printed_config_is_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--shots", "3", "--adapter.layers", "last:2", "--no-fused", "--print-config")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert set(yaml.safe_load(text)) >= {"shots", "adapter", "loss", "data"}
    path = tmp_path / "run.yaml"
    path.write_text(text)
    config = parse_arguments(TrainConfig, ["--config", str(path)], prog="rmadapter train")
    assert config == TrainConfig(data="animals", shots=3, fused=False, adapter=RMAdapterConfig(layers="last:2"))


def test_help_has_every_field_with_its_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--shots SHOTS training images a class", "--adapter.text.bottleneck", "--loss.lambda4"):
        assert part in text


def test_positional_words_have_no_option():
    with pytest.raises(InputError, match="unknown option '--images'"):
        parse_arguments(PredictConfig, ["--images", "a.png"], prog="rmadapter predict", positional="images")


def test_positional_words():
    config = parse_arguments(
        PredictConfig,
        ["one.png", "--adapter", "runs/a", "--json", "two.png", "--classes", "cat,dog", "--", "--odd.png"],
        prog="rmadapter predict",
        positional="images",
    )
    assert config.images == ["one.png", "two.png", "--odd.png"]
    assert (config.adapter, config.classes, config.json) == ("runs/a", "cat,dog", True)


def test_bare_words_stand_in_a_config_file_too(tmp_path, monkeypatch, capsys):
    """As ``--print_config`` writes them; those on the command line stand in their place."""

    def predict(*words):
        return parse_arguments(PredictConfig, [*words], prog="rmadapter predict", positional="images")

    words = ["one.png", "~/two: #2.png", "--adapter", "runs/a", "--top", "2"]
    with pytest.raises(SystemExit):
        predict(*words, "--print_config")
    file = tmp_path / "own.yaml"
    file.write_text(capsys.readouterr().out)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert predict("--config", str(file)) == predict(*words)
    assert predict("--config", str(file)).images == ["one.png", f"{tmp_path}/two: #2.png"]
    assert predict("other.png", "--config", str(file)).images == ["other.png"]
    file.write_text("images: 3\n")
    with pytest.raises(InputError, match="images is 3 in the config; valid: a list of texts"):
        predict("--config", str(file))


def test_an_option_of_several_texts_stands_several_times(tmp_path, capsys):
    def predict(*words):
        return parse_arguments(PredictConfig, ["a.png", *words], prog="rmadapter predict", positional="images")

    assert predict().template == []
    words = ["--template", "a {}", "--template=null: {}", "--template", "{} #1"]
    assert predict(*words).template == ["a {}", "null: {}", "{} #1"]
    with pytest.raises(SystemExit):
        predict(*words, "--print_config")
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown.pop("images") == ["a.png"]
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(shown))
    assert predict("--config", str(file)).template == predict(*words).template
    # Those on the command line stand in the place of the file's.
    assert predict("--config", str(file), "--template", "b {}", "--template", "c {}").template == ["b {}", "c {}"]
    file.write_text("template: one {}\n")
    assert predict("--config", str(file)).template == ["one {}"]
    for odd in ("1", "null", "[1]"):
        file.write_text(f"template: {odd}\n")
        with pytest.raises(InputError, match=r"template is .* in the config; valid: a list of texts"):
            predict("--config", str(file))
