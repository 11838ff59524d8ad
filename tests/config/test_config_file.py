"""``--config FILE``: what a file may hold, and with which words all else is refused."""

from __future__ import annotations

import pytest
import yaml

from rmadapter.config import TrainConfig
from rmadapter.config.arguments import parse_arguments
from rmadapter.errors import InputError

# Ten lists of ten of the one before: a text of 10^10 words if each is written out.
LAUGHS = "\n".join(
    ["adapter:", "  layers: &a0 [1]"]
    + [f"  {'ab'[n % 2]}{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(10)]
)


@pytest.fixture
def read(tmp_path):
    def parse(content: str | bytes, *words: str) -> TrainConfig:
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return parse_arguments(
            TrainConfig, ["--data", "animals", "--config", str(path), *words], prog="rmadapter train"
        )

    return parse


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("adapter:\nloss: {}\nshots: 3", {"shots": 3}),
        ("label: 2024-01-01", {"label": "2024-01-01"}),
        ("label: 猫 😀", {"label": "猫 😀"}),
        ("label: 'no'", {"label": "no"}),
        ("shots: '4'\nlr: 1e-3", {"shots": 4, "lr": 1e-3}),
        ("seed: 010", {"seed": 10}),
        ("pretrained:\nlabel: ~", {}),
        ("cache_dir: 'null'", {"cache_dir": "null"}),
        ("template: 'a # {}'", {"template": "a # {}"}),
        ("label: Grün".encode("utf-16"), {"label": "Grün"}),
        (b"\xef\xbb\xbfshots: 3\r\nlabel: x\r\n", {"shots": 3, "label": "x"}),
    ],
)
def test_what_a_file_says(read, content, options):
    assert read(content) == TrainConfig(data="animals", **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("adapter: 3", "adapter is 3 in config .*; valid: a group of options, one a line below it: layers, "),
        ("loss: []", r"loss is \[\] in config .*; valid: a group of options, .*lambda1, lambda2"),
        ("adapter: {vision: last:3}", r"adapter\.vision is 'last:3' in config .*layers, bottleneck, scale"),
        ("shots:", "^shots is null; valid: a whole number$"),
        ("shots: true", "^shots is true; valid: a whole number$"),
        ("shots: 4.0", r"^shots is 4\.0; valid: a whole number$"),
        ("shots: [4, 5]", r"^shots is \[4, 5\]; valid: a whole number$"),
        ("fused: 3", "^fused is 3; valid: true or false$"),
        ("adapter: {vision: {scale: []}}", r"^adapter\.vision\.scale is \[\]; valid: a number or null$"),
        ("shots: 1:30", "shots is '1:30'; valid: a whole number"),
        ("shots: 99999999999999999999", "shots is 99999999999999999999; valid: a number >= 1 and <= 2147483647"),
        ("seed: 99999999999999999999", "seed is 99999999999999999999; valid: a number >= 0 and <= 9223372036854775807"),
        ("lr: .nan", "lr is nan in config .*; valid: a finite number"),
        ("lr: 1e999", "lr is inf; valid: a number > 0"),
        ("label: 12", "label is 12 in the config; valid: a text, in quotes"),
        ("label: no", "label is False in the config; valid: a text, in quotes"),
        ("label: {a: 1}", "label is or holds a dict in config"),
        ("adapter: {layers: [1, [2]]}", r"adapter\.layers is or holds a list in config"),
        ("label: &a [*a]", "label is or holds a list"),
        ("label: !!binary aGVsbG8=", "label is or holds a bytes"),
        ("label: 'a\\0b'".replace("'", '"'), "label is .*; valid: a text of one line"),
        ("shots: 1\nshots: 2", "the key 'shots' stands twice"),
        ("batch-size: 1\nbatch_size: 2", "has the key 'batch_size' twice"),
        ("\tshots: 3", "is not YAML: .*cannot start any token"),
        ("<<: {shots: 3}", "unknown key '<<'"),
        ("? [1]\n: 2", "is not YAML: .*unhashable"),
        ("!!python/object/apply:os.getpid []", "is not YAML: could not determine a constructor"),
        ("shots: " + "9" * 5000, "is not YAML: .*4300 digits"),
        ("[\n" * 5000, "too many lists in one another"),
        (LAUGHS, "unknown key 'adapter.a0'"),
        (LAUGHS.replace("a0: &a1", "scale: &a1"), r"adapter\.scale is or holds a list"),
        ("# nothing", "holds nothing; valid: a mapping"),
        (b"\x89PNG\r\n\x1a\n\0", "is not YAML: unacceptable character"),
        ("label: Grün".encode("latin-1"), "is not YAML: .*invalid"),
    ],
)
def test_what_is_refused(read, content, message):
    with pytest.raises(InputError, match=message):
        read(content)


def test_a_file_of_any_size_is_refused_at_once(read, tmp_path):
    with (tmp_path / "run.yaml").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match=r"config .*run\.yaml is larger than 1 MB"):
        parse_arguments(TrainConfig, ["--config", str(tmp_path / "run.yaml")], prog="rmadapter train")


@pytest.mark.parametrize(("path", "message"), [("", "cannot be read: Is a directory"), ("a.yaml", "is missing")])
def test_what_is_no_file(tmp_path, path, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(TrainConfig, ["--config", str(tmp_path / path)], prog="rmadapter train")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_printed_config_comes_back_whatever_a_terminal_can_show(encoding, read, tmp_path, monkeypatch):
    words = ["--template", "# {}: 'a'", "--cache-dir", "~/猫 \u202e😀", "--adapter.layers", "2-3", "--label", "null"]
    monkeypatch.setenv("HOME", str(tmp_path))
    with (tmp_path / "printed.yaml").open("w", encoding=encoding) as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", file)
        with pytest.raises(SystemExit) as stop:
            read("shots: 3", *words, "--print_config")
    assert stop.value.code == 0
    text = (tmp_path / "printed.yaml").read_text(encoding=encoding)
    assert yaml.safe_load(text)["label"] == "null"
    assert read(text) == read("shots: 3", *words)
