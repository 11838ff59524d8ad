"""The search: what it can see, what it tries, how it goes on, what it leaves behind."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import pytest
import yaml
from conftest import write_images
from small_runs import Killed

from rmadapter.cli import main
from rmadapter.config import TrainConfig
from rmadapter.data import load_data
from rmadapter.data.emoji import TRAIN_CONFIG
from rmadapter.data.emoji import emoji_data as datasets
from rmadapter.data.emoji.drawings_data import load_drawings
from rmadapter.data.emoji.emoji_data import load_emoji, read_rendering
from rmadapter.errors import InputError
from rmadapter.evaluation.results_file import harmonic_mean
from rmadapter.locks import ProcessLock
from rmadapter.sweeps import optuna_search as search
from rmadapter.sweeps.optuna_search import SearchConfig, _layer_choices, parse_search, trial_config
from rmadapter.sweeps.search_folder import LOCK, SearchFolder
from rmadapter.sweeps.search_images import searchable, searchable_unseen, write_search_data
from rmadapter.training.run_errors import DivergedError

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
BASE, NEW = CLASSES[:4], CLASSES[4:]


@pytest.fixture
def zoo(tmp_path):
    """Eight classes with a split file, ten images each: 5 for training, 2 for validation, 3 for the test."""
    folder = write_images(tmp_path / "zoo", CLASSES, 10)
    return load_data(str(folder))


def test_only_base_classes_training_and_validation_images_are_there(zoo, tmp_path):
    data = write_search_data(zoo, *searchable(zoo, 64), tmp_path / "s")
    seen = {path.relative_to(data.root).as_posix() for path in data.root.rglob("*.png")}
    allowed = {item.path for item in (*zoo.train, *zoo.val) if item.name in BASE}
    assert seen == allowed
    assert not seen & {item.path for item in zoo.test}
    assert data.class_names == BASE
    assert {item.path for item in data.train} == {item.path for item in zoo.train if item.name in BASE}
    assert {item.path for item in data.test} == {item.path for item in zoo.val if item.name in BASE}
    assert data.val == []
    assert data.retention is None


def test_without_validation_images_a_fifth_of_the_training_images_is_held_out(tmp_path):
    write_images(tmp_path / "zoo" / "train", CLASSES, 10)
    write_images(tmp_path / "zoo" / "test", CLASSES, 2)
    data = load_data(str(tmp_path / "zoo"))
    train, val = searchable(data, 64)
    assert (len(train), len(val)) == (4 * 8, 4 * 2)
    assert not {i.path for i in train} & {i.path for i in val}
    assert all(item.path.startswith("train/") and item.name in BASE for item in (*train, *val))


def test_training_images_that_are_test_images_too_are_not_held_out(tmp_path):
    write_images(tmp_path / "zoo" / "train", CLASSES, 10)
    write_images(tmp_path / "zoo" / "test", CLASSES, 2)
    data = load_data(str(tmp_path / "zoo"))
    train, val = searchable(data, 64)
    overlapping = dataclasses.replace(data, test=[*data.test, *val[::2]])
    assert searchable(overlapping, 64) == (train, val[1::2])


def test_images_a_class_are_bounded(zoo):
    train, val = searchable(zoo, 2)
    assert (len(train), len(val)) == (8, 8)
    assert searchable(zoo, 2) == (train, val)
    assert [item.label for item in train] == sorted(item.label for item in train)


def test_too_few_classes(tmp_path):
    data = load_data(str(write_images(tmp_path / "few", CLASSES[:6], 10)))
    with pytest.raises(InputError, match="has 3 base classes; valid for a search: four or more"):
        searchable(data, 64)
    with pytest.raises(InputError, match="has no training images"):
        searchable(dataclasses.replace(data, train=[]), 64)


@pytest.fixture
def words(zoo, clip_folder, tmp_path):
    def make(out="s", **options):
        values = {
            "data": zoo.root,
            "model": f"local-dir:{clip_folder}",
            "trials": 3,
            "shots": 2,
            "epochs": 1,
            "workers": 0,
            "adapter.bottleneck": 4,
            "out": tmp_path / out,
            **options,
        }
        return ["search", *(word for name, value in values.items() for word in (f"--{name}", str(value)))]

    return make


def test_one_that_is_refused_leaves_nothing_behind(words, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    (tmp_path / "afile").touch()
    assert main(words(out="afile", data="gone")) == 2  # before the data are looked for
    assert "afile', which is a file; valid: a folder" in capsys.readouterr().err
    few = write_images(tmp_path / "few", CLASSES[:6], 10)
    assert main(words(data=few)) == 2
    assert "has 3 base classes; valid for a search" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def trials_of(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def test_a_whole_search_never_reads_a_test_image_or_one_of_a_new_class(zoo, words, tmp_path, capsys):
    """The images that it must not see are made unreadable: it finds what it found before, image for image."""
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    assert main(words()) == 0
    for item in (*zoo.test, *(i for i in (*zoo.train, *zoo.val) if i.name in NEW)):
        (zoo.root / item.path).write_bytes(b"not to be read")
    capsys.readouterr()
    assert main(words(out="again")) == 0
    assert trials_of(tmp_path / "s") == trials_of(tmp_path / "again")
    out = capsys.readouterr().out
    assert "best: trial" in out
    # Spoil one that it does see, and it does not go through: the test can fail.
    (zoo.root / next(item.path for item in zoo.val if item.name in BASE)).write_bytes(b"spoilt")
    assert main(words(out="third")) == 2


def test_what_it_leaves_and_that_it_goes_on(words, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    assert main(words(trials=2, seeds="1,2")) == 0
    first = trials_of(tmp_path / "s")
    assert len(first) == 2
    # The first trial is that of the options.
    assert float(first[0]["lr"]) == TrainConfig(data="x").lr
    assert (float(first[0]["lambda1"]), float(first[0]["lambda3"])) == (10, 10)
    accuracies = json.loads(first[0]["accuracies"])
    assert set(accuracies) == {"seed1", "seed2"}
    assert set(accuracies["seed1"]) == {"base", "new", "hm"}
    assert float(first[0]["hm"]) == pytest.approx(sum(a["hm"] for a in accuracies.values()) / 2)
    zeroshot = tmp_path / "s" / "zeroshot" / "run" / "results.json"
    measured, had = zeroshot.stat().st_mtime_ns, json.loads(zeroshot.read_text())
    assert (had["method"], had["images"]) == ("zeroshot", {"base": 4, "new": 4})
    gain = sum(a["new"] for a in accuracies.values()) / 2 - had["accuracy"]["new"]
    assert float(first[0]["new - zero-shot"]) == pytest.approx(gain)
    assert first[0]["retained - zero-shot"] == ""
    assert first[0]["keeps"] == ("yes" if gain >= -0.5 else "no")
    capsys.readouterr()
    assert main(words(trials=4, seeds="1,2")) == 0
    out = capsys.readouterr().out
    assert "[3/4]" in out
    assert "[2/4]" not in out
    assert zeroshot.stat().st_mtime_ns == measured
    found = trials_of(tmp_path / "s")
    assert found[:2] == first
    best = min(found, key=lambda trial: (max(0, -0.5 - float(trial["new - zero-shot"])), -float(trial["hm"])))
    options = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
    assert options["lr"] == pytest.approx(float(best["lr"]))
    assert options["loss"]["lambda4"] == pytest.approx(2.5 * options["loss"]["lambda3"])
    assert options["loss"]["lambda2"] == options["loss"]["lambda1"]
    assert options["adapter"]["layers"] == best["layers"]
    run = ["train", "--config", str(tmp_path / "s" / "best.yaml"), *words()[1:3], "--model", words()[4]]
    assert main([*run, "--shots", "2", "--epochs", "1", "--workers", "0", "--out", str(tmp_path / "run")]) == 0
    assert main(words(trials=4, seeds="1")) == 2
    assert "seeds is '1', but the search in" in capsys.readouterr().err


class Training:
    """In place of the trials' training: keeps what they are made with, and is killed in the trial of that number."""

    def __init__(self, killed_in=None):
        self.made, self.killed_in = [], killed_in

    def __call__(self, config, _):
        self.made.append((config.lr, config.loss.lambda1, config.loss.lambda3))
        if len(self.made) - 1 == self.killed_in:
            raise Killed
        return {"base": 1.0, "new": 1.0, "hm": 1.0}


