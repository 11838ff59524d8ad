"""A sweep knows its data sets by what they list, and only looks at what other processes are doing."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import write_images
from small_runs import stop
from small_sweeps import sweep

from rmadapter.cli import main
from rmadapter.data import load_data
from rmadapter.errors import InputError
from rmadapter.locks import ProcessLock
from rmadapter.reports.sweep.outcomes import read_sweep
from rmadapter.sweeps.manifest import enter
from rmadapter.sweeps.one_run import make_run
from rmadapter.sweeps.progress import hold, state
from rmadapter.sweeps.protocols import short_name
from rmadapter.sweeps.settings import parse_sweep
from rmadapter.training import loop


def in_another_folder(words, tmp_path, name="other"):
    """The same command over the folder ``animals`` in another place."""
    return [word.replace(str(tmp_path / "animals"), str(tmp_path / name / "animals")) for word in words]


def test_a_data_set_in_the_place_of_another_is_refused_and_a_copy_is_not(sweep_words, tmp_path, capsys):
    words = sweep_words(data="animals", methods="zeroshot")
    assert sweep(*words) == 0
    before = load_data(str(tmp_path / "animals")).content_hash
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["data_hashes"] == {"animals": before}
    write_images(tmp_path / "other" / "animals", ["ant", "bee", "cat", "dog"], 9, 3)
    after = load_data(str(tmp_path / "other" / "animals")).content_hash
    capsys.readouterr()
    for more in ([], ["--dry-run"]):
        assert sweep(*in_another_folder(words, tmp_path), *more) == 2
        error = capsys.readouterr().err
        assert f"its content hash is {after[:12]}, and was {before[:12]}; valid: the data as they were" in error
    _, planned = parse_sweep(in_another_folder(words, tmp_path))
    (run,) = planned.runs()
    with pytest.raises(InputError, match=f"content hash is {after[:12]}"):
        enter(planned)
    results = tmp_path / "s" / "runs" / run.key / "run" / "results.json"
    kept = results.read_text()
    results.unlink()
    with pytest.raises(InputError, match=f"content hash is {after[:12]}"):
        make_run(planned, run)
    results.write_text(kept)
    shutil.copytree(tmp_path / "animals", tmp_path / "copy" / "animals")
    assert sweep(*in_another_folder(words, tmp_path, "copy")) == 0


def test_what_is_said_of_a_data_set_names_it(sweep_words, tmp_path, capsys):
    for name in ("animals", "plants"):
        (tmp_path / name / "bee").rename(tmp_path / name / "Cat")
    assert sweep(*sweep_words(methods="zeroshot")) == 0
    lines = capsys.readouterr().out.splitlines()
    alike = "1 class names stand for several classes, such as 'Cat' and 'cat' (labels 0, 2)"
    assert [line.partition(alike)[0] for line in lines if alike in line] == ["animals: ", "plants: "]
    (made,) = (line for line in lines if "made a split" in line and "plants" in line)
    assert made.startswith("made a split of 50/20/30 %")


def test_images_that_kept_every_run_from_beginning_may_be_put_right(sweep_words, tmp_path, capsys):
    words = sweep_words(data="animals", methods="zeroshot,single")
    contents = {file: file.read_bytes() for file in (tmp_path / "animals").rglob("*.png")}
    for file in contents:
        file.write_bytes(b"no image")
    assert sweep(*words) == 1
    for file, content in contents.items():
        file.write_bytes(content)
    assert sweep(*words) == 0
    next(iter(contents)).write_bytes(b"no image")  # now there are results
    capsys.readouterr()
    assert sweep(*words) == 2
    assert f"or the runs on it deleted from {tmp_path / 's' / 'runs'}" in capsys.readouterr().err


def test_a_manifest_of_an_earlier_version_says_nothing_of_them(sweep_words, tmp_path):
    words = sweep_words(data="animals", methods="zeroshot")
    assert sweep(*words) == 0
    file = tmp_path / "s" / "sweep.json"
    values = json.loads(file.read_text())
    hashes = values.pop("data_hashes")
    file.write_text(json.dumps(values))
    assert sweep(*words) == 0
    assert json.loads(file.read_text())["data_hashes"] == hashes


def test_half_of_two_classes_is_refused_before_the_first_run(sweep_words, tmp_path, capsys):
    for name in ("ant", "bee"):
        shutil.rmtree(tmp_path / "animals" / name)
    for more in ([], ["--dry-run"]):
        assert sweep(*sweep_words(data="plants,animals"), *more) == 2
        error = capsys.readouterr().err
        assert (
            f"data has '{tmp_path / 'animals'}', of whose 2 classes half are trained on; valid with base2new" in error
        )
    assert not (tmp_path / "s").exists()
    assert sweep(*sweep_words("cross", data="plants,animals"), "--dry-run") == 0


def test_two_folders_of_one_name_are_told_apart_or_refused(tmp_path, capsys):
    folders = f"{tmp_path}/a/flowers,{tmp_path}/b/flowers"
    assert sweep("base2new", "--data", folders, "--pretrained", "openai") == 2
    error = capsys.readouterr().err
    assert f"data has 'flowers' twice, as {tmp_path}/a/flowers and {tmp_path}/b/flowers; valid: each once" in error


def test_a_folder_that_is_named_by_dots_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "zoo" / "ant").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "zoo")
    assert short_name(".") == "zoo"
    monkeypatch.chdir(tmp_path / "zoo" / "ant")
    assert short_name("..") == "zoo"


@pytest.mark.parametrize("command", ["sweep", "search"])
def test_a_config_file_is_that_of_the_runs_and_help_says_so(command, capsys):
    assert main([command, "--print-config"]) == 2
    assert "option '--print-config' is none of this command's; valid with rmadapter train" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--config FILE YAML file with the same names as the options of the runs" in text
    assert "print_config" not in text


def test_seeds_are_numbers_that_every_generator_takes(sweep_words, capsys):
    assert sweep(*sweep_words(seeds=f"1,{2**63}")) == 2
    assert f"seeds has '{2**63}'; valid: numbers from 0 to {2**63 - 1}" in capsys.readouterr().err


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_who_looks_at_a_sweep_takes_and_writes_nothing(sweep_words, tmp_path, monkeypatch, capsys):
    words = sweep_words(data="animals")
    _, planned = parse_sweep(words)
    zeroshot, single = planned.runs()
    enter(planned)
    make_run(planned, zeroshot)
    with hold(planned, single):
        before = files_of(tmp_path)
        monkeypatch.setattr(ProcessLock, "attempt", stop)
        monkeypatch.setattr(ProcessLock, "wait", stop)
        capsys.readouterr()
        assert [run.key for run in state(planned).running] == ["single/animals/seed1"]
        assert sweep(*words, "--dry-run") == 0
        assert "running  single/animals/seed1: 1 steps, 8 test images (process " in capsys.readouterr().out
        assert read_sweep(tmp_path / "s").done == 1
        assert files_of(tmp_path) == before
        monkeypatch.undo()
        assert sweep(*words) == 0
        assert "  running: single/animals/seed1: process " in capsys.readouterr().out


def test_a_test_that_fails_is_made_up_for_without_training_again(sweep_words, tmp_path, monkeypatch, capsys):
    words = sweep_words(data="animals", methods="single")
    spoilt = load_data(str(tmp_path / "animals")).test[0]
    (tmp_path / "animals" / spoilt.path).write_bytes(b"spoilt")
    assert sweep(*words) == 1
    out = capsys.readouterr().out
    assert "adapter is trained and saved in" in out
    assert "in a sweep or a search, that one's own command does, both with --skip-bad-images too" in out
    monkeypatch.setattr(loop.TrainingLoop, "_step", stop)
    assert sweep(*words, "--skip-bad-images") == 0


def test_a_damaged_test_image_may_be_put_right_and_no_run_is_trained_again(sweep_words, tmp_path, monkeypatch, capsys):
    """Training has not read it; its size is in the hash of what the runs began with."""
    words = sweep_words(data="animals", methods="single")
    data = load_data(str(tmp_path / "animals"))
    spoilt = data.root / data.test[0].path
    content = spoilt.read_bytes()
    spoilt.write_bytes(b"spoilt")
    assert sweep(*words) == 1
    spoilt.write_bytes(content)
    taught = data.root / data.train[0].path
    kept = taught.read_bytes()
    taught.write_bytes(kept + bytes(1))
    assert sweep(*words) == 2  # which was trained on, or others of its size were
    taught.write_bytes(kept)
    monkeypatch.setattr(loop.TrainingLoop, "_step", stop)
    assert sweep(*words) == 0
    (results,) = (json.loads(file.read_text()) for file in (tmp_path / "s").rglob("results.json"))
    assert results["data_hash"] == results["trained_on"]["data_hash"] == data.content_hash
    assert sweep(*words) == 0
    spoilt.write_bytes(b"spoilt")
    capsys.readouterr()
    assert sweep(*words) == 2  # now there are results on it
    assert f"and was {data.content_hash[:12]}; valid: the data as they were" in capsys.readouterr().err
