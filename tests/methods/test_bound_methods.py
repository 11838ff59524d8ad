"""Methods that are bound to the classes they were trained on: others are refused, or answered by the frozen model."""

from __future__ import annotations

import json
import re

import pytest
from method_runs import training_of

from rmadapter.cli import main


class TestBoundMethods:
    """Those that have something of each class, and so know no others."""

    @pytest.fixture(params=["taskres", "tip-adapter", "linear-probe", "class-specific coop"])
    def adapter(self, request, trained, options, tmp_path, capsys):
        if request.param != "class-specific coop":
            return ["--adapter", str(trained(request.param) / "adapter")]
        words = ["--prompt.init", "random", "--prompt.class_specific", *training_of("coop"), "--no-evaluate"]
        assert main(["train", "--method", "coop", *options, *words, "--out", str(tmp_path / "csc")]) == 0
        capsys.readouterr()
        return ["--adapter", str(tmp_path / "csc" / "adapter")]

    @pytest.fixture
    def evaluated(self, animals, tmp_path):
        def make(*words):
            data = ["--data", str(animals), "--workers", "0", "--precision", "fp32"]
            assert main(["eval", *data, *words, "--out", str(tmp_path / "eval")]) == 0
            return json.loads((tmp_path / "eval" / "results.json").read_text())

        return make

    def test_other_classes_are_refused_or_answered_by_the_frozen_model(
        self, adapter, evaluated, animals, clip_folder, capsys
    ):
        data = ["--data", str(animals), "--workers", "0"]
        for classes in ("new", "all"):
            assert main(["eval", *data, *adapter, "--classes", classes]) == 2
            assert re.search("not trained on class 'cat'|knows one half alone", capsys.readouterr().err)
        model = ["--method", "zeroshot", "--model", f"local-dir:{clip_folder}"]
        frozen, own = evaluated(*model, "--classes", "base_new"), evaluated(*adapter, "--classes", "base")
        assert "answered_by" not in own
        assert "unknown" not in own["settings"]
        both = evaluated(*adapter, "--classes", "base_new", "--unknown", "zeroshot")
        assert both["answered_by"] == {"base": "adapter", "new": "zeroshot", "open": "zeroshot"}
        assert both["settings"]["unknown"] == "zeroshot"
        assert both["method"] == own["method"]
        assert both["accuracy"]["base"] == own["accuracy"]["base"]
        assert both["accuracy"]["new"] == frozen["accuracy"]["new"]
        # One class that it does not know is enough: what two classifiers say cannot be compared.
        everything = evaluated(*adapter, "--classes", "all", "--unknown", "zeroshot")
        assert everything["answered_by"] == {"all": "zeroshot"}
        assert everything["accuracy"] == evaluated(*model, "--classes", "all")["accuracy"]
        assert both["metrics"]["open"]["top1"] == everything["accuracy"]["all"]
        asked = evaluated(*adapter, "--classes", "base", "--unknown", "zeroshot")
        assert (asked["answered_by"], asked["accuracy"]) == ({"base": "adapter"}, own["accuracy"])
        assert "unknown" not in asked["settings"]

    def test_predictions_say_who_answered(self, adapter, animals, clip_folder, capsys):
        image, common = str(animals / "ant" / "00.png"), ["--json", "--precision", "fp32"]

        def predicted(*words):
            capsys.readouterr()
            assert main(["predict", image, *words, *common]) == 0
            out, err = capsys.readouterr()
            return json.loads(out)[0], err

        assert main(["predict", *adapter, image, "--classes", "ant,cow"]) == 2
        assert "was not trained on class 'cow'" in capsys.readouterr().err
        frozen, _ = predicted("--model", f"local-dir:{clip_folder}", "--classes", "ant,cow")
        found, said = predicted(*adapter, "--classes", "ant,cow", "--unknown", "zeroshot")
        assert found.pop("answered_by") == "zeroshot"
        assert "not all of these classes were trained on: the frozen model answers" in said
        assert found == frozen
        own, _ = predicted(*adapter, "--classes", "ant,bee")
        found, said = predicted(*adapter, "--classes", "ant,bee", "--unknown", "zeroshot")
        assert found.pop("answered_by") == "adapter"
        assert found == own
        assert "warning" not in said

    def test_a_method_that_is_open_answers_itself(self, trained, evaluated):
        adapter = ["--adapter", str(trained("coop") / "adapter"), "--classes", "base_new"]
        unasked, asked = evaluated(*adapter), evaluated(*adapter, "--unknown", "zeroshot")
        assert asked["accuracy"] == unasked["accuracy"]
        assert "answered_by" not in asked
