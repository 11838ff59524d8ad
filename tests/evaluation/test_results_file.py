"""What an evaluation records, and how often it reads for it."""

from __future__ import annotations

import json
import shutil

import pytest

from rmadapter.cli import main
from rmadapter.evaluation import evaluate, loaded_model


@pytest.fixture
def evaluated(base_run, animals, tmp_path):
    def make(*words: str, adapter=base_run / "adapter"):
        argv = ["eval", "--data", str(animals), "--workers", "0", "--precision", "fp32", "--out", str(tmp_path / "e")]
        assert main([*argv, *(["--adapter", str(adapter)] if adapter else []), *words]) == 0
        return json.loads((tmp_path / "e" / "results.json").read_text())

    return make


@pytest.mark.parametrize("classes", ["all", "base", "new", "base_new"])
def test_the_classes_are_those_of_the_training_whatever_is_tested(base_run, evaluated, classes):
    found = evaluated("--classes", classes)
    own = json.loads((base_run / "results.json").read_text())
    assert (found["classes"], found["shots"], found["seed"]) == ("base", 4, 1)
    assert found["trained_on"] == own["trained_on"]
    assert found["settings"] == own["settings"]
    assert set(found["accuracy"]) == ({"base", "new", "hm"} if classes == "base_new" else {classes})


def test_another_template_is_recorded_among_the_settings(base_run, evaluated):
    found = evaluated("--template", "{}")
    own = json.loads((base_run / "results.json").read_text())
    assert found["settings"] == {**own["settings"], "template": "{}"}


def test_what_an_adapter_does_not_say_is_null(base_run, evaluated, tmp_path):
    shutil.copytree(base_run / "adapter", tmp_path / "bare")
    file = tmp_path / "bare" / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "training": None}))
    found = evaluated("--classes", "base_new", adapter=tmp_path / "bare")
    names = ("data", "style", "data_hash", "classes", "shots", "seed")
    assert found["trained_on"] == {**dict.fromkeys(names), "adapter_sha256": values["weights_sha256"]}
    assert (found["method"], found["classes"]) == ("adapter", None)


def test_zero_shot_was_trained_on_nothing(evaluated):
    found = evaluated("--method", "zeroshot", "--classes", "base_new")
    assert (found["trained_on"], found["classes"]) == (None, "base")


def test_an_adapter_s_file_is_read_once(evaluated, monkeypatch):
    calls, real = [], evaluate.read_info
    for module in (evaluate, loaded_model):
        monkeypatch.setattr(module, "read_info", lambda folder: calls.append(folder) or real(folder))
    evaluated("--classes", "base")
    assert len(calls) == 1
