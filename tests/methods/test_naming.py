"""What a configuration is called."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import run_config

from rmadapter.cli import main
from rmadapter.config import LossConfig, RMAdapterConfig, TowerOverrides, TrainConfig
from rmadapter.methods import METHODS
from rmadapter.methods.method import TUNED
from rmadapter.methods.naming import derived_name, folder_of, is_made_by, method_name
from rmadapter.methods.options import configure, parse_command

DOCS = Path(__file__).parents[2] / "docs"
OFF = {"lambda3": 0, "lambda4": 0}


@pytest.mark.parametrize(
    ("adapter", "loss", "name"),
    [
        ({}, {}, "rmadapter"),
        ({"reconstruct": False}, OFF, "single"),
        ({"reconstruct": False}, {}, "single+consistency"),
        ({"reconstruct": False, "shared_layer": True, "activation": "relu"}, OFF, "mma"),
        ({"separate_down": True}, {}, "rmadapter-separate-down"),
        ({}, OFF, "rmadapter-no-consistency"),
        # A recipe is no method: sizes, places, factors, weights other than 0.
        (
            {"layers": "2-3", "bottleneck": 8, "rec_hidden": 4, "scale": 0.1, "branch_grad_scale": 2.0},
            {"lambda1": 3, "lambda4": 0.1},
            "rmadapter",
        ),
        ({"vision": TowerOverrides(layers="2", bottleneck=16, scale=0.2)}, {}, "rmadapter"),
        # Nor is an option of a reconstruction that is not there.
        ({"reconstruct": False, "objective": "l1", "rec_layers": 3}, {**OFF, "lambda1": 5}, "single"),
        # What differs in anything else has another name.
        (
            {"reconstruct": False, "shared_layer": True},
            OFF,
            "custom (mma, adapter.activation=gelu)",
        ),
        (
            {"reconstruct": False, "shared_layer": True, "activation": "relu"},
            {},
            "custom (mma, loss.lambda3>0, loss.lambda4>0)",
        ),
        ({}, {"lambda1": 0}, "custom (rmadapter, loss.lambda1=0)"),
        ({}, {"lambda1": 0, "lambda2": 0}, "rmadapter-lambda0"),
        ({"activation": "relu"}, {}, "custom (rmadapter, adapter.activation=relu)"),
        ({"init": "zero_up"}, {}, "custom (rmadapter, adapter.init=zero_up)"),
        ({"adapter_input": "pre_ln"}, {}, "custom (rmadapter, adapter.adapter_input=pre_ln)"),
        ({"rec_stream": "frozen"}, {}, "custom (rmadapter, adapter.rec_stream=frozen)"),
        ({"rec_tokens": "all"}, {}, "custom (rmadapter, adapter.rec_tokens=all)"),
        ({"rec_layers": 3, "objective": "l1"}, {}, "custom (rmadapter-rec3, adapter.objective=l1)"),
        ({"text": TowerOverrides(layers="none")}, {}, "custom (rmadapter, adapter.text.layers=none)"),
    ],
)
def test_method_names(adapter, loss, name):
    config = TrainConfig(data="animals", adapter=RMAdapterConfig(**adapter), loss=LossConfig(**loss))
    assert method_name(config) == name


def test_the_words_of_the_method_s_page_make_its_methods():
    """The table of variants names each with its options."""
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    variants = re.findall(r"^\|[^|]*\| `([^`|]+)` \| (?:`([^`|]+)`|none) \|$", text, re.MULTILINE)
    trained = {name for name, method in METHODS.items() if method.kind == TUNED and not method.recipe}
    assert {name for name, _ in variants} == trained
    for name, words in variants:
        _, config = parse_command(["--data", "animals", *words.split()])
        assert method_name(config) == name
        assert config.label in (None, "rmadapter-consistency1")  # a weight alone makes no other method


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "rmadapter"),
        ({"label": "a b $x$ |é|"}, "a-b-x-é"),
        ({"label": ".."}, "unnamed"),
        ({"loss": LossConfig(lambda1=0, lambda3=0)}, "custom-rmadapter-loss.lambda1=0-loss.lambda3=0"),
        ({"label": 300 * "x"}, 80 * "x"),
    ],
)
def test_the_default_folder_is_one_folder_without_odd_characters(changes, method):
    folder = folder_of(TrainConfig(data="animals", **changes))
    assert folder.as_posix() == f"runs/animals-ViT-B-16-{method}-all-16shot-seed1"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_own_options_make_it(name):
    sizes = {"adapter": "bottleneck", "prompt": "reduction", "lora": "rank", "head": "reduction", "space": "width"}
    group = METHODS[name].groups[0]
    config = configure(name, ["--data", "x", f"--{group}.{sizes[group]}", "8"])
    assert is_made_by(name, derived_name(config.tuned, config.loss))
    assert is_made_by("mine", "custom (rmadapter, adapter.init=zero_up)")
    assert is_made_by(name, "custom (rmadapter, loss.lambda1=0)") == (METHODS[name].kind != TUNED)


def test_a_given_name_is_kept_and_a_custom_one_is_written(images, clip_folder, tmp_path):
    _, config = parse_command(["--data", "animals", "--method", "rmadapter", "--loss.lambda1=0"])
    assert method_name(config) == "rmadapter"
    small = run_config(images, clip_folder, tmp_path / "run")
    words = ["--data", str(images), "--model", small.model, "--shots", "1", "--epochs", "1", "--workers", "0"]
    words += ["--adapter.layers", "3", "--no-evaluate", "--loss.lambda1", "0"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    name = "custom (rmadapter, loss.lambda1=0)"
    assert json.loads((tmp_path / "run" / "results.json").read_text())["method"] == name
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["training"]["method"] == name