class Found:
    """In place of the trials' training: finds one of ``accuracies`` after the other; None diverges."""

    def __init__(self, *accuracies):
        self.left = list(accuracies)

    def __call__(self, *_):
        found = self.left.pop(0)
        if found is None:
            raise DivergedError("the loss is not finite")
        base, new, *retained = found
        names = ("retained_base", "retained_new")
        return {"base": base, "new": new, "hm": harmonic_mean(base, new), **dict(zip(names, retained, strict=False))}


ZEROSHOT = {"base": 40.0, "new": 50.0, "hm": harmonic_mean(40.0, 50.0)}
RETAINED = {"retained_base": 30.0, "retained_new": 40.0}
# New accuracy 1 below what keeps, diverged, kept at the margin, kept with less gained.
TRIALS = ((90, 48.5), None, (70, 49.5), (60, 50))


@pytest.mark.parametrize(("objective", "best"), [("kept", 2), ("hm", 0)])
def test_the_best_keeps_what_zero_shot_knows_or_has_the_highest_mean(
    words, monkeypatch, tmp_path, capsys, objective, best
):
    optuna = pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    monkeypatch.setattr(search, "_zeroshot", lambda *_: ZEROSHOT)
    monkeypatch.setattr(search, "_train", Found(*TRIALS))
    options = {"parameters": "lr", "trials": 4, "objective": objective}
    assert main(words(**options)) == 0
    out = capsys.readouterr().out
    assert "zero-shot has base 40.00, new 50.00; a trial keeps it with new 49.50 or more\n" in out
    assert "[1/4] HM 63.03, new -1.50 on zero-shot, 1.00 short: lr " in out
    assert "[2/4] diverged: lr " in out
    assert f"best: trial {best}, HM " in out
    assert "no trial keeps" not in out
    found = trials_of(tmp_path / "s")
    assert [trial["new - zero-shot"] for trial in found] == ["-1.5", "", "-0.5", "0.0"]
    assert [trial["keeps"] for trial in found] == ["no", "", "yes", "yes"]
    assert yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())["lr"] == pytest.approx(float(found[best]["lr"]))
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    # What diverged is worth less to the sampler than what falls short.
    lacks = [1.0, 49.5, 0.0, -0.5]
    assert [trial.constraints for trial in study.trials] == [
        {"new": lack} if objective == "kept" else {} for lack in lacks
    ]
    assert main(words(**options | {"objective": {"kept": "hm", "hm": "kept"}[objective]})) == 2
    assert f"but the search in {tmp_path / 's'} has {objective!r}; valid: that" in capsys.readouterr().err


