"""The methods: each trained, saved, loaded and used for prediction through the same commands."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from conftest import write_images
from method_runs import TRAINING, training_of
from miniatures import build

from rmadapter.cli import main
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import load_data
from rmadapter.methods import METHODS, Method
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.encoders import Encoders

# Of those that several prompts mean something for, and of those that refuse them for either reason.
OF_EVERY_ANSWER = ("rmadapter", "clip-adapter", "mmrl", "vpt", "linear-probe", "kgcoop")
LEARNED_WORDS = {"coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc", "coprompt", "rmadapter+prompts"}


# The rows of the ablation differ from RMAdapter in a setting alone.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.startswith("rmadapter-") else ()) for name in METHODS],
)
def test_train_evaluate_and_predict_with_every_method(name, trained, animals, tmp_path, capsys):
    out = trained(name)
    results = json.loads((out / "results.json").read_text())
    assert results["method"] == name
    assert results["split_file"] == load_data(str(animals)).split_id
    assert results["split_file"].startswith("split_rmadapter.json, SHA-256 ")
    parts = {"base", "new", "hm"} if METHODS[name].open_vocabulary else {"base"}
    assert set(results["accuracy"]) == parts
    determined = {"zeroshot": {"template"}, "linear-probe": {"C"}}.get(name, {"lr", "adapter", "loss"})
    assert determined <= results["settings"].keys()
    if name == "zeroshot":
        return
    adapter = ["--adapter", str(out / "adapter")]
    data = ["--data", str(animals), "--workers", "0"]
    assert main(["eval", *adapter, *data, "--classes", "base", "--out", str(tmp_path / "eval")]) == 0
    evaluated = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert evaluated["method"] == name
    assert evaluated["split_file"] == results["split_file"]
    assert evaluated["accuracy"]["base"] == results["accuracy"]["base"]
    assert evaluated["trained_parameters"] == results["trained_parameters"]
    assert (results["trained_parameters"] > 0) == (name != "tip-adapter")
    capsys.readouterr()
    assert main(["predict", *adapter, str(animals / "ant" / "00.png"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert {p["class"] for p in record["predictions"]} == {"ant", "bee"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_finds_what_the_run_has_found(precision, options, animals, tmp_path):
    """To the last digit, in 16 bits too, where another order of roundings would show."""
    words = ["train", *options, *training_of("rmadapter"), "--out", str(tmp_path / "run"), "--precision", precision]
    assert main(words) == 0
    data = ["--data", str(animals), "--workers", "0", "--classes", "base_new"]
    assert main(["eval", "--adapter", str(tmp_path / "run/adapter"), *data, "--out", str(tmp_path / "eval")]) == 0
    trained, evaluated = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "eval"))
    assert evaluated["metrics"] == trained["metrics"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OF_EVERY_ANSWER else pytest.mark.slow)
        for name in METHODS
        if name != "zeroshot" and not name.startswith("rmadapter-")
    ],
)
def test_several_prompts_stand_for_a_class_where_nothing_else_was_learned(name, trained, animals, capsys):
    """The mean of one prompt twice is that prompt, but for rounding."""
    words = ["predict", "--adapter", str(trained(name) / "adapter"), str(animals / "ant" / "00.png"), "--json"]
    template = ["--template", "a photo of a {}."]
    if not METHODS[name].open_vocabulary or name in LEARNED_WORDS:
        assert main([*words, *template, *template]) == 2
        message = "has no prompts" if name == "linear-probe" else "has learned what stands for a class"
        assert message in capsys.readouterr().err
        return
    capsys.readouterr()
    found = []
    for given in (template, [*template, *template]):
        assert main([*words, *given, "--precision", "fp32"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        found.append({p["class"]: p["probability"] for p in record["predictions"]})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_zero_shot_takes_the_data_set_s_own_prompt(tmp_path, clip_folder, monkeypatch, capsys):
    build(tmp_path, "dtd")
    templates = []
    init = CLIPClassifier.__init__
    monkeypatch.setattr(CLIPClassifier, "__init__", lambda self, *a: (templates.append(a[3]), init(self, *a))[0])
    argv = ["--method", "zeroshot", "--model", f"local-dir:{clip_folder}", "--workers", "0"]
    argv += ["--data", "dtd", "--data-root", str(tmp_path)]
    for command in ("train", "eval"):
        for name, own in {"a": [], "b": ["--template", "an image of {}"]}.items():
            out = tmp_path / command / name
            assert main([command, *argv, *own, "--out", str(out)]) == 0
            assert json.loads((out / "results.json").read_text())["settings"]["template"] == templates[-1]
    assert templates == 2 * ["{} texture.", "an image of {}"]


def test_zero_shot_of_an_adapter_s_model_has_the_data_set_s_prompt_too(tmp_path, clip_folder):
    build(tmp_path, "dtd")
    data = ["--data", "dtd", "--data-root", str(tmp_path), "--workers", "0"]
    argv = ["train", *data, "--model", f"local-dir:{clip_folder}", "--shots", "1", "--epochs", "1"]
    argv += ["--adapter.layers", "2-3", "--template", "a picture of {}", "--no-evaluate"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    adapter = ["--adapter", str(tmp_path / "run" / "adapter"), "--out", str(tmp_path / "eval")]
    for method, template in {"adapter": "a picture of {}", "zeroshot": "{} texture."}.items():
        assert main(["eval", *data, *adapter, "--method", method]) == 0
        assert json.loads((tmp_path / "eval" / "results.json").read_text())["settings"]["template"] == template


@pytest.mark.parametrize(("name", "template"), [("coop", "a photo of a {}."), ("clip-adapter", "{} texture.")])
def test_the_prompt_on_another_data_set_after_training_with_the_published_one(name, template, options, tmp_path):
    """That data set's; learned words are the prompt, as in the originals, and DTD's would leave no room for four."""
    argv = ["train", "--method", name, *options, *training_of(name), "--template", "published"]
    assert main([*argv, "--no-evaluate", "--out", str(tmp_path / "run")]) == 0
    build(tmp_path, "dtd")
    argv = ["eval", "--adapter", str(tmp_path / "run" / "adapter"), "--workers", "0", "--out", str(tmp_path / "on")]
    assert main([*argv, "--data", "dtd", "--data-root", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "on" / "results.json").read_text())["settings"]["template"] == template


def test_in_another_style_the_class_features_answer(few_emoji, tmp_path):
    """What is retained of the classes that were trained on is what an evaluation in that style finds."""
    common = ["--workers", "0", "--precision", "fp32"]
    argv = ["train", "--method", "mmrl", "--data", "emoji_food", "--classes", "base", "--shots", "1", *common]
    assert main([*argv, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    trained = json.loads((tmp_path / "run" / "results.json").read_text())
    both, alone = "class and representation features", "class features alone"
    assert trained["inference"] == {"base": both, "retained_base": alone, "new": alone, "retained_new": alone}
    argv = ["eval", "--adapter", str(tmp_path / "run" / "adapter"), "--style", "emojione", "--classes", "base", *common]
    assert main([*argv, "--out", str(tmp_path / "eval")]) == 0
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert found["inference"]["base"] == alone
    assert found["metrics"]["base"]["nll"] == pytest.approx(trained["metrics"]["retained_base"]["nll"], abs=1e-6)


def test_two_inferences_are_marked_in_results_and_reports(trained, animals, clip_folder, tmp_path, capsys):
    out = trained("mmrl")
    both, alone = "class and representation features", "class features alone"
    assert json.loads((out / "results.json").read_text())["inference"] == {"base": both, "new": alone}
    assert "inference" not in json.loads((trained("rmadapter") / "results.json").read_text())
    build(tmp_path, "dtd")
    adapter = ["eval", "--adapter", str(out / "adapter"), "--workers", "0"]
    # On another data set none of the classes counts as trained on, and the published prompt is that data set's.
    assert main([*adapter, "--data", "dtd", "--data-root", str(tmp_path), "--out", str(tmp_path / "on")]) == 0
    on = json.loads((tmp_path / "on" / "results.json").read_text())
    assert (on["inference"], on["settings"]["template"]) == ({"all": alone}, "{} texture.")
    write_images(tmp_path / "copies" / "others", ["ant", "bee"], 4)
    capsys.readouterr()
    assert main([*adapter, "--data", str(tmp_path / "copies" / "others")]) == 0
    assert f"(2 images), by {alone}" in capsys.readouterr().out
    assert main(["report", str(out), str(trained("rmadapter")), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert f"Inference two: mmrl answers base classes by {both}, new classes by {alone}." in text
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert " two |" in cells["mmrl"]
    assert " two |" not in cells["rmadapter"]


@pytest.mark.parametrize("name", ["zeroshot", "linear-probe", "rmadapter"])
def test_a_finished_run_is_gone_on_with_or_written_over_only_when_asked(name, options, copied, tmp_path, capsys):
    argv = ["train", "--method", name, *options, *training_of(name), "--out", str(copied(name))]
    file = tmp_path / "run" / "results.json"
    first = file.read_bytes()
    assert main(argv) == 2
    assert "where a run is already; valid: --resume" in capsys.readouterr().err
    assert main([*argv, "--resume", "--seed", "2"]) == 2
    assert "seed is 2, but the run in" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert "is finished; its results" in capsys.readouterr().out
    assert file.read_bytes() == first
    (tmp_path / "run" / "metrics.jsonl").write_text("of the first run")
    assert main([*argv, "--overwrite", "--seed", "2", "--log-every", "100"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == 2
    assert not any("first" in file.read_text() for file in (tmp_path / "run").glob("metrics.jsonl"))


@pytest.mark.parametrize("name", ["zeroshot", "linear-probe"])
def test_a_method_without_a_step_explains_none(name, options, tmp_path, capsys):
    argv = ["train", "--method", name, *options, "--explain", "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    assert f"explain is True, but {name} has no training step" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["coop", "cocoop", "promptsrc", "clip-adapter", "clip-lora", "mmrl", "rmadapter+lora"])
def test_the_speed_up_of_a_step_is_predicted_for_every_method(name, options, tmp_path, capsys):
    argv = ["train", "--method", name, *options, *training_of(name), "--explain", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    (ratio,) = re.findall(r"expected ([0-9.]+) times fewer operations than the plain step", shown)
    assert float(ratio) > 1.5
    assert not (tmp_path / "run").exists()


def test_zero_shot_is_its_evaluation(options, tmp_path, capsys):
    assert main(["train", "--method", "zeroshot", *options, "--no-evaluate", "--out", str(tmp_path / "run")]) == 2
    assert "evaluate is False, but zeroshot does nothing else" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zeroshot", "rmadapter"])
def test_of_three_classes_the_base_half_is_tested_alone(name, clip_folder, tmp_path, capsys):
    """The new half is one class, on which every method is right."""
    data = ["--data", str(write_images(tmp_path / "three", ["ant", "bee", "cat"], 6)), "--workers", "0"]
    argv = ["train", "--method", name, *data, "--model", f"local-dir:{clip_folder}", *TRAINING]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"].keys() == {"base"}
    zeroshot = ["eval", *data, "--method", "zeroshot", "--model", f"local-dir:{clip_folder}", "--classes", "new"]
    assert main(zeroshot) == 2
    assert "classes is 'new', which leaves 1 of 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zeroshot", "linear-probe", "rmadapter"])
def test_an_evaluation_writes_over_no_training_run(name, options, copied, capsys):
    out = copied(name)
    what = ["--method", "zeroshot"] if name == "zeroshot" else ["--adapter", str(out / "adapter")]
    before = (out / "results.json").read_bytes()
    assert main(["eval", *options, *what, "--classes", "base", "--out", str(out / "results.json")]) == 2
    assert "results.json', which is a file" in capsys.readouterr().err
    assert main(["eval", *options, *what, "--classes", "base", "--logits", str(out / "results.json" / "x.npz")]) == 2
    out_and_err = capsys.readouterr()
    assert "the folder of logits is " in out_and_err.err
    assert out_and_err.out == ""  # before anything was evaluated
    assert main(["eval", *options, *what, "--classes", "base", "--out", str(out)]) == 2
    assert "where a training run is" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "recorded", "streams"),
    [
        ([], "auto", [torch.float32]),
        (["--residual", "compute"], "compute", [torch.bfloat16]),
        (["--no-shortcuts"], None, []),  # through open_clip's own forward passes, in evaluation too
    ],
)
def test_evaluation_has_the_residual_stream_of_the_training(
    given, recorded, streams, options, animals, tmp_path, monkeypatch
):
    argv = ["train", *options, *TRAINING, *given, "--precision", "bf16", "--no-evaluate"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    adapter = tmp_path / "run" / "adapter"
    assert read_info(adapter).training["residual"] == recorded
    found = []
    of = Encoders.of
    monkeypatch.setattr(
        Encoders, "of", lambda *given, stream, **settings: found.append(stream) or of(*given, stream=stream, **settings)
    )
    common = ["--adapter", str(adapter), "--precision", "bf16"]
    assert main(["eval", *common, "--data", str(animals), "--workers", "0"]) == 0
    assert main(["predict", *common, str(animals / "ant" / "00.png")]) == 0
    assert found == 2 * streams


def test_a_method_is_one_entry(options, animals, tmp_path, monkeypatch, capsys):
    """Even where its options do not tell its name: train, eval, sweep and report call it by its own."""
    monkeypatch.setitem(METHODS, "wide", Method("wide", "a bottleneck of 12", ("--adapter.bottleneck=12",)))
    out = tmp_path / "run"
    assert main(["train", "--method", "wide", *options, *TRAINING, "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["method"] == "wide"
    evaluation = ["--adapter", str(out / "adapter"), "--data", str(animals), "--workers", "0"]
    assert main(["eval", *evaluation, "--out", str(tmp_path / "eval")]) == 0
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["method"] == "wide"
    sweep = ["sweep", "base2new", *options, *TRAINING[:-2], "--seeds", "1", "--out", str(tmp_path / "s")]
    assert main([*sweep, "--methods", "rmadapter,wide"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert "| rmadapter - wide " in text
    assert len({line for line in text.splitlines() if line.startswith(("| wide ", "| rmadapter "))}) >= 2
