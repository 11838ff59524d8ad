"""``rmadapter calibrate`` and what predict makes of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_config, write_images
from small_runs import stop

from rmadapter.cli import main
from rmadapter.data import load_data
from rmadapter.errors import InputError
from rmadapter.evaluation import calibrate_command
from rmadapter.evaluation.calibration import CALIBRATION, Calibration
from rmadapter.evaluation.prediction_results import Results
from rmadapter.training.probe_run import train_probe


@pytest.fixture
def adapter(base_run, tmp_path):
    """A copy of the stored adapter, to write into."""
    return shutil.copytree(base_run / "adapter", tmp_path / "adapter")


def calibrate(adapter, animals, *words, status=0):
    argv = ["calibrate", "--adapter", str(adapter), "--data", str(animals), "--workers", "0", "--precision", "fp32"]
    assert main([*argv, *words]) == status
    return Calibration.load(adapter)


def predicted(capsys, adapter, *words, status=0):
    assert main(["predict", "--adapter", str(adapter), "--json", "--precision", "fp32", *map(str, words)]) == status
    output = capsys.readouterr()
    return json.loads(output.out) if status == 0 else output.err


def test_it_reads_validation_images_alone(adapter, animals, monkeypatch, capsys):
    seen, real = [], calibrate_command.encode

    def encode(model, read, items, *arguments, **names):
        seen.extend(item.path for item in items)
        return real(model, read, items, *arguments, **names)

    monkeypatch.setattr(calibrate_command, "encode", encode)
    found = calibrate(adapter, animals)
    data = load_data(str(animals), None, None)
    validation = {item.path for item in data.val if item.name in ("ant", "bee")}
    assert set(seen) == validation
    assert not set(seen) & {item.path for item in (*data.train, *data.test)}
    assert (found.images, found.class_names, found.classes) == (len(validation), ["ant", "bee"], "base")
    assert found.after["nll"] <= found.before["nll"]
    assert found.data_hash == data.content_hash
    assert {score: len(values) for score, values in found.scores.items()} == {"aps": 4, "lac": 4}
    assert "temperature" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "damaged"), [(0, False), (3, True)])
def test_without_validation_images_none_that_was_trained_on(clip_folder, tmp_path, monkeypatch, seed, damaged):
    """Seed 0 is one like any other, and training has drawn again where an image could not be read."""
    names = ["ant", "bee", "cat", "dog"]
    write_images(tmp_path / "images" / "train", names, 12)
    write_images(tmp_path / "images" / "test", names, 2, seed=1)
    if damaged:
        for name in ("ant", "bee"):
            for file in sorted((tmp_path / "images" / "train" / name).iterdir())[3:6]:
                file.write_bytes(b"no image")
    words = ["--data", str(tmp_path / "images"), "--workers", "0", "--skip-bad-images"]
    argv = ["train", *words, "--model", f"local-dir:{clip_folder}", "--shots", "6", "--epochs", "1", "--no-evaluate"]
    argv += ["--adapter.layers", "2-3", "--classes", "all", "--seed", str(seed), "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    seen, real = set(), calibrate_command.encode

    def encode(model, read, items, *arguments, **names):
        seen.update(item.path for item in items)
        return real(model, read, items, *arguments, **names)

    monkeypatch.setattr(calibrate_command, "encode", encode)
    assert main(["calibrate", "--adapter", str(tmp_path / "run" / "adapter"), *words]) == 0
    sample = json.loads((tmp_path / "run" / "few_shot.json").read_text())
    assert seen
    assert not seen & {path for path, *_ in sample["train"]}


def test_where_all_images_are_answered_right_the_temperature_stays_and_that_is_said(
    adapter, animals, monkeypatch, capsys
):
    real = calibrate_command.answers_of

    def answers_of(*arguments):
        found = real(*arguments)
        return dataclasses.replace(found, logits=torch.eye(2)[found.labels])

    monkeypatch.setattr(calibrate_command, "answers_of", answers_of)
    found = calibrate(adapter, animals)
    assert (found.temperature, found.after) == (1, found.before)
    assert "all 4 images are answered right" in capsys.readouterr().out


def test_predict_divides_by_the_temperature_and_gives_sets(adapter, animals, capsys):
    pictures = [animals / name / "09.png" for name in ("ant", "bee")]
    before = predicted(capsys, adapter, *pictures)
    found = calibrate(adapter, animals, "--score", "lac")
    capsys.readouterr()
    after = predicted(capsys, adapter, *pictures, "--sets", "0.5")
    for one, other in zip(before, after, strict=True):
        own, changed = (
            torch.tensor([p["probability"] for p in sorted(record["predictions"], key=lambda p: p["index"])])
            for record in (one, other)
        )
        torch.testing.assert_close(changed, (own.log() / found.temperature).softmax(-1))
        inside = found.sets(own[None], 0.5)[0].tolist()
        assert other["set"] == [name for name, is_in in zip(("ant", "bee"), inside, strict=True) if is_in]
        assert other["predictions"][0]["class"] in other["set"]
    assert found.temperature != pytest.approx(1, abs=1e-3)
    (record,) = predicted(capsys, adapter, pictures[0], "--sets", "0.99")
    assert record["set"] == ["ant", "bee"]  # four images cannot promise that with fewer
    assert main(["predict", "--adapter", str(adapter), "--sets", "0.99", str(pictures[0])]) == 0
    assert "set: ant, bee" in capsys.readouterr().out


def test_it_holds_for_what_it_was_made_with_alone(adapter, animals, capsys):
    picture = animals / "ant" / "09.png"
    message = predicted(capsys, adapter, picture, "--sets", "0.9", status=2)
    assert "sets is 0.9, but there is no calibration; valid: after rmadapter calibrate" in message
    calibrate(adapter, animals)
    own = predicted(capsys_after(capsys), adapter, picture, "--classes", "bee,ant", "--sets", "0.9")
    assert len(own[0]["set"]) == 2
    for words, asked, own, remedy in (
        (["--classes", "ant,cat"], "classes are 'ant', 'cat'", "the classes 'ant', 'bee'", "those classes"),
        (["--template", "{}"], "the prompt is '{}'", "the prompt 'a photo of a {}.'", "--template 'a photo of a {}.'"),
        (["--strength", "0.5"], "strength is 0.5", "strength 1", "--strength 1, or rmadapter calibrate --strength 0.5"),
    ):
        message = predicted(capsys, adapter, picture, *words, "--sets", "0.9", status=2)
        assert f"{asked}, but the calibration in {adapter} is of {own}; valid with --sets: {remedy}\n" in message
        assert main(["predict", "--adapter", str(adapter), *words, str(picture)]) == 0
        assert f"is not used: {asked}, and it is of {own}\n" in capsys.readouterr().err
    file = adapter / CALIBRATION
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights_sha256": "0" * 64}))
    message = predicted(capsys, adapter, picture, "--sets", "0.9", status=2)
    assert "the adapter was trained again, but the calibration in " in message


def test_what_sets_cannot_be_is_said_before_a_model_is_loaded(tmp_path, capsys):
    words = ["predict", "--model", "local-dir:gone", "--classes", "ant,a|b", "--csv", str(tmp_path / "x.csv"), "x.png"]
    assert main([*words, "--sets", "1.5"]) == 2
    assert "sets is 1.5; valid: a number >= 0 and <= 1" in capsys.readouterr().err
    assert main([*words, "--sets", "0.5"]) == 2
    assert "class 'a|b' has a '|', which stands between the classes of a set in a CSV" in capsys.readouterr().err
    assert main(words) == 2  # only sets are joined
    assert "x.png cannot be read" in capsys.readouterr().err


def test_a_stopped_run_does_not_go_on_after_another_calibration(adapter, animals, tmp_path, monkeypatch, capsys):
    """Also where temperature and score are the same: the sets are of the images that were calibrated with."""
    calibrate(adapter, animals)
    words = ["predict", "--adapter", str(adapter), "--precision", "fp32", "--sets", "0.5", "--workers", "0"]
    words += ["--batch-size", "8", "--csv", str(tmp_path / "x.csv"), str(animals)]
    real, batches = Results.add, []

    def add(self, records):
        real(self, records)
        batches.append(records)
        if len(batches) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", add)
        assert main(words) == 130
    found = Calibration.load(adapter)
    dataclasses.replace(found, scores={name: [0.0] * 4 for name in found.scores}, data_hash="0" * 64).save(adapter)
    assert main(words) == 2
    assert "x.csv.unfinished holds an unfinished run with another calibration (" in capsys.readouterr().err
    found.save(adapter)
    assert main(words) == 0
    assert "24 images in" in capsys.readouterr().err


def capsys_after(capsys):
    """``capsys`` without what was printed so far."""
    capsys.readouterr()
    return capsys


def test_a_strength_is_calibrated_for_itself(adapter, animals, capsys):
    full, half = (calibrate(adapter, animals, "--strength", strength) for strength in ("1", "0.5"))
    assert half.scores != full.scores
    picture = animals / "ant" / "09.png"
    (record,) = predicted(capsys_after(capsys), adapter, picture, "--strength", "0.5", "--sets", "0.9")
    assert record["set"]


def test_a_linear_probe_is_calibrated_too(animals, clip_folder, tmp_path, capsys):
    train_probe(run_config(animals, clip_folder, tmp_path / "run", evaluate=False))
    folder = tmp_path / "run" / "adapter"
    found = calibrate(folder, animals)
    assert found.class_names == ["ant", "bee"]
    (record,) = predicted(capsys_after(capsys), folder, animals / "ant" / "09.png", "--sets", "0.5")
    assert "set" in record


def test_a_run_s_folder_with_a_calibration_may_be_written_over(images, clip_folder, tmp_path):
    config = run_config(images, clip_folder, tmp_path / "run", evaluate=False)
    train_probe(config)
    calibrate(tmp_path / "run" / "adapter", images)
    train_probe(run_config(images, clip_folder, tmp_path / "run", evaluate=False, overwrite=True))
    assert not (tmp_path / "run" / "adapter" / CALIBRATION).exists()


def test_damaged_files_are_named(adapter, animals):
    calibrate(adapter, animals)
    file = adapter / CALIBRATION
    values = json.loads(file.read_text())
    for changes, message in (
        ({"format": 9}, "has format 9; valid: 1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"scores": {"aps": [0.5]}}, "scores are not 4 numbers"),
        ({"images": "4"}, "calibration.images is '4'"),
    ):
        file.write_text(json.dumps(values | changes))
        with pytest.raises(InputError, match=message):
            Calibration.load(adapter)


def test_what_cannot_be_calibrated(adapter, animals, capsys):
    assert main(["calibrate"]) == 2
    assert "adapter is missing" in capsys.readouterr().err
    calibrate(adapter, animals, "--score", "raps", status=2)
    assert "score is 'raps'; valid: 'aps', 'lac'" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode, **_: Path(path) != adapter)
        patch.setattr(calibrate_command, "encode", stop)
        calibrate(adapter, animals, status=2)
    assert f"adapter is '{adapter}', which may not be written; valid: a folder" in capsys.readouterr().err
    assert not (adapter / CALIBRATION).exists()
