"""What results.json says beyond accuracy, the kept logits, and evaluation at several strengths."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from small_runs import stop

from rmadapter.cli import main
from rmadapter.evaluation import evaluate as evaluate_module
from rmadapter.evaluation.metrics import quality
from rmadapter.reports.finished_runs import read_run

METRICS = {"top1", "top5", "ece", "nll", "auroc"}


@pytest.fixture
def evaluate(base_run, animals, tmp_path):
    def make(*words, adapter=base_run / "adapter", status=0):
        argv = ["eval", "--data", str(animals), "--workers", "0", "--precision", "fp32", "--out", str(tmp_path / "e")]
        assert main([*argv, "--adapter", str(adapter), *words]) == status
        file = tmp_path / "e" / "results.json"
        return json.loads(file.read_text()) if file.is_file() else None

    return make


def test_training_and_evaluation_write_the_same_metrics(base_run, evaluate, tmp_path):
    found = evaluate("--classes", "base_new", "--logits", str(tmp_path / "l.npz"))["metrics"]
    trained = json.loads((base_run / "results.json").read_text())
    assert found == trained["metrics"]
    assert {part: set(values) for part, values in found.items()} == {
        "base": METRICS | {"per_class"},
        "new": METRICS | {"per_class"},
        "open": METRICS | {"base", "new", "hm"},
    }
    assert list(found["new"]["per_class"]) == ["cat", "dog"]
    for part in ("base", "new"):
        assert found[part]["top1"] == trained["accuracy"][part]


def test_the_open_world_is_both_halves_images_among_all_classes(evaluate, tmp_path):
    """Held against an evaluation on all classes, whose images and classes are the same."""
    logits, every = tmp_path / "l.npz", tmp_path / "every.npz"
    found = evaluate("--classes", "base_new", "--logits", str(logits))["metrics"]["open"]
    whole = evaluate("--classes", "all", "--logits", str(every))["metrics"]["all"]
    for name in METRICS:
        assert found[name] == pytest.approx(whole[name], abs=1e-5), name
    one, other = np.load(logits), np.load(every)
    assert sorted(one["open.images"]) == sorted(other["all.images"])
    predicted = dict(zip(other["all.images"], other["all.logits"].argmax(1) == other["all.labels"], strict=True))
    for half in ("base", "new"):
        hits = [predicted[image] for image in one[f"{half}.images"]]
        assert found[half] == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_logits_are_kept_with_labels_and_names(evaluate, animals, suffix, tmp_path):
    file = tmp_path / f"logits{suffix}"
    metrics = evaluate("--classes", "new", "--logits", str(file))["metrics"]["new"]
    if suffix == ".npz":
        arrays = np.load(file)
        logits, labels = (torch.from_numpy(arrays[f"new.{name}"]) for name in ("logits", "labels"))
        classes, images = arrays["new.classes"].tolist(), arrays["new.images"].tolist()
    else:
        with safe_open(file, framework="pt") as stored:
            logits, labels = stored.get_tensor("new.logits"), stored.get_tensor("new.labels")
            classes, images = (json.loads(stored.metadata()[f"new.{name}"]) for name in ("classes", "images"))
    assert quality(logits, labels, classes) == metrics
    assert classes == ["cat", "dog"]
    assert [classes[label] for label in labels] == [image.split("/")[0] for image in images]
    assert all((animals / image).is_file() for image in images)


def test_images_that_are_left_out_shift_no_label(evaluate, images, tmp_path):
    evaluate("--data", str(images), "--classes", "all")  # makes the split
    split = json.loads(next(images.glob("split_*.json")).read_text())
    broken = split["test"][1][0]
    (images / broken).write_bytes(b"no image")
    file = tmp_path / "l.npz"
    results = evaluate("--data", str(images), "--classes", "all", "--skip-bad-images", "--logits", str(file))
    assert (results["skipped"], results["images"]["all"]) == (1, len(split["test"]) - 1)
    arrays = np.load(file)
    assert broken not in arrays["all.images"]
    for image, label in zip(arrays["all.images"], arrays["all.labels"], strict=True):
        assert image.split("/")[0] == arrays["all.classes"][label]


def test_results_of_before_have_no_metrics_and_stay_readable(base_run, tmp_path):
    results = json.loads((base_run / "results.json").read_text())
    before = tmp_path / "results.json"
    before.write_text(json.dumps({name: value for name, value in results.items() if name != "metrics"}))
    assert read_run(before).accuracy == read_run(base_run / "results.json").accuracy


@pytest.mark.drawn
def test_several_strengths_are_evaluated_tabled_and_drawn(evaluate, clip_folder, animals, tmp_path, capsys):
    evaluate("--classes", "base_new", "--strength", "1,0,0.5")
    text = capsys.readouterr().out
    found = {s: json.loads((tmp_path / "e" / f"strength-{s}" / "results.json").read_text()) for s in ("0", "0.5", "1")}
    with (tmp_path / "e" / "strength.csv").open() as file:
        heading, *lines = csv.reader(file)
    assert heading == ["strength", "base", "new", "hm"]
    assert [float(line[0]) for line in lines] == [0, 0.5, 1]
    for line, results in zip(lines, found.values(), strict=True):
        assert [float(value) for value in line[1:]] == [results["accuracy"][part] for part in heading[1:]]
    assert "|        0 |" in text
    with Image.open(tmp_path / "e" / "strength.png") as picture:
        assert picture.size[0] > 400
    assert found["0.5"]["settings"]["strength"] == 0.5
    assert "strength" not in found["1"]["settings"]
    template = found["0"]["settings"]["template"]
    words = ["--data", str(animals), "--classes", "base_new", "--workers", "0", "--precision", "fp32"]
    zeroshot = ["--method", "zeroshot", "--template", template, "--out", str(tmp_path / "z")]
    assert main(["eval", *words, *zeroshot, "--model", f"local-dir:{clip_folder}"]) == 0
    expected = json.loads((tmp_path / "z" / "results.json").read_text())
    assert found["0"]["accuracy"] == expected["accuracy"]
    assert found["0"]["metrics"]["base"]["nll"] == pytest.approx(expected["metrics"]["base"]["nll"], abs=1e-4)
    assert found["1"]["metrics"]["base"]["nll"] != pytest.approx(expected["metrics"]["base"]["nll"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "-1"], "strength is -1.0; valid: a number >= 0"),
        (["--strength", "half"], "strength is 'half'; valid: numbers such as"),
        (["--strength", "0,0"], "with a number twice"),
        (["--strength", "0,1", "--logits", "l.npz"], "logits is given with strength '0,1'; valid: with one strength"),
        (["--logits", "l.pt"], "valid: a file that ends in .safetensors or .npz"),
    ],
)
def test_what_cannot_be_asked_for(evaluate, words, message, capsys):
    evaluate(*words, status=2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("words", "field"), [(["--out", "o"], "out"), (["--logits", "l.npz"], "the folder of logits")])
def test_a_folder_that_may_not_be_written_is_said_before_the_test(words, field, evaluate, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode, **_: False)
    monkeypatch.setattr(evaluate_module, "evaluate_parts", stop)
    evaluate(*words, status=2)
    assert f"{field} is '{'o' if field == 'out' else '.'}', " in (said := capsys.readouterr().err)
    assert "may not be written; valid: a folder that can be written" in said


def test_predict_takes_a_strength(base_run, clip_folder, animals, capsys):
    picture = str(animals / "ant" / "00.png")

    def probabilities(*words):
        assert main(["predict", "--json", "--precision", "fp32", "--classes", "ant,bee", *words, picture]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        return {found["class"]: found["probability"] for found in record["predictions"]}

    adapter = ["--adapter", str(base_run / "adapter")]
    zeroshot = probabilities("--model", f"local-dir:{clip_folder}")
    assert probabilities(*adapter, "--strength", "0") == pytest.approx(zeroshot, abs=1e-5)
    assert probabilities(*adapter) != pytest.approx(zeroshot, abs=1e-5)
    assert main(["predict", "--model", f"local-dir:{clip_folder}", "--classes", "a,b", "--strength", "2", picture]) == 2
    assert "strength is 2.0, but zero-shot CLIP" in capsys.readouterr().err