def test_without_a_trial_that_keeps_the_best_falls_short_least(words, monkeypatch, tmp_path, capsys):
    """By the mean over seeds, and in retention too where that is measured."""
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    monkeypatch.setattr(search, "_zeroshot", lambda *_: ZEROSHOT | RETAINED)
    found = [(90, 60, 30, 30), (90, 60, 30, 30), (50, 48, 34, 40), (50, 50, 30, 40)]
    monkeypatch.setattr(search, "_train", Found(*found))
    assert main(words(parameters="lr", trials=2, seeds="1,2")) == 0
    out = capsys.readouterr().out
    assert "retained 35.00; a trial keeps it with new 49.50 and retained 33.00 or more" in out
    assert "HM 72.00, new +10.00, retained -5.00 on zero-shot, 3.00 short" in out
    assert "no trial keeps what zero-shot knows; the best is the one that falls short least\nbest: trial 1, " in out
    assert [trial["retained - zero-shot"] for trial in trials_of(tmp_path / "s")] == ["-5.0", "1.0"]


def test_one_that_goes_on_repeats_no_trial(words, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    training = Training()
    monkeypatch.setattr(search, "_train", training)
    options = {"parameters": "lr,lambdas"}
    for trials in (3, 6, 9):
        assert main(words(trials=trials, **options)) == 0
    assert len({lr for lr, _, _ in training.made}) == 9
    found = trials_of(tmp_path / "s")
    assert [trial["trial"] for trial in found] == [str(number) for number in range(9)]
    assert "best: trial 0, " in capsys.readouterr().out


def test_one_goes_on_with_the_same_options_however_they_are_written(words, clip_folder, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    monkeypatch.setattr(search, "_train", Training())
    options = {"parameters": "lr,lambdas", "seeds": "1,2", "lr_range": "0.001,0.01", "trials": 1}
    assert main(words(**options)) == 0
    again = words(**options | {"parameters": "lambdas, lr", "seeds": "1, 2", "lr_range": "1e-3,1e-2", "workers": 1})
    first, rest = again[:1], again[1:]
    pairs = [f"{name}={value}" for name, value in zip(rest[::2], rest[1::2], strict=True)]
    assert main([*first, *reversed(pairs)]) == 0
    for changes, said in (
        ({"epochs": 2}, "epochs is 2, but the search in {} has 1; valid: that, or another --out"),
        ({"adapter.bottleneck": 8}, "adapter.bottleneck is 8, but the search in {} has 4; valid: that"),
        ({"seeds": "2"}, "seeds is '2', but the search in {} has '1,2'; valid: that"),
    ):
        assert main(words(**options | changes)) == 2
        assert said.format(tmp_path / "s") in capsys.readouterr().err
    file = tmp_path / "s" / "search.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    assert main(words(**options)) == 2
    assert "was made by another version (format 2, this one has 3); valid: another --out" in capsys.readouterr().err


def test_the_trial_of_the_options_is_made_after_a_kill_in_it(words, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    training = Training(killed_in=0)
    monkeypatch.setattr(search, "_train", training)
    options = {"parameters": "lr,lambdas", "trials": 2}
    with pytest.raises(Killed):
        main(words(**options))
    capsys.readouterr()
    assert main(words(**options)) == 0
    start = (TrainConfig(data="x").lr, 10, 10)
    assert training.made[:2] == [start, start]
    assert [trial["state"] for trial in trials_of(tmp_path / "s")] == ["fail", "complete", "complete"]
    out = capsys.readouterr().out
    assert "[1/2] HM 1.00" in out
    assert "[2/2] HM 1.00" in out
    with ProcessLock(tmp_path / "s" / LOCK).attempt():
        assert main(words(**options)) == 2
    assert f"where a search is going on (process {os.getpid()} on " in capsys.readouterr().err


class Ended:
    """In place of the trials' training: keeps where they are made; raises ``error`` in the call of that number."""

    def __init__(self, error):
        self.error, self.places, self.rates, self.left = error, [], [], None

    def __call__(self, config, _):
        self.places.append(Path(config.out).parent.name)
        self.rates.append(config.lr)
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise self.error
        base = 40.0 + 100 * config.lr + config.seed
        return {"base": base, "new": 50.0, "hm": harmonic_mean(base, 50.0)}


# Optuna's sampler looks at what was found from the eleventh trial on.
@pytest.mark.parametrize("trials", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_stopped_trial_goes_on_in_its_folder_and_the_search_as_if_not_stopped(trials, words, monkeypatch, tmp_path):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    training = Ended(Killed)
    monkeypatch.setattr(search, "_train", training)
    options = {"parameters": "lr,scale,lambdas", "trials": trials, "seeds": "1,2"}
    assert main(words("whole", **options)) == 0
    training.places.clear()
    # In the second trial's second seed, at once when it goes on, in the third trial.
    for training.error, training.left in ((Killed, 4), (KeyboardInterrupt, 1), (KeyboardInterrupt, 3)):
        with contextlib.suppress(Killed):
            assert main(words(**options)) == 130
    training.left = None
    assert main(words(**options)) == 0
    assert len(set(training.places)) == trials
    assert {trial["folder"] for trial in trials_of(tmp_path / "s")} == set(training.places)
    columns = ("lr", "scale", "lambda1", "lambda3", "hm", "accuracies")
    tried = [
        [[trial[name] for name in columns] for trial in trials_of(tmp_path / out) if trial["state"] == "complete"]
        for out in ("whole", "s")
    ]
    assert tried[0] == tried[1]
    assert (tmp_path / "whole" / "best.yaml").read_text() == (tmp_path / "s" / "best.yaml").read_text()


def test_a_trial_that_failed_is_not_made_again(words, monkeypatch):
    """As it would fail again, whatever it was, such as too little memory for its layers."""
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    training = Ended(InputError("no room"))
    monkeypatch.setattr(search, "_train", training)
    training.left = 2
    assert main(words(parameters="lr")) == 2
    assert main(words(parameters="lr")) == 0
    assert training.places == ["0", "1", "2", "3"]
    assert len(set(training.rates)) == 4


def test_a_study_that_is_damaged_or_gone_is_said(words, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    monkeypatch.setattr(search, "_train", Training())
    options = {"parameters": "lr", "trials": 1}
    assert main(words(**options)) == 0
    study = tmp_path / "s" / "study.db"
    content = study.read_bytes()

    def lost(*_):
        with sqlite3.connect(study) as file:
            file.execute("DROP TABLE trials")

    monkeypatch.setattr(search, "_train", lost)
    capsys.readouterr()
    assert main(words(parameters="lr", trials=2)) == 2
    said = (
        "which holds the trials of the search, is damaged or was deleted meanwhile (",
        "valid: that file as it was, or",
    )
    assert all(words in capsys.readouterr().err for words in said[:1])
    for damaged in (b"no database", content[: len(content) // 2]):
        study.write_bytes(damaged)
        assert main(words(**options)) == 2
        error = capsys.readouterr().err
        assert all(words in error for words in said)
    (tmp_path / "s" / "trials" / "0").mkdir(parents=True)
    study.unlink()
    assert main(words(**options)) == 2
    assert "made trials, but study.db, in which they stand, is missing; valid: that file" in capsys.readouterr().err
    study.write_bytes(content)  # as it says
    assert main(words(**options)) == 0


def test_a_search_does_not_go_on_over_other_data(words, zoo, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    monkeypatch.setattr(search, "_train", Training())
    options, before = {"parameters": "lr", "trials": 1}, zoo.content_hash
    assert main(words(**options)) == 0
    (zoo.root / zoo.test[0].path).write_bytes(b"damaged, and mended later: it is not read")
    assert main(words(**options)) == 0
    (zoo.root / zoo.test[0].path).rename(zoo.root / "ant" / "other.png")
    zoo.split_file.unlink()
    after = load_data(str(zoo.root)).content_hash
    assert main(words(**options)) == 2
    said = f"its content hash is {after[:12]}, and was {before[:12]}; valid: the data as they were, or another"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("links", [True, False])
def test_links_that_lead_nowhere_are_laid_anew_and_nothing_is_written_through_them(zoo, tmp_path, monkeypatch, links):
    """As after the data have moved; where links cannot be made, images are copied, beside what a link leads to."""
    train, val = searchable(zoo, 64)
    folder = write_search_data(zoo, train, val, tmp_path / "s").root
    zoo.root.rename(tmp_path / "moved")
    zoo.root.mkdir()
    for name in CLASSES:
        (zoo.root / name).mkdir()
    if not links:
        monkeypatch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    moved = dataclasses.replace(zoo, root=tmp_path / "moved")
    assert write_search_data(moved, train, val, tmp_path / "s").root == folder
    assert not [path for path in zoo.root.rglob("*") if path.is_file()]
    for item in (*train, *val):
        assert (folder / item.path).is_symlink() == links
        assert (folder / item.path).read_bytes() == (tmp_path / "moved" / item.path).read_bytes()


def test_only_visible_files_are_in_the_way(zoo, tmp_path):
    folder = SearchFolder(tmp_path / "s")
    folder.path.mkdir()
    (folder.path / ".search.json.123.tmp").write_text("")  # as a kill leaves it
    folder.enter({"format": 3}, zoo)
    folder.settings_file.rename(folder.path / "thesis.json")
    with pytest.raises(InputError, match=r"a folder with other files in it \(thesis\.json\)"):
        folder.enter({"format": 3}, zoo)


def test_what_a_configuration_file_says_of_what_the_search_decides_is_passed_over(words, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("evaluate: false\nexplain: true\noverwrite: true\n")
    config = parse_search(words(config=file)[1:])
    found = trial_config(config, tmp_path, 1, {})
    assert (found.evaluate, found.explain, found.overwrite, found.resume) == (True, False, False, True)


@pytest.mark.slow
def test_a_bundled_data_set_is_searched_with_the_same_proof(tmp_path, monkeypatch, capsys):
    """Its pictures are drawn when they are read: none is drawn of a test image or of a new class.

    Of the unseen style, for retention, it draws as many as of its own for validation.
    """
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    data = load_emoji("emoji_activities", "noto")
    base = {item.name for item in data.train if item.label < (len(data.class_names) + 1) // 2}
    items = (*data.train, *data.val, *data.retention.val)
    allowed = {item.path for item in items if item.name in base}
    drawn = set()

    def draw(path):
        drawn.add(path)
        return read_rendering(path)

    def load(name, style=None, *, retention=True):  # the unseen style is loaded by it too
        return dataclasses.replace(load_emoji(name, style, retention=retention), reader=draw)

    monkeypatch.setattr(datasets, "load_emoji", load)
    words = ["search", "--data", "emoji_activities@noto", "--trials", "1", "--parameters", "lr,scale"]
    words += ["--images_a_class", "5", "--shots", "1", "--epochs", "1", "--out", str(tmp_path / "s")]
    assert main(words) == 0
    assert drawn
    assert drawn <= allowed
    unseen = {path for path in drawn if path.startswith("fluent/")}
    assert len(unseen) == sum(path.startswith("noto/val/") for path in drawn) > 0
    found = {path.relative_to(tmp_path / "s" / "search-data") for path in (tmp_path / "s").rglob("*.png")}
    assert {path.with_suffix("").as_posix() for path in found} == drawn
    (trial,) = trials_of(tmp_path / "s")
    zeroshot = json.loads((tmp_path / "s" / "zeroshot" / "run" / "results.json").read_text())
    assert zeroshot["retention_style"] == "fluent"
    kept = [
        sum(accuracy[part] for part in ("retained_base", "retained_new")) / 2
        for accuracy in (json.loads(trial["accuracies"])["seed1"], zeroshot["accuracy"])
    ]
    assert float(trial["retained - zero-shot"]) == pytest.approx(kept[0] - kept[1])
    defaults = yaml.safe_load(TRAIN_CONFIG.read_text())
    assert float(trial["lr"]) == pytest.approx(defaults["lr"])
    assert float(trial["scale"]) == pytest.approx(defaults["adapter"]["scale"])
    run = yaml.safe_load((tmp_path / "s" / "trials" / "0" / "seed1" / "config.yaml").read_text())
    assert (run["model"], run["style"], run["augmentation"]) == ("emoji-clip", None, "none")
    assert main([*words[:2], "emoji_activities", *words[3:]]) == 2
    assert "data is 'emoji_activities@fluent', but the search in" in capsys.readouterr().err


def test_test_images_of_an_unseen_style_are_none_to_search_by():
    """Of several drawings a class validation images show the trained styles, whatever style is unseen."""
    drawings = load_drawings("drawings_food", "fluent")
    assert drawings.retention.style == "openmoji"
    assert searchable_unseen(drawings, 64) == []
    emoji = searchable_unseen(load_emoji("emoji_food", "fluent"), 3)
    assert {item.path.split("/")[:2][0] for item in emoji} == {"emojione"}
    assert len(emoji) == 3 * len({item.label for item in emoji})


def test_trials_that_diverge_are_not_the_best(words, tmp_path, capsys):
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    wild = {"parameters": "lr", "lr_range": "1e30,1e32", "epochs": 8, "adapter.layers": "2-3"}
    assert main(words(**wild)) == 2
    assert "diverged; valid: a lower --lr-range, with another --out" in capsys.readouterr().err


def test_layers():
    assert _layer_choices(12) == ["last:2", "last:4", "last:8", "all"]
    assert _layer_choices(3) == ["last:1", "last:2", "all"]
    assert _layer_choices(1) == ["all"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "data is missing"),
        (
            ["--data", "x", "--parameters", "lr,depth"],
            "parameters is 'depth'; valid: 'lr', 'scale'",
        ),
        (["--data", "x", "--trials", "0"], "trials is 0"),
        (["--data", "x", "--objective", "best"], "objective is 'best'; valid: 'kept', 'hm'"),
        (["--data", "x", "--seeds", "a"], "seeds has 'a'"),
        (["--data", "x", "--seeds", ","], "seeds is ','; valid: numbers from 0"),
        (["--data", "x", "--seeds", str(2**63)], f"seeds has '{2**63}'; valid: numbers from 0 to {2**63 - 1}"),
        (["--data", "x", "--sampler_seed", str(2**32)], f"sampler_seed is {2**32}; valid: a number >= 0 and <= "),
        (["--data", "x", "--lr_range", "1"], "lr_range is '1'; valid: low,high"),
        (["--data", "x", "--scale_range", "2,1"], "scale_range is '2,1'; valid"),
        (["--data", "x", "--classes", "all"], "option '--classes' is decided by this command"),
        (["--data", "x", "--shotz", "3"], "unknown option '--shotz'; did you mean '--shots'"),
        (["--data", "x", "--shots", "0"], "shots is 0"),
    ],
)
def test_mistakes(argv, message):
    with pytest.raises(InputError, match=message):
        parse_search(argv)


def test_the_search_space_is_not_an_option():
    assert "options" not in SearchConfig.__dataclass_fields__
