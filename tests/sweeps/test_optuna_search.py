"""The search: what it can see, what it tries, how it goes on, what it leaves behind."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sqlite3

import pytest
import yaml
from conftest import write_images
from small_runs import Killed

from rmadapter.cli import main
from rmadapter.config import TrainConfig
from rmadapter.data import load_data
from rmadapter.data.emoji import TRAIN_CONFIG
from rmadapter.data.emoji import emoji_data as datasets
from rmadapter.data.emoji.emoji_data import load_emoji, read_rendering
from rmadapter.errors import InputError
from rmadapter.locks import ProcessLock
from rmadapter.sweeps import optuna_search as search
from rmadapter.sweeps.optuna_search import SearchConfig, _layer_choices, parse_search, trial_config
from rmadapter.sweeps.search_folder import LOCK, SearchFolder
from rmadapter.sweeps.search_images import searchable, write_search_data

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
BASE, NEW = CLASSES[:4], CLASSES[4:]


@pytest.fixture
def zoo(tmp_path):
    """Eight classes with a split file, ten images each: 5 for training, 2 for validation, 3 for the test."""
    folder = write_images(tmp_path / "zoo", CLASSES, 10)
    return load_data(str(folder))


def test_only_base_classes_training_and_validation_images_are_there(zoo, tmp_path):
    folder = write_search_data(zoo, *searchable(zoo, 64), tmp_path / "s")
    seen = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    allowed = {item.path for item in (*zoo.train, *zoo.val) if item.name in BASE}
    assert seen == allowed
    assert not seen & {item.path for item in zoo.test}
    data = load_data(str(folder))
    assert data.class_names == BASE
    assert {item.path for item in data.train} == {item.path for item in zoo.train if item.name in BASE}
    assert {item.path for item in data.test} == {item.path for item in zoo.val if item.name in BASE}
    assert data.val == []


def test_without_validation_images_a_fifth_of_the_training_images_is_held_out(tmp_path):
    write_images(tmp_path / "zoo" / "train", CLASSES, 10)
    write_images(tmp_path / "zoo" / "test", CLASSES, 2)
    data = load_data(str(tmp_path / "zoo"))
    train, val = searchable(data, 64)
    assert (len(train), len(val)) == (4 * 8, 4 * 2)
    assert not {i.path for i in train} & {i.path for i in val}
    assert all(item.path.startswith("train/") and item.name in BASE for item in (*train, *val))


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
    assert main(words(out="third")) == 1


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
    capsys.readouterr()
    assert main(words(trials=4, seeds="1,2")) == 0
    out = capsys.readouterr().out
    assert "[3/4]" in out
    assert "[2/4]" not in out
    found = trials_of(tmp_path / "s")
    assert found[:2] == first
    best = max(found, key=lambda trial: float(trial["hm"] or -1))
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
        return {"accuracy": {"base": 1.0, "new": 1.0, "hm": 1.0}}


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
    folder = write_search_data(zoo, train, val, tmp_path / "s")
    zoo.root.rename(tmp_path / "moved")
    zoo.root.mkdir()
    for name in CLASSES:
        (zoo.root / name).mkdir()
    if not links:
        monkeypatch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    moved = dataclasses.replace(zoo, root=tmp_path / "moved")
    assert write_search_data(moved, train, val, tmp_path / "s") == folder
    assert not [path for path in zoo.root.rglob("*") if path.is_file()]
    for item in (*train, *val):
        assert (folder / item.path).is_symlink() == links
        assert (folder / item.path).read_bytes() == (tmp_path / "moved" / item.path).read_bytes()


def test_only_visible_files_are_in_the_way(zoo, tmp_path):
    folder = SearchFolder(tmp_path / "s")
    folder.path.mkdir()
    (folder.path / ".search.json.123.tmp").write_text("")  # as a kill leaves it
    folder.enter({}, zoo)
    folder.settings_file.rename(folder.path / "thesis.json")
    with pytest.raises(InputError, match=r"a folder with other files in it \(thesis\.json\)"):
        folder.enter({}, zoo)


def test_what_a_configuration_file_says_of_what_the_search_decides_is_passed_over(words, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("evaluate: false\nexplain: true\noverwrite: true\n")
    config = parse_search(words(config=file)[1:])
    found = trial_config(config, tmp_path, 1, {})
    assert (found.evaluate, found.explain, found.overwrite, found.resume) == (True, False, False, True)


def test_a_bundled_data_set_is_searched_with_the_same_proof(tmp_path, monkeypatch, capsys):
    """Its pictures are drawn when they are read: none is drawn of a test image, of a new class or in another style."""
    pytest.importorskip("optuna", reason="pip install 'rmadapter[search]'")
    data = load_emoji("emoji_activities", "noto")
    base = {item.name for item in data.train if item.label < (len(data.class_names) + 1) // 2}
    allowed = {item.path for item in (*data.train, *data.val) if item.name in base}
    drawn = set()

    def draw(path):
        drawn.add(path)
        return read_rendering(path)

    def load(name, style=None):
        return dataclasses.replace(load_emoji(name, style, retention=False), reader=draw)

    monkeypatch.setattr(datasets, "load_emoji", load)
    words = ["search", "--data", "emoji_activities@noto", "--trials", "1", "--parameters", "lr,scale"]
    words += ["--images_a_class", "5", "--shots", "1", "--epochs", "1", "--out", str(tmp_path / "s")]
    assert main(words) == 0
    assert drawn
    assert drawn <= allowed
    found = {path.relative_to(tmp_path / "s" / "search-data") for path in (tmp_path / "s").rglob("*.png")}
    assert {path.with_suffix("").as_posix() for path in found} == drawn
    (trial,) = trials_of(tmp_path / "s")
    defaults = yaml.safe_load(TRAIN_CONFIG.read_text())
    assert float(trial["lr"]) == pytest.approx(defaults["lr"])
    assert float(trial["scale"]) == pytest.approx(defaults["adapter"]["scale"])
    run = yaml.safe_load((tmp_path / "s" / "trials" / "0" / "seed1" / "config.yaml").read_text())
    assert (run["model"], run["style"], run["augmentation"]) == ("emoji-clip", None, "none")
    assert main([*words[:2], "emoji_activities", *words[3:]]) == 2
    assert "data is 'emoji_activities@fluent', but the search in" in capsys.readouterr().err


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
