"""The command line as a user meets it: train, evaluate, predict, report, and mistakes."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from rmadapter.cli import COMMANDS, main
from rmadapter.evaluation import predict as prediction
from rmadapter.evaluation import ranking
from rmadapter.training import loop
from rmadapter.tuners.adapted_classifier import AdaptedClassifier


@pytest.fixture(scope="module")
def run(animals, clip_folder, tmp_path_factory):
    """A finished run on the base half, to be read alone; returns its folder."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    options = ["--adapter.layers", "2-3", "--shots", "2", "--epochs", "1", "--workers", "0", "--classes", "base"]
    data = ["--data", str(animals), "--model", f"local-dir:{clip_folder}"]
    assert main(["train", *data, *options, "--out", str(folder)]) == 0
    return folder


def test_eval_of_the_adapter_and_of_zero_shot(run, animals, clip_folder, tmp_path, capsys):
    data = ["--data", str(animals), "--workers", "0"]
    assert main(["eval", "--adapter", str(run / "adapter"), *data, "--classes", "new"]) == 0
    assert "new" in capsys.readouterr().out
    trained = json.loads((run / "results.json").read_text())
    out = tmp_path / "evaluated"
    assert main(["eval", "--adapter", str(run / "adapter"), *data, "--classes", "base_new", "--out", str(out)]) == 0
    evaluated = json.loads((out / "results.json").read_text())
    assert evaluated["accuracy"] == trained["accuracy"]
    for name in ("images", "method", "model", "data", "shots", "seed", "trained_parameters"):
        assert evaluated[name] == trained[name]
    zero = ["--method", "zeroshot", "--classes", "all", "--split", "val"]
    assert main(["eval", "--model", f"local-dir:{clip_folder}", *zero, *data, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["method"], results["trained_parameters"], results["images"]["all"]) == ("zeroshot", 0, 8)
    assert main(["eval", "--adapter", str(run / "adapter"), *zero, *data, "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["accuracy"] == results["accuracy"]


def test_predict(run, animals, capsys):
    pictures = [str(animals / "ant" / "00.png"), str(animals / "dog" / "01.png")]
    argv = ["predict", "--adapter", str(run / "adapter"), "--classes", "zero,one,a seven", *pictures]
    assert main([*argv, "--top", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("%") == 4
    assert pictures[1] in text
    assert main([*argv, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [r["image"] for r in records] == pictures
    ranked = records[0]["predictions"]
    assert {p["class"] for p in ranked} == {"zero", "one", "a seven"}
    assert sum(p["probability"] for p in ranked) == pytest.approx(1, abs=1e-5)
    assert [p["probability"] for p in ranked] == sorted((p["probability"] for p in ranked), reverse=True)


def test_predict_among_the_trained_classes_or_those_of_a_file(run, animals, tmp_path, capsys):
    argv = ["predict", "--adapter", str(run / "adapter"), str(animals / "ant" / "00.png"), "--json"]
    assert main(argv) == 0
    assert {p["class"] for p in json.loads(capsys.readouterr().out)[0]["predictions"]} == {"ant", "bee"}
    (tmp_path / "names.txt").write_text("a cat, or not\n\ncow\n")
    assert main([*argv, "--classes-file", str(tmp_path / "names.txt")]) == 0
    assert {p["class"] for p in json.loads(capsys.readouterr().out)[0]["predictions"]} == {"a cat, or not", "cow"}


def test_report(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert "rmadapter" in capsys.readouterr().out
    assert {"report.md", "report.csv", "base_new.png", "curves.png"} <= {
        p.name for p in (tmp_path / "report").iterdir()
    }


def test_mistakes_exit_with_2_and_name_what_is_valid(images, clip_folder, tmp_path, capsys):
    one_class = tmp_path / "one" / "only"
    one_class.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(one_class / "a.png")
    empty = tmp_path / "holes"
    for name in ("ant", "bee"):
        (empty / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(empty / "ant" / "a.png")
    run_folder = tmp_path / "finished"
    (run_folder / "adapter").mkdir(parents=True)
    train = ["train", "--model", f"local-dir:{clip_folder}", "--adapter.layers", "2", "--out", str(tmp_path / "out")]
    good = [*train, "--data", str(images)]
    cases = {
        "unknown command 'trian'; did you mean 'train'": ["trian"],
        "unknown command '--hepl'; did you mean '--help'": ["--hepl"],
        "data is missing": ["train"],
        "shots is 0": [*good, "--shots", "0"],
        "did you mean '--shots'": [*good, "--shotz", "3"],
        "nowhere": [*train, "--data", str(tmp_path / "nowhere")],
        "two": [*train, "--data", str(one_class.parent)],
        "bee": [*train, "--data", str(empty)],
        "adapter is missing": ["eval", "--data", str(images)],
        "a run folder; its adapter is": ["eval", "--adapter", str(run_folder), "--data", str(images)],
        "adapter folder": ["eval", "--adapter", str(tmp_path / "no"), "--data", str(images)],
        "no image is given": ["predict", "--adapter", str(tmp_path)],
        "at least two different names": ["predict", "--classes", "cat", str(images / "ant" / "00.png")],
        "classes is missing": ["predict", str(images / "ant" / "00.png")],
        "no run folder is given": ["report"],
        "fp16": [*good, "--precision", "fp16", "--device", "cpu"],
    }
    for message, argv in cases.items():
        assert main(argv) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("rmadapter: "), error
        assert message in error
    assert not (tmp_path / "out").exists()


def test_predict_reads_images_as_it_needs_them(run, animals, monkeypatch, capsys):
    """A batch at a time, whatever the number of images, and with the result of one batch."""
    pictures = [str(animals / name) for name in ("ant/00.png", "bee/00.png", "cat/00.png", "dog/00.png", "ant/01.png")]
    steps = []
    read, encode = ranking.read_image, AdaptedClassifier.image_features
    monkeypatch.setattr(ranking, "read_image", lambda path: (steps.append("read"), read(path))[1])
    monkeypatch.setattr(AdaptedClassifier, "image_features", lambda self, x: (steps.append(len(x)), encode(self, x))[1])

    def predicted(batch_size):
        argv = ["predict", "--adapter", str(run / "adapter"), *pictures, "--json", "--precision", "fp32"]
        assert main([*argv, "--workers", "0", "--batch-size", str(batch_size)]) == 0
        return json.loads(capsys.readouterr().out)

    parted = predicted(2)
    assert steps == ["read", "read", 2, "read", "read", 2, "read", 1]
    for one, other in zip(parted, predicted(5), strict=True):
        assert one["image"] == other["image"]
        for mine, theirs in zip(one["predictions"], other["predictions"], strict=True):
            assert mine["class"] == theirs["class"]
            assert mine["probability"] == pytest.approx(theirs["probability"], rel=1e-5)


def test_an_unreadable_image_is_named(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    argv = ["predict", "--adapter", str(run / "adapter"), str(tmp_path / "bad.png")]
    assert main(argv) == 2
    assert "bad.png" in capsys.readouterr().err
    # One that is not there is found before the model is loaded.
    monkeypatch.setattr(prediction, "load_chosen", None)
    assert main([*argv, str(tmp_path / "gone.png")]) == 2
    assert "gone.png cannot be read: there is no such file" in capsys.readouterr().err


def test_a_split_file_may_not_leave_the_folder(images, clip_folder, tmp_path, capsys):
    items = {"train": [["../secret.png", 0, "ant"], ["bee/00.png", 1, "bee"]], "val": [], "test": []}
    (images / "split_zhou_Animals.json").write_text(json.dumps(items))
    argv = ["train", "--data", str(images), "--model", f"local-dir:{clip_folder}", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "../secret.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_and_no_arguments(capsys):
    assert main(["--help"]) == 0
    assert "predict" in capsys.readouterr().out
    assert main([]) == 2


def test_a_warning_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "report", lambda options: warnings.warn("too few runs", stacklevel=1))
    assert main(["report", "runs"]) == 0
    assert capsys.readouterr().err == "rmadapter: warning: too few runs\n"


@pytest.mark.parametrize(("command", "goes_on"), [("train", True), ("eval", False)])
def test_an_interrupted_command_says_how_it_goes_on(command, goes_on, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, interrupted)
    assert main([command]) == 130
    assert ("--resume" in capsys.readouterr().err) == goes_on


def test_a_diverged_run_exits_with_1(images, clip_folder, tmp_path, capsys):
    argv = [
        "train",
        "--data",
        str(images),
        "--model",
        f"local-dir:{clip_folder}",
        "--adapter.layers",
        "2-3",
        "--lr",
        "1e9",
    ]
    assert main([*argv, "--epochs", "3", "--workers", "0", "--out", str(tmp_path / "out")]) == 1
    assert "not finite" in capsys.readouterr().err


def test_a_terminated_training_goes_on(animals, clip_folder, tmp_path, monkeypatch, capsys):
    data = ["--data", str(animals), "--model", f"local-dir:{clip_folder}", "--out", str(tmp_path / "run")]
    options = ["--adapter.layers", "3", "--shots", "2", "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    words = ["train", *data, *options, "--checkpoint-every", "1", "--no-evaluate"]
    real = loop.TrainingLoop._step

    def step(self, *arguments):
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_step", step)
        assert main(words) == 143
    assert capsys.readouterr().err == "rmadapter: ended by SIGTERM; --resume goes on\n"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert main([*words, "--resume"]) == 0
    assert "resuming at epoch 1, step 2" in capsys.readouterr().out


@pytest.mark.parametrize("method", [None, "linear-probe"])
def test_a_run_s_own_config_makes_the_same_run(method, animals, clip_folder, tmp_path, capsys):
    data = ["--data", str(animals), "--model", f"local-dir:{clip_folder}", "--out", str(tmp_path / "run")]
    options = ["--adapter.layers", "3", "--shots", "1", "--epochs", "1", "--workers", "0", "--seed", "3", "--overwrite"]
    chosen = [] if method is None else ["--method", method]
    assert main(["train", *data, *options, *chosen]) == 0
    other = ["--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "other")]
    assert main(["train", *other]) == 0
    assert main(["train", *other]) == 2  # whatever the first was told, it deletes none that is there
    assert "--overwrite to replace it" in capsys.readouterr().err
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "other"))
    for name in ("accuracy", "method", "settings", "seed", "few_shot_hash", "trained_parameters"):
        assert one[name] == two[name], name
    names = {path.name for path in (tmp_path / "run" / "adapter").iterdir()}
    assert {path.name for path in (tmp_path / "other" / "adapter").iterdir()} == names


def test_predicted_names_obey_no_terminal(run, animals, tmp_path, capsys):
    picture = tmp_path / "one\nrmadapter: warning: \x1b[2J.png"
    picture.write_bytes((animals / "ant" / "00.png").read_bytes())
    argv = ["predict", "--adapter", str(run / "adapter"), "--classes", "a \x1b[31mcat,dog\u202e,猫", str(picture)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 4
    for shown in ("one rmadapter: warning: \\x1b[2J.png", "a \\x1b[31mcat", "dog\\u202e", "猫"):
        assert shown in out
    assert main([*argv, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["image"] == str(picture)
    assert {found["class"] for found in record["predictions"]} == {"a \x1b[31mcat", "dog\u202e", "猫"}


@pytest.mark.parametrize("module", ["rmadapter", "rmadapter.train"])
def test_the_modules_are_commands(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module if module == "rmadapter.train" else "rmadapter.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert "rmadapter" in capsys.readouterr().out


def test_a_reader_that_goes_away_ends_the_command_quietly():
    command = [sys.executable, "-m", "rmadapter", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
